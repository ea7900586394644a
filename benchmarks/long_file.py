"""Seconds and memory to find a sentence in one long file: `search query --file` at its real size.

    python -m benchmarks.long_file [--minutes 10 60] [--checkpoint MODEL] [--work DIR]
    python -m benchmarks.long_file --quick     # tiny sizes: shows that it runs

The model is that of configs/tap.yaml with random weights, or --checkpoint. The file is noise at
44.1 kHz (5 MB a minute). Each length is a process of its own, so that its largest resident set is
known. Seconds are those of find_moments with the loaded model: decoding, encoding, finding. At the
end the longest file is indexed, and queries to that index are timed: they encode no sound.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.full_size import hardware, work_folder
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.processes import peak_memory
from retrieval.base.progress import set_quiet, silence_transformers

RATE = 44_100  # Hz
QUERY = "a dog barks in the distance"
NUM_QUERIES = 20  # to the index


def write_noise(path: Path, minutes: float) -> None:
    import soundfile

    random = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", RATE, 1, subtype="PCM_16") as file:
        for _ in range(round(60 * minutes)):
            file.write(0.1 * random.standard_normal(RATE, dtype=np.float32))


def one(file: Path, checkpoint: str) -> None:
    """Print seconds of the sound, seconds that it took, and memory before and after in bytes."""
    from retrieval.search import find_moments
    from retrieval.search.model_identity import load_model

    silence_transformers()
    set_quiet(True)
    model = load_model(checkpoint)
    before, start = peak_memory(), time.perf_counter()
    found = find_moments(file, [QUERY], model)
    print(found.seconds, time.perf_counter() - start, before, peak_memory())


def benchmark(folder: Path, arguments: argparse.Namespace) -> int:
    import torch

    from retrieval.search import AudioIndex

    checkpoint = arguments.checkpoint
    if checkpoint is None:
        from benchmarks.training_step import make_model

        make_model(arguments.quick)[0].save_pretrained(folder / "model")
        checkpoint = str(folder / "model")
    print(f"{hardware()}; {torch.get_num_threads()} threads")
    recordings = folder / "recordings"
    recordings.mkdir()
    for minutes in sorted(arguments.minutes):
        file = recordings / "noise.wav"
        write_noise(file, minutes)
        command = [sys.executable, "-m", "benchmarks.long_file", "--one", file, checkpoint]
        ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if ended.returncode:
            raise UserError(f"{minutes:g} minutes failed: {ended.stderr.strip()[-300:]}")
        seconds, took, before, after = map(float, ended.stdout.split())
        print(
            f"{seconds / 60:g} min: {took:.1f} s, {seconds / took:.0f} times as fast as the sound;"
            f" memory {before / 2**20:,.0f} MiB with the model, {after / 2**20:,.0f} MiB at most"
        )
    start = time.perf_counter()
    index = AudioIndex.build(recordings, checkpoint, folder / "index")
    print(f"{max(arguments.minutes):g} min indexed in {time.perf_counter() - start:.1f} s", end="")
    times = []
    for number in range(NUM_QUERIES + 3):
        start = time.perf_counter()
        index.search(f"{QUERY} {number}")
        times.append(time.perf_counter() - start)
    print(f"; then a query takes {1000 * statistics.median(times[3:]):.0f} ms")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, nargs="+", help="lengths of the file; default: 10 60")
    add("--checkpoint", help="another model; default: configs/tap.yaml, random weights")
    add("--work", type=Path, metavar="DIR", help="folder for the temporary folder")
    add("--quick", action="store_true", help="tiny sizes: shows that it runs")
    add("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        one(Path(arguments.one[0]), arguments.one[1])
        return 0
    arguments.minutes = arguments.minutes or ([0.1, 0.5] if arguments.quick else [10, 60])
    if min(arguments.minutes) <= 0:
        parser.error("--minutes must be above 0")
    silence_transformers()
    set_quiet(True)
    with tempfile.TemporaryDirectory(dir=work_folder(arguments.work)) as folder:
        return benchmark(Path(folder), arguments)


if __name__ == "__main__":
    run_main(main)
