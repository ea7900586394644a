"""Server of the page: the page itself, sounds and spectrograms of indexed files, and uploads.

Files are looked up by their name in the index, so no path can lead to another file. Requests pass
gate.py first.
"""

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from retrieval.base.errors import UserError
from retrieval.moments.export import Stretch, clip_name
from retrieval.moments.spans import Moment
from retrieval.search import AudioIndex
from retrieval.search.page.api import make_api
from retrieval.search.page.audio import (
    Overviews,
    WaveFile,
    draw_spectrogram,
    read_clip,
    read_excerpt,
)
from retrieval.search.page.clients import MAX_UPLOAD_MIB, MIB, Client, Clients, Refused
from retrieval.search.page.events import Events
from retrieval.search.page.gate import Gate
from retrieval.search.page.page import HEAD, STYLE, THEME, longest_excerpt, make_page
from retrieval.search.page.password import Password
from retrieval.search.page.results import located, whole_view
from retrieval.search.page.turns import Turns

# Largest part of a recording in one answer. The browser requests more while it plays: an unfinished
# long answer would block one of its six connections.
BYTES_AT_ONCE = 2**19
ONE_RANGE = r"bytes=([0-9]{0,18})-([0-9]{0,18})"
RANGES = {"Accept-Ranges": "bytes", "Cache-Control": "no-cache"}
FORM_BYTES = 2**20  # of an upload's form, in addition to the file
SECONDS_OF_AN_UPLOAD = 1800
SECONDS_OF_A_PIECE = 60  # longest wait for the next bytes of an upload
SECONDS_BETWEEN_TRIES = 1.0  # to get a turn at the decoders
SECONDS_BETWEEN_SIGNS = 15  # between signs of life of an open page

logger = logging.getLogger(__name__)


def make_server(
    index: AudioIndex, uploads: Path, names: frozenset[str] | None, password: str | None = None
) -> Gate:
    """Return the ASGI application: the page of an open index, with its sounds and pictures.

    Args:
        index: The index to search.
        uploads: Folder for the files that clients upload.
        names: Host names to answer to, see Gate.
        password: Required to open the page; None: no password.
    """
    clients = Clients(uploads, lambda session_hash: forget(page, session_hash))
    page = make_page(index, clients)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_routes(app, index, clients)
    app.mount("/api", make_api(index))
    switches = ("run_history", "show_error", "ssr_mode", "pwa", "mcp_server", "enable_monitoring")
    look = {"theme": THEME, "css": STYLE, "head": HEAD, "footer_links": []}
    gr.mount_gradio_app(app, page, path="/", **look, **dict.fromkeys(switches, False))
    events = Events(page, index)
    checked = Password(password) if password else None
    return Gate(app, events, clients, names, checked, partial(num_waiting, page))


def num_waiting(page: gr.Blocks, session_hash: str) -> int:
    """Count a session's events that are in Gradio's queue or whose answer was not fetched yet.

    Events whose stream was broken off are not counted, even while they run.
    """
    events = page._queue.event_ids_to_events
    waiting = page._queue.pending_event_ids_session.get(session_hash, ())
    return sum(event_id not in events or events[event_id].alive for event_id in waiting)


def forget(page: gr.Blocks, session_hash: str) -> None:
    """Delete the state that Gradio keeps of a session: last answer, configuration, messages."""
    queue, states = page._queue, page.state_holder
    for job in filter(None, queue.active_jobs):
        for event in job:
            event.alive = event.alive and event.session_hash != session_hash
    queue.pending_messages_per_session.pop(session_hash, None)
    for event_id in queue.pending_event_ids_session.pop(session_hash, ()):
        queue.event_ids_to_events.pop(event_id, None)
    states.session_data.pop(session_hash, None)
    states.time_last_used.pop(session_hash, None)


def add_routes(app: FastAPI, index: AudioIndex, clients: Clients) -> None:
    arriving: dict[tuple[str, str], list[int]] = {}  # client and upload_id -> bytes received

    @app.exception_handler(UserError)
    def not_found(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=404)

    @app.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"detail": error.detail}, error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    def wrong_argument(request: Request, error: RequestValidationError) -> JSONResponse:
        names = sorted({str(part["loc"][-1]) for part in error.errors()})
        return JSONResponse({"detail": f"wrong or missing: {', '.join(names)}"}, 422)

    overviews = Overviews()
    turns = Turns(max(1, (os.cpu_count() or 1) // 2))  # the other half of the cores answers queries

    def find(file: str) -> tuple[Path, float]:
        """Return path and length (s) of a recording. Raises UserError."""
        return located(file, index), index.file(file).seconds

    @app.api_route("/recording", methods=["GET", "HEAD"])
    async def recording(request: Request, file: str) -> Response:
        path, seconds = await asyncio.to_thread(find, file)

        async def decode(function: Callable[..., Any], *arguments: Any) -> Any:
            async with turns.turn(request.state.client_key, request.is_disconnected):
                return await asyncio.to_thread(function, *arguments)

        wave = await decode(WaveFile, path, seconds)
        if request.method == "HEAD":
            return Response(
                media_type="audio/wav", headers=RANGES | {"Content-Length": str(wave.size)}
            )
        return await answer_range(
            wave, request.headers.get("range", ""), decode, request.is_disconnected
        )

    @app.get("/download")
    async def download(request: Request, file: str) -> Response:
        """Serve a recording as it is, to be saved."""
        path, _ = await asyncio.to_thread(find, file)
        name = file.rpartition("/")[2]
        if not re.fullmatch(ONE_RANGE, request.headers.get("range", "bytes=0-").strip().lower()):
            raise Refused(416, "only one range of bytes can be requested")
        if not os.access(path, os.R_OK):
            raise Refused(404, f"{name} cannot be read: no permission")
        return FileResponse(path, media_type="application/octet-stream", filename=name)

    async def find_part(file: str, start: float, end: float) -> tuple[Path, float]:
        """Return what `find` does. Raises Refused if there is no part `start` to `end` (s)."""
        path, seconds = await asyncio.to_thread(find, file)
        if not 0 <= start < end <= start + longest_excerpt(index):
            raise Refused(
                400, f"start and end must be seconds, at most {longest_excerpt(index):.0f} apart"
            )
        if start >= seconds:
            raise Refused(416, "start lies beyond the end of the recording")
        return path, seconds

    @app.get("/clip")
    async def clip(request: Request, file: str, start: float, end: float) -> Response:
        """Serve a stretch of a recording, to be saved."""
        path, seconds = await find_part(file, start, end)
        end = min(end, seconds)
        async with turns.turn(request.state.client_key, request.is_disconnected):
            content = await asyncio.to_thread(read_clip, path, seconds, start, end)
        name = clip_name(Stretch("", file, seconds, 1, Moment(start, end, 0.0)))
        saved = {"Content-Disposition": f"attachment; filename*=utf-8''{quote(name)}"}
        return Response(content, media_type="audio/wav", headers=saved)

    @app.get("/picture")
    async def picture(request: Request, file: str, start: float, end: float) -> Response:
        path, seconds = await find_part(file, start, end)
        end = min(end, seconds + 1)
        async with turns.turn(request.state.client_key, request.is_disconnected):
            content = await asyncio.to_thread(
                lambda: draw_spectrogram(*read_excerpt(path, start, end))
            )
        return Response(content, media_type="image/png")

    @app.get("/overview")
    async def overview(request: Request, file: str) -> Response:
        """Serve the picture of a whole recording."""
        path, seconds = await asyncio.to_thread(find, file)
        async with turns.turn(request.state.client_key, request.is_disconnected):
            content = await asyncio.to_thread(overviews, path, seconds)
        return Response(content, media_type="image/png")

    @app.get("/whole")
    async def whole(request: Request, file: str, query: str = "") -> Response:
        """Serve the view of a whole recording, with the curve of a sentence if there is one."""
        _, seconds = await asyncio.to_thread(find, file)
        async with turns.turn(request.state.client_key, request.is_disconnected):
            found = await asyncio.to_thread(index.locate, query, file) if query else None
        return Response(whole_view(file, seconds, found), media_type="text/html")

    @app.get("/presence")
    async def presence(request: Request) -> Response:
        """Keep a connection with each open page: when the last is closed, uploads are removed."""
        client = clients.client(request.state.client_key)

        async def signs() -> AsyncIterator[str]:
            client.open_pages += 1
            try:
                while True:
                    yield ": here\n\n"
                    await asyncio.sleep(SECONDS_BETWEEN_SIGNS)
                    client.last_seen = time.monotonic()
            finally:
                client.open_pages -= 1

        return StreamingResponse(
            signs(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    @app.post("/gradio_api/upload")
    async def upload(request: Request, upload_id: str = "") -> Response:
        client = clients.client(request.state.client_key)
        length = int(request.headers.get("content-length") or MAX_UPLOAD_MIB * MIB)
        if length > MAX_UPLOAD_MIB * MIB + FORM_BYTES:
            raise too_large()
        clients.reserve(client, length)
        received = arriving[client.key, upload_id] = [0]
        try:
            reference = await asyncio.wait_for(
                receive_upload(request, clients, client, received), SECONDS_OF_AN_UPLOAD
            )
            return JSONResponse([reference])
        except (asyncio.TimeoutError, ClientDisconnect):
            raise Refused(
                408, "the upload took too long or was interrupted", {"Connection": "close"}
            ) from None
        finally:
            client.receiving = 0
            del arriving[client.key, upload_id]

    @app.get("/gradio_api/upload_progress")
    async def upload_progress(request: Request, upload_id: str) -> Response:
        key = request.state.client_key, upload_id

        async def steps() -> AsyncIterator[str]:
            shown = 0
            while key in arriving:
                received = arriving[key][0]
                step = {"msg": "update", "orig_name": "", "chunk_size": received - shown}
                yield f"data: {json.dumps(step)}\n\n"
                shown = received
                await asyncio.sleep(0.2)
            yield f"data: {json.dumps({'msg': 'done'})}\n\n"

        return StreamingResponse(
            steps(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    @app.get("/gradio_api/file={reference:path}")
    def own_upload(request: Request, reference: str) -> Response:
        """Serve the link next to the name of an upload, to its client only."""
        own = clients.upload(clients.client(request.state.client_key), reference)
        return FileResponse(own.path, media_type="application/octet-stream", filename=own.name)


def too_large() -> Refused:
    detail = f"the file is too large: at most {MAX_UPLOAD_MIB} MiB can be uploaded"
    return Refused(413, detail, {"Connection": "close"})


async def receive_upload(
    request: Request, clients: Clients, client: Client, received: list[int]
) -> str:
    """Receive a form with one file; return the reference of the file. Raises Refused."""
    receive = request.receive

    async def receive_within_limits() -> dict:
        message = await asyncio.wait_for(receive(), SECONDS_OF_A_PIECE)
        received[0] += len(message.get("body", b""))
        if received[0] > MAX_UPLOAD_MIB * MIB + FORM_BYTES:
            raise too_large()
        return message

    try:
        async with Request(request.scope, receive_within_limits).form(
            max_files=1, max_fields=4
        ) as form:
            files = [value for value in form.values() if isinstance(value, UploadFile)]
            if len(files) != 1:
                raise Refused(400, "an upload is a form with one file")
            return await asyncio.to_thread(
                clients.keep, client, files[0].filename or "", files[0].file
            )
    except (HTTPException, MultiPartException):
        raise Refused(400, "an upload is a form with one file") from None
    except OSError:
        logger.exception("an upload could not be written")
        raise Refused(507, "there is no room for uploads on the disk") from None


async def answer_range(
    wave: WaveFile,
    header: str,
    decode: Callable[..., Awaitable[bytes]],
    has_gone: Callable[[], Awaitable[bool]],
) -> Response:
    """Answer with the part of a WAV that a `Range` header names (RFC 9110, 14.2), or all of it.

    Args:
        wave: The recording.
        header: The `Range` header, or "".
        decode: Runs a function with its arguments in another thread, at the client's turn.
        has_gone: Tells whether the client has disconnected.
    """
    if not header.strip().lower().startswith("bytes="):

        async def piece(first: int, stop: int) -> bytes:
            """Decode a part. Wait for busy decoders: after the status it is too late to refuse."""
            while not await has_gone():
                try:
                    return await decode(wave.read, first, stop)
                except UserError:
                    break  # damaged here: silence, to match Content-Length
                except Refused:  # no turn at the decoders, for now
                    await asyncio.sleep(SECONDS_BETWEEN_TRIES)
            return bytes(stop - first)

        async def pieces() -> AsyncIterator[bytes]:
            for first in range(0, wave.size, BYTES_AT_ONCE):
                yield await piece(first, min(first + BYTES_AT_ONCE, wave.size))

        return StreamingResponse(
            pieces(), media_type="audio/wav", headers=RANGES | {"Content-Length": str(wave.size)}
        )
    span = range_of(header, wave.size)
    if span is None:
        return Response(status_code=416, headers=RANGES | {"Content-Range": f"bytes */{wave.size}"})
    first, last = span[0], min(span[1], span[0] + BYTES_AT_ONCE - 1)
    headers = RANGES | {"Content-Range": f"bytes {first}-{last}/{wave.size}"}
    content = await decode(wave.read, first, last + 1)
    return Response(content, status_code=206, media_type="audio/wav", headers=headers)


def range_of(header: str, size: int) -> tuple[int, int] | None:
    """Return first and last byte of a `Range` header with one range; None if it is invalid."""
    wanted = re.fullmatch(ONE_RANGE, header.strip().lower())
    if wanted is None or wanted.groups() == ("", ""):
        return None
    first, last = wanted.groups()
    if not first:
        first, last = max(size - int(last), 0), size - 1
    first, last = int(first), min(int(last or size - 1), size - 1)
    return (first, last) if first <= last else None
