"""Filters of a search: conditions on the recordings of answers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from retrieval.base.errors import UserError


@dataclass(frozen=True)
class Filters:
    """Conditions on the recording of an answer; all of them must hold. Raises UserError.

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

    def __post_init__(self):
        for name in ("within", "without"):
            if not isinstance(value := getattr(self, name), str):
                raise UserError(f"{name} must be a name below the indexed folder, found {value!r}")
        for name in ("min_seconds", "max_seconds"):
            value = getattr(self, name)
            if not isinstance(value, Real) or math.isnan(value):
                raise UserError(f"{name} must be a number of seconds, found {value!r}")
        if not isinstance(self.where, Mapping):
            raise UserError(
                'where must give a value to each column, such as {"place": "forest"}, found'
                f" {self.where!r}"
            )

    @property
    def folder(self) -> str:
        """`within` without empty parts and parts ".", joined by single slashes."""
        return "/".join(part for part in self.within.split("/") if part not in ("", "."))

    @property
    def limit_length(self) -> bool:
        return self.min_seconds > 0 or self.max_seconds < math.inf
