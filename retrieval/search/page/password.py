"""Password of the page and its login form.

Passwords are compared in constant time; wrong attempts are slowed down.
"""

import hashlib
import hmac
from collections import OrderedDict
from html import escape
from ipaddress import ip_address, ip_network
from time import monotonic

from retrieval.search.page.clients import Refused

FREE_ATTEMPTS = 3
LONGEST_WAIT = 60.0  # s, doubled from 1 s with every wrong attempt
MAX_ADDRESSES = 10_000

FORM = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Search recordings</title>
<style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:22rem;margin:20vh auto;padding:0 1rem}}
input,button{{font:inherit;width:100%;box-sizing:border-box;min-height:44px;margin:.25rem 0;
padding:0 .75rem}}</style></head>
<body><h1>Search recordings</h1><form method="post" action="/login{link}">
<label>Password, or the token that was printed at the start
<input name="password" type="password" autocomplete="current-password" required autofocus></label>
<p role="alert">{line}</p><button>Open</button></form></body></html>"""


def login_page(link: str = "", line: str = "") -> str:
    """Return the form; `link` is the query that is opened after it, with ? before it."""
    return FORM.format(link=escape(link), line=escape(line))


class Password:
    """Checks login attempts.

    From the fourth wrong one on, an address has to wait, twice as long each time.
    """

    def __init__(self, password: str):
        self._digest = digest(password)
        # network -> number of wrong attempts, end of the wait (s)
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def is_right(self, given: str | None, address: str) -> bool:
        """Return True if `given` is the password.

        Raises Refused (429), without a check, while the address has to wait.
        """
        network, now = network_of(address), monotonic()
        attempts, closed_until = self._wrong.get(network, (0, 0.0))
        if now < closed_until:
            seconds = int(closed_until - now) + 1
            raise Refused(
                429,
                f"too many wrong passwords: try again in {seconds} s",
                {"Retry-After": str(seconds)},
            )
        if hmac.compare_digest(digest(given or ""), self._digest):
            self._wrong.pop(network, None)
            return True
        wait = 0.0
        if attempts >= FREE_ATTEMPTS:
            wait = min(LONGEST_WAIT, 2.0 ** (attempts - FREE_ATTEMPTS))
        self._wrong[network] = (attempts + 1, now + wait)
        self._wrong.move_to_end(network)
        if len(self._wrong) > MAX_ADDRESSES:
            self._wrong.popitem(last=False)
        return False


def digest(text: str) -> bytes:
    """Hash `text`, so that the time of the comparison does not depend on its length."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def network_of(address: str) -> str:
    """Return the /64 of an IPv6 address, because one machine can use all of it; others as given."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if ip.version == 6 and not ip.ipv4_mapped:
        return str(ip_network((ip, 64), strict=False))
    return str(ip)
