"""One question, one answer: any server that speaks OpenAI's chat completions (Ollama, vLLM,
llama.cpp, OpenAI), with patience.

What passes by itself is asked again after a growing pause, or after as long as the server says
(Retry-After, seconds or a date): 429 and other temporary codes, broken connections, cut-off
answers, time-outs. urllib3 does this; a PoolManager may be used by many threads. No server can hold
a question for ever or fill the memory: an answer ends with the time-out and is read up to
MAX_BYTES.
"""

import contextlib
import io
import json
import os
import re
import socket
import threading

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    MaxRetryError,
    NewConnectionError,
    SSLError,
)

from retrieval.base.errors import UserError

# Not OPENAI_API_KEY: whoever has that set does not want it sent to every server that this command
# is pointed at.
KEY_VARIABLE = "CAPTIONS_API_KEY"
BACKOFF = 1.0  # s; the pauses are 0, 2, 4, 8, 16 times this
MAX_RETRY_AFTER = 300  # s
# read: time-outs of answers, and connections that broke
RETRIES = {"total": 5, "connect": 3, "read": 2}
TEMPORARY_STATUS = (408, 409, 425, 429, 500, 502, 503, 504)
# may be this one question's fault; other codes are the same for all
REFUSED_QUESTION = (400, 413, 422)
MAX_BYTES = 1 << 20  # of an answer, unpacked; one with 30,000 tokens of thought has some 150,000


class ServerFailure(Exception):
    """The server did not answer this question, however often it was asked."""


class BadAnswer(Exception):
    """The answer is no chat completion, or an unfinished or empty one."""


class _BoundedAnswer:
    """Mixin of urllib3's connections: an answer is read at once, for no longer than the time-out
    and no further than one byte beyond MAX_BYTES.

    urllib3's time-out is for each read alone: a server that sends a byte now and then, be it of a
    header or of a refusal, is never late.
    """

    def getresponse(self) -> urllib3.HTTPResponse:
        late, sock = threading.Event(), self.sock

        def end() -> None:
            late.set()
            with contextlib.suppress(OSError):  # it is closed already
                sock.shutdown(socket.SHUT_RDWR)  # ends the read under way

        timer = threading.Timer(self.timeout, end)
        timer.daemon = True  # Ctrl-C does not wait for it
        timer.start()
        try:
            response = super().getresponse()
            body = response.read(MAX_BYTES + 1)
        finally:
            timer.cancel()
            # whatever it looks like: a broken connection, or an answer that ended
            if late.is_set():
                raise TimeoutError
        if len(body) > MAX_BYTES:
            self.close()  # the rest is not wanted
        return urllib3.HTTPResponse(
            io.BytesIO(body),
            response.headers,
            response.status,
            reason=response.reason,
            decode_content=False,
        )


class _HTTPConnection(_BoundedAnswer, urllib3.connection.HTTPConnection):
    pass


class _HTTPSConnection(_BoundedAnswer, urllib3.connection.HTTPSConnection):
    pass


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class ChatEndpoint:
    """`url` up to `/v1`; `timeout` in seconds, for one answer. The key is read from the
    environment. Raises UserError for a wrong URL or key.
    """

    def __init__(
        self, url: str, model: str, temperature: float, timeout: float, num_parallel: int
    ) -> None:
        try:
            parsed = urllib3.util.parse_url(url)
        except LocationParseError:
            parsed = None
        if (
            not parsed
            or parsed.scheme not in ("http", "https")
            or not parsed.host
            or parsed.auth
            or parsed.query
        ):
            # A URL may hold a password: it is not repeated here.
            raise UserError(
                "--endpoint: expected a URL such as http://localhost:11434/v1, without user,"
                " password or query"
            )
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"{KEY_VARIABLE} holds characters that no key has; set it again")
        self.key = key
        self.url = f"{url.rstrip('/')}/chat/completions"
        self.settings = {"model": model, "temperature": temperature, "stream": False}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        retries = urllib3.Retry(
            **RETRIES,
            allowed_methods=None,
            status_forcelist=TEMPORARY_STATUS,
            backoff_factor=BACKOFF,
            backoff_jitter=BACKOFF / 2,
            retry_after_max=MAX_RETRY_AFTER,
            raise_on_status=False,
        )
        limits = urllib3.Timeout(connect=10, read=timeout)
        self.pool = urllib3.PoolManager(
            maxsize=num_parallel, headers=headers, retries=retries, timeout=limits
        )
        self.pool.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def ask(self, prompt: str, seed: int) -> str:
        """Text of the answer. Raises ServerFailure, BadAnswer, and UserError where no other
        question would fare better.
        """
        question = self.settings | {"seed": seed, "messages": [{"role": "user", "content": prompt}]}
        try:
            # Not preloaded, for getresponse to stop at MAX_BYTES; it leaves nothing on the
            # connection, which goes back at once.
            response = self.pool.request(
                "POST",
                self.url,
                json=question,
                redirect=False,
                preload_content=False,
                release_conn=True,
            )
        except HTTPError as error:
            reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
            text = self._one_line(re.sub(r"^\w+\(.*?\): ", "", str(reason)))
            if isinstance(reason, (NewConnectionError, ConnectTimeoutError, SSLError)):
                remedy = (
                    "start the server (such as `ollama serve`) or check --endpoint; the captions so"
                    " far are kept"
                )
                raise UserError(f"{self.url} cannot be reached ({text}): {remedy}") from None
            raise ServerFailure(f"{self.url}: {text}") from None
        if response.status != 200:
            self._refused(response)
        return self._text_of(response)

    def _refused(self, response: urllib3.BaseHTTPResponse) -> None:
        try:
            error = json.loads(response.data)["error"]
            detail = error["message"] if isinstance(error, dict) else error
        except (ValueError, KeyError, TypeError, RecursionError):
            detail = None
        if not isinstance(detail, str):
            detail = response.data.decode(errors="replace")
        message = (
            f"{self.url}: the server answers {response.status} {response.reason or ''}".rstrip()
            + f": {self._one_line(detail)}"
        )
        if response.status in (*TEMPORARY_STATUS, *REFUSED_QUESTION):
            raise ServerFailure(message)
        if response.status in (401, 403):
            raise UserError(
                f"{message}; the key belongs in the environment variable {KEY_VARIABLE}"
            )
        raise UserError(
            f"{message}; check --model {self.settings['model']} and --endpoint, which mostly ends"
            " in /v1"
        )

    def _text_of(self, response: urllib3.BaseHTTPResponse) -> str:
        if len(response.data) > MAX_BYTES:
            raise BadAnswer(f"{self.url} answers with more than {MAX_BYTES} bytes")
        shown = self._one_line(response.data.decode(errors="replace"))
        try:
            content = json.loads(response.data)
        except (ValueError, RecursionError):  # brackets a thousand deep
            kind = response.headers.get("Content-Type", "no content type")
            raise BadAnswer(
                f"{self.url} answers with something else than JSON ({kind}): {shown}"
            ) from None
        try:
            choice = content["choices"][0]
            text, reason = choice["message"]["content"], choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise BadAnswer(
                f"{self.url} answers with something else than a chat completion: {shown}"
            ) from None
        if reason == "length":
            raise BadAnswer("the answer was cut off at the server's limit of tokens")
        # of parts, as OpenAI allows; those of other types hold thoughts or refusals
        if isinstance(text, list):
            parts = [
                part.get("text")
                for part in text
                if isinstance(part, dict) and part.get("type") == "text"
            ]
            text = "".join(part for part in parts if isinstance(part, str))
        if not isinstance(text, str) or not text.strip():
            raise BadAnswer("the answer is empty")
        return text

    def _one_line(self, text: str) -> str:
        """The beginning of what the server said; some servers repeat the key in what they say."""
        text = " ".join(text.encode(errors="replace").decode().split()) or "nothing"
        if self.key:
            text = text.replace(self.key, "***")
        return text if len(text) <= 200 else f"{text[:200]}..."
