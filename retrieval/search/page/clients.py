"""Track the clients of the page, their sessions and uploads, within limits.

A cookie identifies a browser. A program without cookies is identified by its address and cannot
upload.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from retrieval.base.errors import UserError

MIB = 2**20
MAX_UPLOAD_MIB = 200
MAX_UPLOADS = 8  # per client; a further one replaces the oldest
MAX_CLIENT_BYTES = 400 * MIB
MAX_TOTAL_BYTES = 2048 * MIB  # of all clients together
MAX_SESSIONS = 32  # per client: open tabs
MAX_CLIENTS = 1000
SECONDS_AWAY = 60.0  # a client without an open page or a request for so long has left
SECONDS_UNUSED = 3600.0  # an upload unused for so long is removed, even if the page is open


class Refused(Exception):
    """A refused request: HTTP status and a one-line reason, which names no path of this machine."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None):
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


@dataclass
class Upload:
    """An uploaded file; `name` is the client's name for it, made safe."""

    path: Path
    name: str
    size: int  # bytes
    last_used: float


@dataclass
class Session:
    """An open page, known by Gradio's session_hash.

    Attributes:
        owner: Key of its client.
        last_used: Time of its last request (s).
        open: Number of its event streams and requests in progress.
        answers: Held by one stream at a time; Gradio fails if the first of two is broken off.
    """

    owner: str
    last_used: float
    open: int = 0
    answers: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class Client:
    """A browser, known by the name in its cookie, or a program, known by its address."""

    key: str
    last_seen: float
    open_pages: int = 0
    receiving: int = 0  # bytes of uploads in progress
    uploads: dict[str, Upload] = field(default_factory=dict)  # oldest first


class Clients:
    """All clients of a page.

    Args:
        folder: Holds the uploads, each in its own subfolder.
        forget_session: Called with the session_hash of a closed page.
    """

    def __init__(self, folder: Path, forget_session: Callable[[str], None]):
        self.folder, self.forget_session = folder, forget_session
        self.sessions: dict[str, Session] = {}
        self._clients: dict[str, Client] = {}
        self._secret = secrets.token_bytes(32)

    # --- cookies ---

    def new_cookie(self, before: str = "") -> str:
        """Return a signed cookie for a new client.

        A cookie `before` of an ended server is always replaced by the same new cookie: a page that
        outlives its server sends several requests at once, and all must belong to one client.
        """
        name = self._signature(f"after {before}")[:32] if before else secrets.token_urlsafe(16)
        return f"{name}.{self._signature(name)}"

    def name_in(self, cookie: str) -> str | None:
        """Return the client's name; None if this process did not sign the cookie."""
        name, _, signature = cookie.partition(".")
        is_own = hmac.compare_digest(signature.encode(), self._signature(name).encode())
        return name if is_own else None

    def _signature(self, name: str) -> str:
        return hmac.new(self._secret, name.encode(), hashlib.sha256).hexdigest()

    # --- clients ---

    def client(self, key: str) -> Client:
        """Return the client; create it if it is new. Raises Refused if there are too many."""
        now = time.monotonic()
        if key not in self._clients:
            if len(self._clients) >= MAX_CLIENTS:
                self.sweep()
            if len(self._clients) >= MAX_CLIENTS:
                raise Refused(
                    503,
                    "too many people use this page: try again in a minute",
                    {"Retry-After": "60"},
                )
            self._clients[key] = Client(key, now)
        self._clients[key].last_seen = now
        return self._clients[key]

    def sweep(self) -> None:
        """Remove uploads and sessions of clients that have left, and unused uploads."""
        now = time.monotonic()
        for session_hash, session in list(self.sessions.items()):
            if not session.open and now - session.last_used > SECONDS_AWAY:
                self.drop_session(session_hash)
        for client in list(self._clients.values()):
            is_here = client.open_pages or client.receiving
            has_left = not is_here and now - client.last_seen > SECONDS_AWAY
            for name, upload in list(client.uploads.items()):
                if has_left or now - upload.last_used > SECONDS_UNUSED:
                    self._remove(client, name)
            if has_left and not self.sessions_of(client):
                del self._clients[client.key]

    # --- sessions ---

    def sessions_of(self, client: Client) -> list[str]:
        return [name for name, session in self.sessions.items() if session.owner == client.key]

    def session(self, client: Client, session_hash: str) -> Session:
        """Return the client's session; create it if it is new.

        Raises:
            Refused: The session belongs to another client, or the client has too many.
        """
        if session_hash not in self.sessions:
            if len(self.sessions_of(client)) >= MAX_SESSIONS:
                raise Refused(
                    429,
                    f"the page is open more than {MAX_SESSIONS} times: close some",
                    {"Retry-After": "60"},
                )
            self.sessions[session_hash] = Session(client.key, 0.0)
        session = self.sessions[session_hash]
        if session.owner != client.key:
            raise Refused(403, "this session belongs to another client: reload the page")
        session.last_used = time.monotonic()
        return session

    def drop_session(self, session_hash: str) -> None:
        del self.sessions[session_hash]
        self.forget_session(session_hash)

    # --- uploads ---

    def reserve(self, client: Client, num_bytes: int) -> None:
        """Make room for `num_bytes` by removing the client's oldest uploads.

        Raises Refused if there is still no room.
        """
        if client.receiving:
            raise Refused(
                429, "your last upload is still in progress: wait for it", {"Retry-After": "5"}
            )
        while client.uploads and (
            len(client.uploads) >= MAX_UPLOADS or self._bytes(client) + num_bytes > MAX_CLIENT_BYTES
        ):
            self._remove(client, next(iter(client.uploads)))
        if sum(map(self._bytes, self._clients.values())) + num_bytes > MAX_TOTAL_BYTES:
            raise Refused(
                503, "there is no room for more uploads: try again later", {"Retry-After": "300"}
            )
        client.receiving = num_bytes

    def keep(self, client: Client, file_name: str, source: BinaryIO) -> str:
        """Write an upload to disk; return its reference for the page's events. Raises OSError."""
        token, name = secrets.token_hex(16), safe_name(file_name)
        path = self.folder / token / name
        try:
            path.parent.mkdir(mode=0o700, parents=True)
            with path.open("xb") as target:
                shutil.copyfileobj(source, target, MIB)
        except OSError:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise
        upload = Upload(path, name, path.stat().st_size, time.monotonic())
        client.uploads[f"{token}/{name}"] = upload
        return f"{token}/{name}"

    def upload(self, client: Client, reference: str) -> Upload:
        """Return an upload of this client, without access to the disk. Raises Refused."""
        if reference not in client.uploads:
            raise Refused(
                403, "this upload is not yours, or was removed: upload the recording again"
            )
        client.uploads[reference].last_used = time.monotonic()
        return client.uploads[reference]

    def uploaded(self, reference: str) -> Upload:
        """Return the upload of an accepted event. Raises UserError if it was removed meanwhile."""
        for client in list(self._clients.values()):
            if reference in client.uploads:
                return client.uploads[reference]
        raise UserError("the uploaded recording was removed: upload it again")

    def _bytes(self, client: Client) -> int:
        return client.receiving + sum(upload.size for upload in client.uploads.values())

    def _remove(self, client: Client, reference: str) -> None:
        shutil.rmtree(client.uploads.pop(reference).path.parent, ignore_errors=True)


def safe_name(name: str) -> str:
    """Return a file name without folders and control characters, short enough for every disk."""
    last = re.split(r"[/\\]", name)[-1]
    plain = "".join(
        character
        for character in last
        if character.isprintable() and not "\ud800" <= character <= "\udfff"
    )
    stem, dot, ending = plain.rpartition(".")
    plain = f"{stem[:40]}{dot}{ending[:10]}" if stem else plain[:40]
    return plain.strip(" .") or "recording"
