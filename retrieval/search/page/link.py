"""The link to a query: the page's address with fields, as in ?q=a+dog&within=birds&k=20.

page.py reads the fields when the page is opened, and asks; results.js shows the link after an
answer. The page's token is never a part of it.
"""

from urllib.parse import urlencode

# By name in the link: the value that is left out.
LINK_FIELDS = {"q": "", "within": "", "min_seconds": 0, "max_seconds": None, "k": 10}
LONGEST_LINK = 4000  # characters: servers and programs refuse longer addresses

# Returns the values of the page's fields (query, folder, shortest, longest, k), whether the filters
# are shown, and the query again for the field that asks. Values that no field holds are left out.
READ_LINK = """() => {
    const given = new URLSearchParams(location.search);
    const number = (name, usual, least, most) => {
        const value = given.get(name);
        const is_good = value && Number(value) >= least && Number(value) <= most;
        return is_good ? Number(value) : usual;
    };
    const query = given.get("q") || "";
    const filters = ["within", "min_seconds", "max_seconds", "k"];
    return [
        query, given.get("within") || "", number("min_seconds", 0, 0, 1e9),
        number("max_seconds", null, 0, 1e9), Math.round(number("k", 10, 1, MOST)),
        { __type__: "update", open: filters.some((name) => given.has(name)) }, query,
    ];
}"""


def link_to(**fields: str | float | None) -> str:
    """Return the link to a query, without the page's address; "" if it is too long.

    Args:
        **fields: Values by the names in LINK_FIELDS.
    """
    given = {
        name: f"{fields[name]:.12g}" if isinstance(fields[name], float) else fields[name]
        for name, usual in LINK_FIELDS.items()
        if fields[name] != usual
    }
    link = f"?{urlencode(given)}"
    return link if len(link) <= LONGEST_LINK else ""
