"""Packages that not every user has installed: the extras of pyproject.toml."""

from collections.abc import Iterator
from contextlib import contextmanager

from retrieval.base.errors import UserError

DISTRIBUTION = "text-to-audio-retrieval"


class MissingExtraError(UserError, ImportError):
    """A package of an extra is not installed."""


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Name the extra to install if an import in this block fails.

        with needs_extra("search"):
            import faiss

    Args:
        extra: Name of the extra in pyproject.toml.

    Raises:
        MissingExtraError: A module is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error.name} is not installed: {install_command(extra)}", name=error.name
        ) from None


def install_command(extra: str) -> str:
    """Return the command that installs an extra."""
    return f'pip install "{DISTRIBUTION}[{extra}]"'
