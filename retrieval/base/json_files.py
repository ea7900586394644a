"""Read JSON files from any source, with errors instead of hangs and crashes."""

import errno
import json
from pathlib import Path
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Parse `text`. Raises ValueError for text that is no JSON or nested too deep for Python."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its lists and objects are nested too deep") from None


def read_json(path: Path) -> Any:
    """Parse the file `path`. Raises OSError, and ValueError as parse_json does."""
    if path.exists() and not path.is_file():  # a pipe or a device may never end
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return parse_json(path.read_text(encoding="utf-8-sig"))
