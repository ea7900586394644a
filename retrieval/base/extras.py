"""Optional packages: the extras of pyproject.toml."""

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
        MissingExtraError: A module of another package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("retrieval"):
            raise  # a fault of the program
        raise MissingExtraError(
            f'{error.name} is not installed: pip install "{DISTRIBUTION}[{extra}]"'
        ) from None
