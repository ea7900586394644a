"""What the page asks for over HTTP: itself, sounds and pictures of indexed files, and nothing else from the disk.

Every file is named by its place in the index and looked up there: a path that leads elsewhere is not found, however it is written.
"""

import re

import gradio as gr
from fastapi import FastAPI, HTTPException, Request
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse

from retrieval.app.audio import WaveFile, draw_spectrogram, read_excerpt
from retrieval.app.page import HEAD, MAX_EXCERPT_SECONDS, MAX_UPLOAD_MIB, STYLE, THEME, make_page
from retrieval.app.results import located
from retrieval.errors import UserError
from retrieval.search import AudioIndex

# What one answer holds of a recording. A browser asks on as it plays; a long answer that it leaves standing would keep one of its six connections.
BYTES_AT_ONCE = 2**19
FORM_BYTES = 2**20  # what an upload's form may take beside the file


def make_server(index: AudioIndex, local_only: bool) -> FastAPI:
    """The page of an open index with its sounds and pictures. local_only: refuse names that are not this machine's own.

    Else a foreign page could let its own name point to this machine, and read the answers (DNS rebinding).
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if local_only:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", "::1"])
    app.add_middleware(RefuseLargeUploads, max_bytes=MAX_UPLOAD_MIB * 2**20 + FORM_BYTES)

    @app.exception_handler(UserError)
    def not_found(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=404)

    @app.api_route("/recording", methods=["GET", "HEAD"])
    def recording(request: Request, file: str) -> Response:
        return answer_range(WaveFile(located(file, index)), request.headers.get("range", ""))

    @app.get("/picture")
    def picture(file: str, start: float, end: float) -> Response:
        if not 0 <= start < end <= start + MAX_EXCERPT_SECONDS:
            raise HTTPException(400, f"start and end must be seconds, at most {MAX_EXCERPT_SECONDS:.0f} apart")
        samples, rate = read_excerpt(located(file, index), start, end)
        return Response(draw_spectrogram(samples, rate), media_type="image/png")

    return gr.mount_gradio_app(
        app,
        make_page(index),
        path="/",
        max_file_size=MAX_UPLOAD_MIB * 2**20,
        blocked_paths=[str(index.folder)],
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        theme=THEME,
        css=STYLE,
        head=HEAD,
    )


def answer_range(wave: WaveFile, header: str) -> Response:
    """A part of a WAV by a `Range` header of one range (RFC 9110, 14.2); all of it, piece by piece, without one."""
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "no-cache"}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if wanted is None or wanted.groups() == ("", ""):
        pieces = (wave.read(first, min(first + BYTES_AT_ONCE, wave.size)) for first in range(0, wave.size, BYTES_AT_ONCE))
        return StreamingResponse(pieces, media_type="audio/wav", headers=headers | {"Content-Length": str(wave.size)})
    first, last = wanted.groups()
    if not first:
        first, last = max(wave.size - int(last), 0), wave.size - 1
    first, last = int(first), min(int(last or wave.size - 1), wave.size - 1)
    if not first <= last:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{wave.size}"})
    last = min(last, first + BYTES_AT_ONCE - 1)
    headers["Content-Range"] = f"bytes {first}-{last}/{wave.size}"
    return Response(wave.read(first, last + 1), status_code=206, media_type="audio/wav", headers=headers)


class RefuseLargeUploads:
    """ASGI middleware: a request that announces more than `max_bytes` is answered 413 before any of it is received.

    One that announces nothing is cut off by Gradio when the file has reached the limit.
    """

    def __init__(self, app, max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope, receive, send) -> None:
        length = dict(scope.get("headers", ())).get(b"content-length", b"0")
        if scope["type"] == "http" and length.isdigit() and int(length) > self.max_bytes:
            answer = JSONResponse({"detail": f"the file is too large: at most {MAX_UPLOAD_MIB} MiB can be uploaded"}, 413, {"Connection": "close"})
            await answer(scope, receive, send)
        else:
            await self.app(scope, receive, send)
