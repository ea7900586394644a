"""Read the resolved settings of a run folder."""

from pathlib import Path

from retrieval.base.errors import UserError
from retrieval.config.settings import Config, parse_config
from retrieval.config.text import read_yaml_file


def read_config(run: Path) -> Config:
    """Read RUN/config.yaml, which holds every setting of a run.

    Args:
        run: The run folder.

    Raises:
        UserError: The file is absent, cannot be read, or holds no valid settings.
    """
    path = run / "config.yaml"
    try:
        settings = read_yaml_file(path, str(path))
        if not settings:
            raise UserError(f"{path} cannot be read (it holds no settings)")
    except (UserError, FileNotFoundError) as error:
        raise UserError(
            f"{error}; it is written when a run starts: put back its copy, or train again"
        ) from None
    return parse_config(settings, source=str(path))
