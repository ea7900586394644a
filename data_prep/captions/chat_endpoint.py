"""Client of a server that speaks OpenAI's chat completions (Ollama, vLLM, llama.cpp, OpenAI).

Temporary failures are asked again after a growing pause, or after the pause that the server names
(Retry-After, in seconds or as a date): 429 and other temporary codes, broken connections, cut-off
answers, time-outs. An answer has a total time-out and at most MAX_BYTES. Many threads may share one
ChatEndpoint.
"""

import json
import os
import re
import time
from typing import Any

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    MaxRetryError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from retrieval.base.errors import UserError

# Not OPENAI_API_KEY: that one must not go to every server that --endpoint names.
KEY_VARIABLE = "CAPTIONS_API_KEY"
BACKOFF = 1.0  # s; the pauses are 0, 2, 4, 8, 16 times this
MAX_RETRY_AFTER = 300  # s
RETRIES = {"total": 5, "connect": 3, "read": 2}  # read: time-outs and broken connections
TEMPORARY_STATUS = (408, 409, 425, 429, 500, 502, 503, 504)
REFUSED_QUESTION = (400, 413, 422)  # another question may be accepted
MAX_BYTES = 1 << 20  # of an unpacked answer; 30,000 tokens of thought have some 150,000
CHUNK_BYTES = 1 << 16


class ServerFailure(Exception):
    """The server did not answer this question, however often it was asked."""


class BadAnswer(Exception):
    """The answer is not a chat completion, or an unfinished or empty one."""


class ChatEndpoint:
    """A server and a model to ask.

    Args:
        url: Address of the server up to `/v1`.
        model: The model's name at the server.
        temperature: Of the sampling.
        timeout: Seconds for one answer, to its last byte.
        num_parallel: Connections to keep.

    Raises:
        UserError: The URL is wrong, or the key in the environment cannot be sent.
    """

    def __init__(
        self, url: str, model: str, temperature: float, timeout: float, num_parallel: int
    ) -> None:
        try:
            parsed = urllib3.util.parse_url(url)
        except LocationParseError:
            parsed = urllib3.util.Url()
        is_address = parsed.scheme in ("http", "https") and parsed.host
        if not is_address or parsed.auth or parsed.query:
            # the URL may hold a password: do not repeat it
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
        self.timeout = timeout
        self.retries = urllib3.Retry(
            **RETRIES,
            allowed_methods=None,
            status_forcelist=TEMPORARY_STATUS,
            backoff_factor=BACKOFF,
            backoff_jitter=BACKOFF / 2,
            retry_after_max=MAX_RETRY_AFTER,
        )
        self.pool = urllib3.PoolManager(
            maxsize=num_parallel,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=urllib3.Timeout(connect=10, read=timeout),
        )

    def ask(self, prompt: str, seed: int) -> str:
        """Return the text of the answer.

        Raises:
            ServerFailure: The server fails at this question.
            BadAnswer: The answer holds no text.
            UserError: The server would fail at every question.
        """
        question = self.settings | {"seed": seed, "messages": [{"role": "user", "content": prompt}]}
        try:
            response, body = self._post(question)
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
            raise self._refusal(response, body)
        return self._text_of(response, body)

    def _post(self, question: dict[str, Any]) -> tuple[urllib3.BaseHTTPResponse, bytes]:
        """Return the answer and its body, after retries of temporary failures.

        urllib3 itself retries before a body is read, so bodies that break off are retried here.
        """
        retries = self.retries
        while True:
            response = None
            try:
                response, body = self._post_once(question)
            except HTTPError as error:
                retries = retries.increment("POST", self.url, error=error)
            else:
                names_pause = "Retry-After" in response.headers
                if not retries.is_retry("POST", response.status, names_pause):
                    return response, body
                try:
                    retries = retries.increment("POST", self.url, response=response)
                except MaxRetryError:
                    return response, body
            retries.sleep(response)

    def _post_once(self, question: dict[str, Any]) -> tuple[urllib3.BaseHTTPResponse, bytes]:
        """Return one answer and its body, cut off one byte beyond MAX_BYTES."""
        deadline = time.monotonic() + self.timeout
        response = self.pool.request(
            "POST",
            self.url,
            json=question,
            redirect=False,
            retries=False,
            preload_content=False,
        )
        body = b""
        try:
            while chunk := response.read1(min(CHUNK_BYTES, MAX_BYTES + 1 - len(body))):
                body += chunk
                if time.monotonic() > deadline:
                    late = f"Read timed out. (read timeout={self.timeout:g})"
                    raise ReadTimeoutError(None, self.url, late)
        except BaseException:
            response.close()
            raise
        if len(body) > MAX_BYTES:
            response.close()  # its connection holds the rest
        return response, body

    def _refusal(self, response: urllib3.BaseHTTPResponse, body: bytes) -> Exception:
        try:
            error = json.loads(body)["error"]
            detail = error["message"] if isinstance(error, dict) else error
        except (ValueError, KeyError, TypeError, RecursionError):
            detail = None
        if not isinstance(detail, str):
            detail = body.decode(errors="replace")
        code = f"{response.status} {response.reason or ''}".rstrip()
        message = f"{self.url}: the server answers {code}: {self._one_line(detail)}"
        if response.status in (*TEMPORARY_STATUS, *REFUSED_QUESTION):
            return ServerFailure(message)
        if response.status in (401, 403):
            return UserError(
                f"{message}; the key belongs in the environment variable {KEY_VARIABLE}"
            )
        return UserError(
            f"{message}; check --model {self.settings['model']} and --endpoint, which mostly ends"
            " in /v1"
        )

    def _text_of(self, response: urllib3.BaseHTTPResponse, body: bytes) -> str:
        if len(body) > MAX_BYTES:
            raise BadAnswer(f"{self.url} answers with more than {MAX_BYTES} bytes")
        shown = self._one_line(body.decode(errors="replace"))
        try:
            content = json.loads(body)
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
        """Return the beginning of the server's words, without the key: some servers repeat it."""
        text = " ".join(text.encode(errors="replace").decode().split()) or "nothing"
        if self.key:
            text = text.replace(self.key, "***")
        return text if len(text) <= 200 else f"{text[:200]}..."
