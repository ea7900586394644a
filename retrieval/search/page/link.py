"""The link to a query: the page's address with fields, as in ?q=a+dog&within=birds&k=20.

page.py reads the link when the page is opened, and asks; results.js shows the link after an answer.
The page's token is never a part of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from retrieval.base.errors import printable
from retrieval.search.metadata import number_of

# By name in the link: the value that is left out.
LINK_FIELDS = {"q": "", "without": "", "within": "", "min_seconds": 0, "max_seconds": None}
LINK_FIELDS |= {"min_score": None, "k": 10}
COLUMN = "where."  # before the name of a column of metadata
LONGEST_LINK = 4000  # characters: servers and programs refuse longer addresses

# Limits of the fields that hold numbers; the page gives that of k.
LIMITS = {"min_seconds": (0, 1e9), "max_seconds": (0, 1e9), "min_score": (-1e9, 1e9)}
MOST_FIELDS = 100
UNUSED_SHOWN, LONGEST_SHOWN = 5, 40  # fields, characters

# Runs when the page is opened: returns the sentence for its field, the link for the field whose
# change asks, and the usual values of the fields below the question: without them, the browser
# makes 0 of an empty number when these fields are first shown.
GIVE_LINK = """() => {
    const query = new URLSearchParams(location.search).get("q") || "";
    return [query, location.search, ...USUAL];
}"""


@dataclass(frozen=True)
class Link:
    """A link that was read.

    Attributes:
        fields: Values by the names in LINK_FIELDS; for a name that is not given its usual value.
        where: Values by column of the metadata.
        unused: Fields that the page does not use, each with the reason.
    """

    fields: dict[str, Any]
    where: dict[str, str]
    unused: tuple[str, ...]

    @property
    def has_more(self) -> bool:
        """Whether it says more than the sentence."""
        others = (name for name in LINK_FIELDS if name != "q")
        return bool(self.where) or any(self.fields[name] != LINK_FIELDS[name] for name in others)


def read_link(link: str, most: int) -> Link:
    """Read the part of a page's address from the ? on.

    Args:
        link: That part; it may hold anything.
        most: Answers at most.
    """
    fields, where, unused, seen = dict(LINK_FIELDS), {}, [], set()
    try:
        given = parse_qsl(link.removeprefix("?"), max_num_fields=MOST_FIELDS)
    except ValueError:
        given, unused = [], [f"all (more than {MOST_FIELDS} fields)"]
    for name, value in given:
        shown = f"{cut(name)}={cut(value)}"
        if name in seen:
            unused.append(f"{shown} (a field counts once)")
        elif name.startswith(COLUMN):
            where[name.removeprefix(COLUMN)] = value.strip()
        elif name not in LINK_FIELDS:
            unused.append(f"{shown} (the page has no such field)")
        elif name in LIMITS or name == "k":
            least, highest = (1, most) if name == "k" else LIMITS[name]
            number = number_of(value.strip())
            is_whole = number is not None and number == int(number)
            if number is None or not least <= number <= highest or name == "k" and not is_whole:
                kind = "whole number" if name == "k" else "number"
                unused.append(f"{shown} (a {kind} from {least:,.0f} to {highest:,.0f})")
            else:
                fields[name] = int(number) if name == "k" else number
        else:
            fields[name] = value
        seen.add(name)
    where = {column: value for column, value in where.items() if value}
    return Link(fields, where, tuple(unused))


def unused_line(unused: Sequence[str]) -> str:
    """Return the line that names the unused fields of a link; "" without any."""
    more = ", ..." if len(unused) > UNUSED_SHOWN else ""
    return f"not used from the link: {', '.join(unused[:UNUSED_SHOWN])}{more}" if unused else ""


def cut(text: str) -> str:
    text = printable(text)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def is_link_field(name: str) -> bool:
    return name in LINK_FIELDS or name.startswith(COLUMN)


def link_to(where: Mapping[str, str] | None = None, **fields: str | float | None) -> str:
    """Return the link to a query, without the page's address; "" if it is too long.

    Args:
        where: Values by column of the metadata.
        **fields: Values by the names in LINK_FIELDS.
    """
    given = {
        name: f"{fields[name]:.12g}" if isinstance(fields[name], float) else fields[name]
        for name, usual in LINK_FIELDS.items()
        if fields.get(name, usual) != usual
    }
    given |= {COLUMN + column: value for column, value in (where or {}).items()}
    link = f"?{urlencode(given)}"
    return link if len(link) <= LONGEST_LINK else ""
