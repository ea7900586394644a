"""Access control in front of the page: refuses every request that is not on its lists.

It checks host name, route, origin, client (and password) and event, in this order, before a request
reaches Gradio or the disk. See docs/search_page.md.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from html import escape
from http.cookies import CookieError, SimpleCookie
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from retrieval.search.page.clients import Client, Clients, Refused
from retrieval.search.page.events import Events, parse
from retrieval.search.page.link import is_link_field
from retrieval.search.page.password import Password, login_page

EVENT_BYTES = 2**20
LOGIN_BYTES = 2**12
MAX_WAITING_OF_CLIENT = 8  # events of one client in Gradio's queue
SECONDS_BETWEEN_SWEEPS = 5.0
UPLOAD, FILES = "/gradio_api/upload", "/gradio_api/file="
# a page that lost the connection requests it until it can load again
APP_ID = "/gradio_api/app_id"
JOIN, ANSWERS = "/gradio_api/queue/join", "/gradio_api/queue/data"
API_BYTES = 2**20  # of a request in JSON
JSON_ROUTES = ("/api/search", "/api/moments")  # POST
FACTS_ROUTES = ("/api/openapi.json", "/api/index", "/api/detectors")
MAX_FIELDS = 60  # of a query string

ROUTES: dict[str, set[str]] = {
    "/": {"GET", "HEAD"},
    "/config": {"GET"},
    APP_ID: {"GET"},
    "/theme.css": {"GET"},
    "/favicon.ico": {"GET"},
    "/recording": {"GET", "HEAD"},
    "/clip": {"GET"},
    "/picture": {"GET"},
    "/overview": {"GET"},
    "/whole": {"GET"},
    "/download": {"GET"},
    **dict.fromkeys(FACTS_ROUTES, {"GET"}),
    **dict.fromkeys(JSON_ROUTES, {"POST"}),
    "/presence": {"GET"},
    "/login": {"POST"},
    UPLOAD: {"POST"},
    "/gradio_api/upload_progress": {"GET"},
    JOIN: {"POST"},
    ANSWERS: {"GET"},
}
# Open to programs with the token in place of a cookie; the page's other routes need its client.
PROGRAM_ROUTES = {*FACTS_ROUTES, *JSON_ROUTES, "/recording", "/clip", "/picture", "/overview"}
PROGRAM_ROUTES |= {"/download"}
GRADIO_ROUTES = {"/", "/config", APP_ID, "/theme.css", "/favicon.ico"}
PREFIXES = ("/assets/", "/static/", FILES)  # GET
STATIC = re.compile(r"(/assets|/static)(/[\w@+-][\w@+.-]*)+")
GRADIO_HEADERS = {b"host", b"accept", b"accept-encoding", b"accept-language", b"content-type"}
GRADIO_HEADERS |= {b"if-none-match", b"if-modified-since", b"user-agent"}
BODY_HEADERS = (b"content-length", b"transfer-encoding")
RESPONSE_HEADERS = {
    # Gradio's scripts are inline and made at run time; nothing may come from, or go to, another
    # origin.
    "content-security-policy": (
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
        "frame-ancestors 'none'; base-uri 'self'; form-action 'self'; object-src 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
# A request that starts at another site carries no SameSite=Strict cookie. This page repeats the
# request from here, with the cookie.
AGAIN = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={url}">'
    '<title>Search recordings</title><a href="{url}">Search recordings</a>'
)

Scope, Receive, Send = (
    dict[str, Any],
    Callable[[], Awaitable[dict]],
    Callable[[dict], Awaitable[None]],
)


@dataclass
class Asked:
    """A request whose route is known."""

    scope: Scope
    headers: dict[str, str]
    query: dict[str, str]

    @property
    def path(self) -> str:
        return self.scope["path"]

    @property
    def method(self) -> str:
        return self.scope["method"]

    @property
    def address(self) -> str:
        return self.scope["client"][0] if self.scope.get("client") else ""


class Gate:
    """ASGI application in front of the page's.

    Args:
        app: The page with its routes; it finds the client's key in `request.state.client_key`.
        events: Events that the page may post.
        clients: Owners of uploads and sessions.
        names: Host names to answer to, in addition to IP addresses (which DNS rebinding cannot
            use); None: all names.
        password: Required on every route; None: no password.
        num_waiting: Function from a session_hash to its number of events in the queue.
    """

    def __init__(
        self,
        app,
        events: Events,
        clients: Clients,
        names: frozenset[str] | None,
        password: Password | None,
        num_waiting: Callable[[str], int],
    ):
        self.app, self.events, self.clients = app, events, clients
        self.names, self.password, self.num_waiting = names, password, num_waiting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            sweeper = asyncio.create_task(self._sweep_forever())
            try:
                await self.app(scope, receive, send)
            finally:
                sweeper.cancel()
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_SWEEPS)
            self.clients.sweep()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        cookies: list[str] = []
        is_stream: bool | None = None  # None: nothing was answered yet

        async def send_safely(message: dict) -> None:
            nonlocal is_stream
            if message["type"] == "http.response.start":
                is_stream = all(name.lower() != b"content-length" for name, _ in message["headers"])
                headers = [
                    (name, value)
                    for name, value in message["headers"]
                    if not name.lower().startswith(b"access-control-")
                ]
                for name, value in RESPONSE_HEADERS.items():
                    headers.append((name.encode(), value.encode()))
                headers += [(b"set-cookie", cookie.encode()) for cookie in cookies]
                message = message | {"headers": headers}
            await send(message)

        try:
            asked = read_head(scope)
            # DNS rebinding: a page under a foreign name that resolves to this machine could read
            # the answers.
            name = host_name(asked.headers.get("host", ""))
            if name is None:
                raise Refused(400, "the Host header is not valid")
            if self.names is not None and name not in self.names and not is_address(name):
                raise Refused(400, "this page does not answer to this host name")
            check_route(asked)
            check_origin(asked)
            await self._admit(asked, receive, send_safely, cookies)
        except asyncio.CancelledError:  # the server ends while this page is open
            if is_stream is None:
                await JSONResponse({"detail": "the page has ended"}, 503)(scope, receive, send)
            elif is_stream:
                await send({"type": "http.response.body"})
            else:
                raise
        except Refused as refusal:
            closing = {"Connection": "close"} if scope["method"] == "POST" else {}
            answer = {"detail": refusal.detail}
            refused = JSONResponse(answer, refusal.status, refusal.headers | closing)
            await refused(scope, receive, send_safely)

    async def _admit(self, asked: Asked, receive: Receive, send: Send, cookies: list[str]) -> None:
        scope, cookie_name = asked.scope, f"retrieval_{asked.scope['server'][1]}"
        given = read_cookie(asked.headers.get("cookie", ""), cookie_name)
        name = self.clients.name_in(given)
        if asked.path == "/login" or (asked.path == "/" and "token" in asked.query):
            return await self._login(asked, cookie_name, receive, send)
        if asked.path == "/" and asked.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            again = AGAIN.format(url=escape(f"./{link_of(asked)}"))
            return await HTMLResponse(again)(scope, receive, send)
        if name is None and self.password and not self._has_token(asked):
            if asked.path == "/":
                return await HTMLResponse(login_page(link_of(asked)), 401)(scope, receive, send)
            detail = "this page needs a password: open it in a browser and enter it"
            if asked.path in PROGRAM_ROUTES:
                detail += "; programs send the header Authorization: Bearer TOKEN"
            raise Refused(401, detail, {"WWW-Authenticate": "Bearer"})
        if name is None and (given or asked.path in ("/", UPLOAD)):
            cookie = self.clients.new_cookie(given)
            cookies.append(cookie_text(cookie_name, cookie, scope["scheme"]))
            name = self.clients.name_in(cookie)
        client_key = f"address {asked.address}" if name is None else name
        scope = asked.scope | {"state": {"client_key": client_key}}
        if asked.path == JOIN:
            await self._join(asked, scope, client_key, receive, send)
        elif asked.path in JSON_ROUTES:
            body = parse(await read_json(asked, receive, API_BYTES))
            scope |= {"query_string": b""}
            await self.app(*with_json(scope, body, receive), send)
        elif asked.path == ANSWERS:
            client = self.clients.client(client_key)
            session_hash = asked.query.get("session_hash", "")
            if session_hash not in self.clients.sessions:
                raise Refused(404, "there is no such session")
            scope |= for_gradio(asked, urlencode({"session_hash": session_hash}))
            async with self.clients.session(client, session_hash).answers:
                if not self.num_waiting(session_hash):
                    raise Refused(404, "this session has no query that waits for an answer")
                await self._in_session(client, session_hash, scope, receive, send)
        elif asked.path in GRADIO_ROUTES or asked.path.startswith(("/assets/", "/static/")):
            await self.app(scope | for_gradio(asked), receive, send)
        else:
            await self.app(scope, receive, send)  # the page's own routes, in server.py

    async def _join(
        self, asked: Asked, scope: Scope, client_key: str, receive: Receive, send: Send
    ) -> None:
        event, uploads = self.events.read(await read_json(asked, receive, EVENT_BYTES))
        client = self.clients.client(client_key)
        for reference in uploads:
            self.clients.upload(client, reference)
        if sum(map(self.num_waiting, self.clients.sessions_of(client))) >= MAX_WAITING_OF_CLIENT:
            raise Refused(
                429,
                f"{MAX_WAITING_OF_CLIENT} of your queries are still waiting: try again when one is"
                " answered",
                {"Retry-After": "2"},
            )
        self.clients.session(client, event["session_hash"])
        scope, receive = with_json(scope | for_gradio(asked), event, receive)
        await self._in_session(client, event["session_hash"], scope, receive, send)

    async def _in_session(
        self, client: Client, session_hash: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Call Gradio; forget the session when its last stream has ended and no event waits."""
        session = self.clients.session(client, session_hash)
        session.open += 1
        try:
            await self.app(scope, receive, send)
        finally:
            session.open -= 1
            is_done = not session.open and not self.num_waiting(session_hash)
            if is_done and session_hash in self.clients.sessions:
                self.clients.drop_session(session_hash)

    async def _login(self, asked: Asked, cookie_name: str, receive: Receive, send: Send) -> None:
        url = f"./{link_of(asked)}"
        if self.password is None:
            return await RedirectResponse(url, 303)(asked.scope, receive, send)
        given = asked.query.get("token")
        if asked.path == "/login":
            body = await read_body(asked, receive, LOGIN_BYTES)
            given = parse_qs(body.decode("utf-8", "replace")).get("password", [""])[0]
        if self.password.is_right(given, asked.address):
            cookie = cookie_text(cookie_name, self.clients.new_cookie(), asked.scope["scheme"])
            answer = HTMLResponse(AGAIN.format(url=escape(url)), headers={"Set-Cookie": cookie})
        else:
            line = "This is not the password."
            answer = HTMLResponse(login_page(link_of(asked), line), 401)
        await answer(asked.scope, receive, send)

    def _has_token(self, asked: Asked) -> bool:
        """Return True if a program sent the password; False without any. Raises Refused."""
        kind, _, token = asked.headers.get("authorization", "").partition(" ")
        if asked.path not in PROGRAM_ROUTES or kind.lower() != "bearer":
            return False
        token = token.strip().encode("latin-1").decode("utf-8", "replace")
        if not self.password.is_right(token, asked.address):
            raise Refused(401, "this is not the token", {"WWW-Authenticate": "Bearer"})
        return True


# --- heads of requests ---


def read_head(scope: Scope) -> Asked:
    """Read headers and query of a request. Raises Refused."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key in headers and key in ("host", "origin", "content-length", "content-type", "range"):
            raise Refused(400, f"the header {key} is given twice")
        headers[key] = f"{headers[key]}; {text}" if key in headers else text
    if "content-length" in headers and "transfer-encoding" in headers:
        # a server in front of this one might read another length
        raise Refused(400, "a body has a Content-Length or a Transfer-Encoding, not both")
    try:
        query = parse_qs(
            scope["query_string"].decode("latin-1"),
            keep_blank_values=True,
            max_num_fields=MAX_FIELDS,
        )
    except ValueError:
        raise Refused(400, "the query string is too long") from None
    return Asked(scope, headers, {name: values[0] for name, values in query.items()})


def link_of(asked: Asked) -> str:
    """Return the link to a query that opens the page: its fields with ? before, or ""."""
    fields = {name: value for name, value in asked.query.items() if is_link_field(name)}
    return f"?{urlencode(fields)}" if fields else ""


def check_route(asked: Asked) -> None:
    path = asked.path
    if path in ROUTES:
        methods = ROUTES[path]
    elif path.startswith(PREFIXES) and (path.startswith(FILES) or STATIC.fullmatch(path)):
        methods = {"GET"}
    else:
        raise Refused(404, "not found")
    if asked.method not in methods:
        allowed = {"Allow": ", ".join(sorted(methods))}
        raise Refused(405, f"only {' and '.join(sorted(methods))} can be used here", allowed)


def check_origin(asked: Asked) -> None:
    """Refuse requests from pages of other origins, which include other ports of this machine.

    Links to the page are allowed.
    """
    origin, site = asked.headers.get("origin"), asked.headers.get("sec-fetch-site")
    own = f"{asked.scope['scheme']}://{asked.headers['host']}".lower()
    if origin is not None and plain_origin(origin) != plain_origin(own):
        raise Refused(403, "a page of another origin cannot do this")
    is_opened = asked.path == "/" and asked.headers.get("sec-fetch-mode") == "navigate"
    if site not in (None, "same-origin", "none") and not is_opened:
        raise Refused(403, "a page of another origin cannot do this")


def plain_origin(origin: str) -> tuple[str, str, int | None] | None:
    """Return scheme, host name and port; None for an invalid origin, such as `null`."""
    try:
        parts = urlsplit(origin.lower())
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname else None


def host_name(host: str) -> str | None:
    """Return the name in a Host header, without port and brackets; None if it is invalid."""
    if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+|::1)(:\d{1,5})?", host):
        return None
    if host == "::1":
        return host
    try:
        parts = urlsplit(f"//{host}")
        if host.startswith("["):
            IPv6Address(parts.hostname)  # Python 3.10's urlsplit takes any text in brackets
        return parts.hostname if parts.port != 0 else None  # a port beyond 65535 is a ValueError
    except ValueError:
        return None


def is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def read_cookie(header: str, name: str) -> str:
    try:
        cookie = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return cookie.value if cookie else ""


def cookie_text(name: str, value: str, scheme: str) -> str:
    secure = "; Secure" if scheme == "https" else ""
    return f"{name}={value}; Path=/; HttpOnly; SameSite=Strict{secure}"


def for_gradio(asked: Asked, query: str = "") -> Scope:
    """Return `query` and the headers that Gradio may see: others could change its answer."""
    headers = [pair for pair in asked.scope["headers"] if pair[0].lower() in GRADIO_HEADERS]
    return {"headers": headers, "query_string": query.encode()}


# --- bodies ---


async def read_json(asked: Asked, receive: Receive, limit: int) -> bytes:
    """Read a body of the type application/json, which forms of other sites cannot send.

    Raises Refused.
    """
    content_type = asked.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise Refused(415, "the body must have the type application/json")
    return await read_body(asked, receive, limit)


def with_json(scope: Scope, content: Any, receive: Receive) -> tuple[Scope, Receive]:
    """Return a request with `content` as its body in place of its own."""
    body = json.dumps(content).encode()
    headers = [pair for pair in scope["headers"] if pair[0].lower() not in BODY_HEADERS]
    headers.append((b"content-length", str(len(body)).encode()))
    return scope | {"headers": headers}, replay(body, receive)


async def read_body(asked: Asked, receive: Receive, limit: int) -> bytes:
    """Read a body of at most `limit` bytes.

    Raises Refused for a longer one, before reading it if Content-Length tells.
    """
    check_length(asked, limit)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the request was interrupted")
        body += message.get("body", b"")
        if len(body) > limit:
            raise Refused(413, f"at most {limit:,} bytes can be sent here")
        if not message.get("more_body"):
            return bytes(body)


def check_length(asked: Asked, limit: int) -> None:
    length = asked.headers.get("content-length", "0")
    if not re.fullmatch(r"[0-9]{1,18}", length):
        raise Refused(400, "Content-Length is not a number")
    if int(length) > limit:
        raise Refused(413, f"at most {limit:,} bytes can be sent here")


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that delivers `body` first."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> dict:
        return messages.pop() if messages else await receive()

    return receive_again
