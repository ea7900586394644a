"""Decode sound files in a child process: a crash of a native library costs one file.

libsndfile, mpg123, soxr and FFmpeg are C code, and the files come from anywhere. A child process
runs retrieval.base.sound for one file after another and sends back blocks of samples, identical to
the last bit. If it crashes, is killed, needs more memory than MEMORY_LIMIT, or makes no progress
for HANG_SECONDS, the file is unreadable with that reason, and the next file gets a new child.
Messages of the libraries are discarded.

    parent                                     child (serve)
    REQUEST {"service": ..., "path": ..., ...} ->
                                               <-  BLOCK float32 ..., FACTS {...}
    CREDIT, for one more block                 ->
    ABANDON, to end in the middle              ->
                                               <-  END, or ERROR {"kind": ..., "text": ...}

The child sends numbers and JSON only, so nothing from it is executed. Between blocks it reads from
its parent, so it ends with the parent, however that ends. PR_SET_PDEATHSIG would end it with the
*thread* that started it.
"""

import atexit
import importlib
import json
import os
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from retrieval.base.errors import UserError, one_line
from retrieval.base.sound import SoundFacts, TruncatedSound, UnreadableSound

try:
    import fcntl
    import resource
except ImportError:  # Windows: no limit of memory, smaller pipes
    fcntl = resource = None

READER = "retrieval.base.sound"  # the module whose `mono_blocks` and `SoundReader` the child runs
# for one block: a disk may wake up slowly, and finding a length may mean decoding hours
HANG_SECONDS = 600.0
MEMORY_LIMIT = 4 * 2**30  # bytes, for each child (RLIMIT_DATA)
BLOCKS_AHEAD = 2  # decoded before the parent asks for them
MOST_STARTS = 3  # attempts to start a child: the system may kill one before it decodes anything
MOST_IDLE = 8  # children kept for later
MOST_OPEN = 16  # files that a child keeps open for read_frames: a page shows ten
PIPE_BYTES = 2**20  # a larger buffer saves switches between the processes

# A child uses one thread. glibc keeps memory for the next block: with memory returned to the
# system each time, 1 s of sound took three times as long.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
ENVIRONMENT |= {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**26)}

REQUEST, CREDIT, ABANDON = b"R", b"C", b"A"
READY, BLOCK, FACTS, END, ERROR = b"Y", b"B", b"F", b"E", b"X"
HEADER = struct.Struct("<cI")  # kind, bytes that follow
KINDS_OF_ERROR = {kind.__name__: kind for kind in (UnreadableSound, TruncatedSound)}
# The child imports the parent's modules, before those of the folder that it happens to run in.
START = (
    "import sys; sys.path[:] = sys.argv[2:]; from retrieval.base.decoder_process import serve;"
    " serve(sys.argv[1])"
)


class DecoderDied(UnreadableSound):
    """The decoder crashed at the file or was killed.

    A later attempt, or another version of a library, may succeed.
    """


def mono_blocks(
    path: Path | str | bytes,
    sample_rate: int,
    max_seconds: float | None = None,
    facts: SoundFacts | None = None,
    **settings: Any,
) -> Iterator[np.ndarray]:
    """Run retrieval.base.sound.mono_blocks in another process.

    Safe to call from several threads: each stream has its own child.

    Args:
        path: The file.
        sample_rate: Hz of the result.
        max_seconds: Stop reading there; None reads the whole file.
        facts: Filled while blocks are read.
        settings: Further arguments of retrieval.base.sound.mono_blocks.

    Yields:
        float32 (S,), S samples, at least one block.

    Raises:
        UnreadableSound: As mono_blocks raises it; DecoderDied if the decoder dies.
        FileNotFoundError, PermissionError: As the system raises them.
        UserError: No process can be started.
    """
    arguments = {"sample_rate": sample_rate, "max_seconds": max_seconds, **settings}
    yield from _stream("mono_blocks", path, arguments, SoundFacts() if facts is None else facts)


def read_frames(
    path: Path | str | bytes, first: int, num_frames: int
) -> tuple[np.ndarray, "SoundInfo"]:
    """Read a range of frames in another process, which keeps the file open for the next call.

    Args:
        path: The file.
        first: Number of the first frame.
        num_frames: Number of frames; 0 reads the facts only and decodes nothing.

    Returns:
        float32 (S, C): S frames (fewer than num_frames at the end of the file), C channels; facts
        of the whole file.

    Raises:
        UnreadableSound: The file cannot be decoded; DecoderDied if the decoder dies.
        FileNotFoundError, PermissionError: As the system raises them.
        UserError: No process can be started.
    """
    info, blocks = SoundInfo(), []
    try:
        blocks.extend(_stream("frames", path, {"first": first, "num_frames": num_frames}, info))
    except TruncatedSound:
        pass  # the samples before the cut are in `blocks`
    return np.concatenate([np.zeros(0, np.float32), *blocks]).reshape(-1, info.channels), info


@dataclass
class SoundInfo:
    """Facts of a sound file, from its header."""

    sample_rate: int = 0  # Hz
    channels: int = 1
    num_frames: int | None = None  # None: the header leaves it open


def _stream(
    service: str, path: Path | str | bytes, arguments: dict[str, Any], facts: Any
) -> Iterator[np.ndarray]:
    """Yield the blocks of one of the child's SERVICES, and fill the dataclass `facts` meanwhile."""
    path = os.fsdecode(path)
    request = {"service": service, "path": os.path.abspath(path), **arguments}
    num_given, is_second_try = 0, False
    while True:
        decoder = _started_decoder() if is_second_try else _idle_decoder(path)
        is_new = decoder.num_requests == 0
        num_blocks = 0
        try:
            for block in decoder.read(request, path, facts):
                num_blocks += 1
                if num_blocks > num_given:  # the first try yielded the others
                    num_given += 1
                    yield block
            return
        except _Death as death:
            # This file may not be the cause: an earlier one may have corrupted the child's memory,
            # or the system may have killed the child.
            if death.was_hanging:
                raise UnreadableSound(str(death)) from None
            if is_new:
                raise DecoderDied(str(death)) from None
            is_second_try = True
        finally:
            decoder.release()


class _Death(Exception):
    """The decoder has died; the message says why."""

    was_hanging = False


class _Decoder:
    """A child process. One stream at a time; `release` after each."""

    def __init__(self) -> None:
        self.num_requests = 0
        self.paths: deque[str] = deque(maxlen=MOST_OPEN)  # the files that it may have open
        self._is_streaming = False  # a stream is under way
        self._is_whole = True  # no message was interrupted half way
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", START, READER, *_module_paths()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # the parent handles Ctrl-C
                env=os.environ | ENVIRONMENT,
            )
        except OSError as error:
            raise UserError(
                f"the process that decodes sounds cannot be started: {error.strerror}"
            ) from None
        _all.add(self)
        with suppress(OSError, AttributeError):  # Linux only, and up to a limit for each user
            fcntl.fcntl(self._process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            kind, payload = self._receive()
            if kind != READY:
                reason = json.loads(payload.tobytes())["text"]
                raise UserError(f"the process that decodes sounds does not start: {reason}")
        except BaseException:
            self.kill()
            raise

    def read(self, request: dict[str, Any], path: str, facts: Any) -> Iterator[np.ndarray]:
        """Yield blocks float32 (S,). Raises _Death, and the errors of the reader."""
        self.num_requests += 1
        if request["service"] == "frames" and path not in self.paths:
            self.paths.append(path)
        content = json.dumps(request).encode()
        self._send(REQUEST + struct.pack("<I", len(content)) + content)
        self._is_streaming = True
        while True:
            kind, payload = self._receive()
            if kind == BLOCK:
                self._send(CREDIT)
                yield payload.view(np.float32)
            elif kind == FACTS:
                for name, value in json.loads(payload.tobytes()).items():
                    setattr(facts, name, value)
            else:
                self._is_streaming = False
                if kind == END:
                    return
                error = json.loads(payload.tobytes())
                if error["kind"] == "OSError":
                    # OSError makes FileNotFoundError and PermissionError by the number
                    raise OSError(error["errno"], error["text"], path)
                raise KINDS_OF_ERROR.get(error["kind"], UnreadableSound)(error["text"])

    def release(self) -> None:
        """Keep the child for the next file, unless it is dead or a message is incomplete."""
        if self in _all and self._is_whole and len(_idle) < MOST_IDLE:
            try:
                if self._is_streaming:
                    self._send(ABANDON)  # pass_over skips the blocks that are already on their way
                _idle.append(self)
                return
            except _Death:
                pass
        self.kill()

    def pass_over(self) -> None:
        """Skip the rest of an abandoned stream. Raises _Death."""
        while self._is_streaming:
            kind, _ = self._receive()
            self._is_streaming = kind not in (END, ERROR)

    def kill(self) -> None:
        if self in _all:
            _all.discard(self)
            self._process.kill()
            self._process.wait()
            self._close()

    def forget(self) -> None:
        """Drop the child in a forked copy of the parent: it belongs to the original."""
        self._process.returncode = 0
        self._close()

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe.close()

    def _send(self, message: bytes) -> None:
        """Send a message. Raises _Death."""
        self._is_whole = False
        try:
            while message:
                message = message[self._process.stdin.write(message) :]
        except (OSError, ValueError):  # ValueError: closed
            raise self._death() from None
        self._is_whole = True

    def _receive(self) -> tuple[bytes, np.ndarray]:
        """Receive kind and payload uint8 (bytes,). Raises _Death."""
        self._is_whole = False
        kind, length = HEADER.unpack(self._receive_bytes(HEADER.size).tobytes())
        payload = self._receive_bytes(length)
        self._is_whole = True
        return kind, payload

    def _receive_bytes(self, length: int) -> np.ndarray:
        content = np.empty(length, np.uint8)
        rest = memoryview(content)
        while len(rest):
            try:
                count = self._process.stdout.readinto(rest)
            except (OSError, ValueError):  # ValueError: closed
                count = 0
            if not count:
                raise self._death()
            rest = rest[count:]
        return content

    def _death(self) -> _Death:
        try:
            code = self._process.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            code = None
        self.kill()
        if code is None or code >= 0:
            return _Death(f"its decoder ended unexpectedly (exit code {code})")
        # by names: Windows has few signals
        names = {number.value: number.name for number in signal.Signals}
        name = names.get(-code, f"signal {-code}")
        if name == "SIGALRM":
            death = _Death(f"its decoder made no progress for {HANG_SECONDS:g} s")
            death.was_hanging = True
            return death
        if name == "SIGKILL":
            return _Death("its decoder was killed, perhaps for lack of memory")
        return _Death(f"its decoder crashed ({name})")


def _module_paths() -> list[str]:
    """Return the parent's sys.path for the child, with the current folder last.

    A file there must not shadow a module.
    """
    root = str(Path(__file__).resolve().parents[2])
    try:
        current = os.path.realpath(os.curdir)
    except FileNotFoundError:  # removed meanwhile
        current = None
    paths = [path for path in sys.path if os.path.isabs(path)]
    last = [path for path in paths if os.path.realpath(path) == current != root]
    return [*(path for path in paths if path not in last), root, *last]


_idle: deque[_Decoder] = deque()  # its append and pop need no lock
_all: set[_Decoder] = set()


def _started_decoder() -> _Decoder:
    """Start a child. Raises UserError if MOST_STARTS attempts fail."""
    for _ in range(MOST_STARTS):
        try:
            return _Decoder()
        except _Death as death:  # the system may have killed it
            reason = str(death)
    raise UserError(f"the process that decodes sounds does not start: {reason}")


def _idle_decoder(path: str) -> _Decoder:
    """Take an idle child, preferably one that has the file open, or start one."""
    while True:
        try:
            decoder = next((one for one in list(_idle) if path in one.paths), None)
            if decoder:
                _idle.remove(decoder)
            else:
                decoder = _idle.pop()
        except ValueError:
            continue  # another thread has taken it
        except IndexError:
            return _started_decoder()
        try:
            decoder.pass_over()
            return decoder
        except _Death:
            pass
        except BaseException:
            decoder.kill()
            raise


@atexit.register
def close_all() -> None:
    """End all children."""
    _idle.clear()
    for decoder in list(_all):
        decoder.kill()


def _forget_all() -> None:
    _idle.clear()
    for decoder in list(_all):
        decoder.forget()
    _all.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


# --- in the child ---


def serve(reader: str) -> NoReturn:
    """Serve requests of the parent on stdin and stdout until it closes them.

    Args:
        reader: Name of the module that decodes, see READER.
    """
    requests, answers = os.dup(0), os.dup(1)
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(silence, stream)  # libraries must not print into the stream of samples
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, also within a library
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        with suppress(ValueError, OSError):  # a lower limit is set already
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")  # if memory runs out, this process is killed before its parent
    try:
        module = importlib.import_module(reader)
    except Exception as error:
        _send_all(
            answers,
            _message(ERROR, json.dumps({"kind": "Start", "text": one_line(error)}).encode()),
        )
        os._exit(1)
    os.dup2(silence, 2)
    code = 0
    try:
        _send_all(answers, _message(READY))
        while request := _next_request(requests):
            _serve_request(module, request, requests, answers)
    except BrokenPipeError:
        pass  # the parent has gone
    except BaseException:
        code = 1
    os._exit(code)  # without the libraries' own exit handlers


def _set_alarm(seconds: float) -> None:
    """Let SIGALRM end this process after `seconds`, if the system has it; 0 cancels it."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _serve_request(module: Any, request: dict[str, Any], requests: int, answers: int) -> None:
    service, facts = SERVICES[request.pop("service")]
    facts = facts()
    told, credit = vars(facts).copy(), BLOCKS_AHEAD
    blocks = service(module, os.fsencode(request.pop("path")), facts=facts, **request)
    # messages; the last block goes together with the end, so that the parent wakes up once
    waiting: list[Any] = []
    try:
        while True:
            if credit == 0:
                _send_all(answers, waiting)
            while credit == 0:
                if _read_exactly(requests, 1) != CREDIT:
                    blocks.close()  # next() then ends the stream
                    break
                credit += 1
            _set_alarm(HANG_SECONDS)
            block = next(blocks, None)
            _set_alarm(0)
            if block is not None:
                _send_all(answers, waiting)
            if vars(facts) != told:
                told = vars(facts).copy()
                waiting += _message(FACTS, json.dumps(told).encode())
            if block is None:
                break
            waiting += _message(BLOCK, np.ascontiguousarray(block, np.float32).view(np.uint8))
            credit -= 1
        waiting += _message(END)
    except BrokenPipeError:
        raise
    except Exception as error:
        _set_alarm(0)
        waiting += _message(FACTS, json.dumps(vars(facts)).encode())
        waiting += _message(ERROR, json.dumps(_described(error)).encode())
    _send_all(answers, waiting)


def _mono_blocks(
    module: Any, path: bytes, facts: SoundFacts, **arguments: Any
) -> Iterator[np.ndarray]:
    return module.mono_blocks(path, facts=facts, **arguments)


def _frames(
    module: Any, path: bytes, facts: SoundInfo, first: int, num_frames: int
) -> Iterator[np.ndarray]:
    status = os.stat(path)
    key = path, status.st_ino, status.st_size, status.st_mtime_ns
    reader = _open_readers.pop(key, None) or module.SoundReader(path)
    try:
        facts.sample_rate, facts.channels, facts.num_frames = (
            reader.sample_rate,
            reader.channels,
            reader.announced_frames,
        )
        if num_frames:
            reader.seek(first)
        while num_frames and len(block := reader.read(num_frames)):  # (S, C)
            num_frames -= len(block)
            yield block.reshape(-1)
    except BaseException:
        reader.close()
        raise
    _open_readers[key] = reader  # the newest is the last one
    if len(_open_readers) > MOST_OPEN:
        _open_readers.pop(next(iter(_open_readers))).close()


SERVICES: dict[str, tuple[Callable[..., Iterator[np.ndarray]], type]] = {
    "mono_blocks": (_mono_blocks, SoundFacts),
    "frames": (_frames, SoundInfo),
}
_open_readers: dict[tuple[bytes, int, int, int], Any] = {}


def _described(error: Exception) -> dict[str, Any]:
    if type(error).__name__ in KINDS_OF_ERROR:
        return {"kind": type(error).__name__, "text": str(error)}
    if isinstance(error, OSError):
        return {"kind": "OSError", "errno": error.errno, "text": error.strerror}
    if isinstance(error, MemoryError):
        return {
            "kind": "UnreadableSound",
            "text": f"needs more than {MEMORY_LIMIT / 2**30:g} GiB of memory to be decoded",
        }
    return {"kind": "UnreadableSound", "text": f"cannot be decoded: {one_line(error)}"}


def _next_request(requests: int) -> dict[str, Any] | None:
    """Read the next request; None if the parent has ended. Skip messages for an earlier stream."""
    while (kind := _read_exactly(requests, 1)) != REQUEST:
        if not kind:
            return None
    (length,) = struct.unpack("<I", _read_exactly(requests, 4))
    return json.loads(_read_exactly(requests, length))


def _read_exactly(descriptor: int, length: int) -> bytes:
    """Read `length` bytes; empty at the end of the file."""
    content = b""
    while len(content) < length:
        if not (part := os.read(descriptor, length - len(content))):
            return b""
        content += part
    return content


def _message(kind: bytes, payload: Any = b"") -> list[memoryview]:
    return [memoryview(HEADER.pack(kind, len(payload))), memoryview(payload)]


def _send_all(descriptor: int, messages: list[memoryview]) -> None:
    """Write the messages, and empty the list."""
    while messages:
        if hasattr(os, "writev"):
            count = os.writev(descriptor, messages)
        else:  # Windows
            count = os.write(descriptor, messages[0])
        while messages and count >= len(messages[0]):
            count -= len(messages.pop(0))
        if messages:
            messages[0] = messages[0][count:]
