"""Filters of a search: which recordings may be answers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Filters:
    """Conditions on the recording of an answer; all of them must hold.

    Attributes:
        within: Folder below the indexed one, such as "birds/owls"; "": every folder.
        min_seconds: Shortest length.
        max_seconds: Longest length.
        without: Name of a file that may not be found; "": none.
        where: Accepted values by column of the metadata, as resolve_where takes them, such as
            {"place": "forest", "year": (2020, 2024)}. A list accepts each of its values.
    """

    within: str = ""
    min_seconds: float = 0.0
    max_seconds: float = math.inf
    without: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """`within` without borders."""
        return self.within.strip("/")

    @property
    def limit_length(self) -> bool:
        return self.min_seconds > 0 or self.max_seconds < math.inf
