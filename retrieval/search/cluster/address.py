"""Address of an index in a database, and the share of its files that one process updates.

postgresql://user@host/database?index=birds
"""

import re
from dataclasses import dataclass, field
from hashlib import sha256
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from retrieval.base.errors import UserError

SCHEMES = ("postgresql://", "postgres://")
DEFAULT_NAME = "recordings"
NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")
RESERVED = ("public", "information_schema")
SHARE_BITS = 31  # of the number by which a file belongs to a share


class StoreError(UserError):
    """The database of an index, or the store of its frames, failed or is out of reach.

    The message names machines, so the page writes it to its log only.
    """


def is_address(text: object) -> bool:
    """Return True for the address of a database, False for a folder."""
    return isinstance(text, str) and text.lower().startswith(SCHEMES)


def redacted(text: str) -> str:
    """Return an address without its passwords, also a malformed one."""
    text = re.sub(r"//([^:/@?#]*):.*@", r"//\1:***@", text)
    return re.sub(r"(?i)(password=)[^&\s]*", r"\1***", text)


@dataclass(frozen=True)
class Address:
    """Address of an index in a PostgreSQL database; it prints without passwords.

    Attributes:
        uri: For libpq.
        name: Name of the index, which is a schema of the database.
        shown: Address without passwords, for messages.
    """

    uri: str = field(repr=False)
    name: str
    shown: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read an address with the parameter `index`; default: DEFAULT_NAME. Raises UserError."""
        shown = redacted(text)
        try:
            parts = urlsplit(text)
            pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
            if "@" in parts.path or parts.fragment:
                raise ValueError("a password with / or #")
        except ValueError:
            raise UserError(
                f"--store {shown} is not an address: expected postgresql://user@host/database"
                "?index=NAME, with %-codes for special characters in user and password"
            ) from None
        names = [value for key, value in pairs if key == "index"]
        name = names[0] if names else DEFAULT_NAME
        is_wrong = not NAME.fullmatch(name) or name in RESERVED or name.startswith("pg_")
        if len(names) > 1 or is_wrong:
            raise UserError(
                f"--store {shown}: index={name[:60]} is no name for an index; expected one, of"
                " small letters, digits and _, such as birds_2024"
            )
        others = urlencode([(key, value) for key, value in pairs if key != "index"])
        return cls(urlunsplit(parts._replace(query=others)), name, shown)

    def __str__(self) -> str:
        return self.shown


@dataclass(frozen=True)
class Share:
    """Part `number` of `of` equal parts of the files, by a hash of their names."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Read "3/16". Raises UserError."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        share = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= share.number <= share.of:
            raise UserError(
                f"--shard {text}: expected NUMBER/OF, such as 3/16, with 1 <= NUMBER <= OF"
            )
        return share

    def holds(self, file: str) -> bool:
        return share_number(file) % self.of == self.number - 1

    @property
    def is_all(self) -> bool:
        return self.of == 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def share_number(file: str) -> int:
    """Return the number that assigns a file to a share, the same on every machine."""
    digest = sha256(file.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:4], "big") >> (32 - SHARE_BITS)
