"""A reader for the decoder's process (retrieval.base.decoder_process.READER) that does what a
file's first word tells it to.

Real sounds are read by the real reader. Other files crash, hang, print or eat memory, as native
libraries do.
"""

import ctypes
import os
import resource
import signal
from pathlib import Path

import numpy as np
import soxr

from retrieval.base import decoder_process, sound

_num_files = 0


def mono_blocks(path, sample_rate, max_seconds=None, facts=None, **settings):
    global _num_files
    _num_files += 1
    word, *rest = Path(os.fsdecode(path)).read_bytes()[:100].decode("latin-1").split() or [""]
    if word == "die":  # from a signal, a block or more into the sound
        for number in range(int(rest[1])):
            yield np.full(1000, number, np.float32)
        os.kill(os.getpid(), signal.Signals[rest[0]])
    elif word == "die-unless-first":
        if _num_files > 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        yield np.ones(1000, np.float32)
    elif word == "null-pointer":
        ctypes.string_at(0)
    elif word == "exit":
        os._exit(3)
    elif word == "soxr":  # 500 samples at 1 Hz: soxr does not look whether it got its memory
        resource.setrlimit(resource.RLIMIT_DATA, (300 * 2**20, 300 * 2**20))
        yield soxr.ResampleStream(1, 32_000, 1, dtype="float32", quality="VHQ").resample_chunk(
            np.zeros(500, np.float32)
        )
        os.abort()  # where it had enough of it
    elif word == "bomb":
        resource.setrlimit(resource.RLIMIT_DATA, (600 * 2**20, 600 * 2**20))
        yield np.ones(10**9, np.float32)
    elif word == "hang":
        decoder_process.HANG_SECONDS = 0.2
        yield np.ones(1000, np.float32)
        ctypes.PyDLL(None).pause()  # holds Python's lock
    elif word == "bug":
        raise KeyError("no\nsuch key")
    elif word == "chatter":
        os.write(1, b"chatter on stdout\n")
        os.write(2, b"chatter on stderr\n")
        yield np.ones(1000, np.float32)
    elif word == "pid":
        yield np.array([os.getpid()], np.float64).view(np.float32)
    else:
        yield from sound.mono_blocks(path, sample_rate, max_seconds, facts, **settings)


class SoundReader(sound.SoundReader):
    """Dies where the file is to be read from 1 s on, if it lies in a folder of that name."""

    def seek(self, frame):
        if frame >= self.sample_rate and b"/dies from 1 s/" in self.path:
            os.kill(os.getpid(), signal.SIGSEGV)
        super().seek(frame)
