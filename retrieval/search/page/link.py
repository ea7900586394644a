"""The link to a query: the page's address with fields, as in ?q=a+dog&within=birds&k=20.

page.py reads the fields when the page is opened, and asks; results.js shows the link after an
answer. The page's token is never a part of it.
"""

import json
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

# By name in the link: the value that is left out.
LINK_FIELDS = {"q": "", "without": "", "within": "", "min_seconds": 0, "max_seconds": None}
LINK_FIELDS |= {"min_score": None, "k": 10}
COLUMN = "where."  # before the name of a column of metadata
LONGEST_LINK = 4000  # characters: servers and programs refuse longer addresses

# Returns the values of the page's fields, in their order, whether those below the question are
# shown, and the query again for the field that asks. Values that no field holds are left out.
READ_LINK = """() => {
    const given = new URLSearchParams(location.search);
    const text = (name) => given.get(name) || "";
    const number = (name, usual, least, most) => {
        const value = given.get(name);
        const is_good = value && Number(value) >= least && Number(value) <= most;
        return is_good ? Number(value) : usual;
    };
    const query = text("q");
    const has_more = [...given.keys()].some((name) => name !== "q");
    return [
        query, text("within"), number("min_seconds", 0, 0, 1e9),
        number("max_seconds", null, 0, 1e9), Math.round(number("k", 10, 1, MOST)),
        text("without"), number("min_score", null, -1e9, 1e9),
        ...COLUMNS.map((name) => text("where." + name)),
        { __type__: "update", open: Boolean(query && has_more) }, query,
    ];
}"""


def read_link(columns: Sequence[str], most: int) -> str:
    """Return the script that reads a link.

    Args:
        columns: Those of the metadata that the page has fields for.
        most: Answers at most.
    """
    names = json.dumps(list(columns)).replace("<", "\\u003c")  # this is within a page
    return READ_LINK.replace("MOST", str(most)).replace("COLUMNS", names)


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
