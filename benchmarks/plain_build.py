"""The ancestor's way to build a cache, for benchmarks/cache_build.py.

    python -m benchmarks.plain_build FOLDER OUTPUT.h5 SAMPLE_RATE

Every WAV file of the folder is decoded, resampled at the quality of data_prep/ and held as float32;
then all are written to one variable-length dataset. It imports little, so that its memory is
that of the samples.
"""

import sys
from pathlib import Path

import h5py
import numpy as np
import soundfile
import soxr


def main(folder: Path, output: Path, sample_rate: int) -> None:
    clips = []
    for path in sorted(folder.glob("*.wav")):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)  # (S, channels)
        clips.append(soxr.resample(samples.mean(axis=1), rate, sample_rate, quality="VHQ"))
    with h5py.File(output, "w") as file:
        rows = file.create_dataset("audio", shape=(len(clips),), dtype=h5py.vlen_dtype(np.float32))
        for index, samples in enumerate(clips):
            rows[index] = samples


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
