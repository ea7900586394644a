"""Which copies of a recording search folds, and whether it takes other recordings for copies.

    python -m benchmarks.copies    # after `make demo`
    python -m benchmarks.copies --runs runs --sample data/sample

Writes the sample's 60 evaluation recordings as MP3, Ogg, Opus, at half the level, at 16 and 8 kHz,
and without the first 5 or 20 ms, and correlates the frames of each copy with its recording's
(retrieval/search/copies.py). Different recordings are all pairs of the development split's 300,
also cut to their first 3 and 5 s.
"""

import argparse
import tempfile
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.progress import set_quiet

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("sample_tap", "sample_mean")
CUTS = (3.0, 5.0, float("inf"))  # s


def write_opus(path: Path, samples: np.ndarray, rate: int) -> None:
    """Encode samples float32 (S,) at 64 kbit/s."""
    samples = np.ascontiguousarray(soxr.resample(samples, rate, 48_000)[None], np.float32)
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libopus", rate=48_000)
        stream.layout, stream.bit_rate = "mono", 64_000
        for first in range(0, samples.shape[1], 960):
            block = np.ascontiguousarray(samples[:, first : first + 960])
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout="mono")
            frame.sample_rate, frame.pts = 48_000, first
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))


def write_copies(source: Path, folder: Path) -> None:
    """Write the recordings of a folder and their copies, a sub-folder for each kind."""
    for path in sorted(source.iterdir()):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        samples = samples.mean(axis=1)

        def put(kind: str, ending: str, own: np.ndarray, own_rate: int = rate) -> None:
            target = folder / kind / f"{path.stem}.{ending}"
            target.parent.mkdir(exist_ok=True)
            soundfile.write(target, own, own_rate)

        put("original", "wav", samples)
        put("MP3", "mp3", samples)
        put("Ogg", "ogg", samples)
        put("half the level", "wav", samples / 2)
        for own_rate in (16_000, 8_000):
            put(f"{own_rate // 1000} kHz", "wav", soxr.resample(samples, rate, own_rate), own_rate)
        for milliseconds in (5, 20):
            put(f"without {milliseconds} ms", "wav", samples[rate * milliseconds // 1000 :])
        (folder / "Opus").mkdir(exist_ok=True)
        write_opus(folder / "Opus" / f"{path.stem}.opus", samples, rate)


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    from retrieval.search import AudioIndex
    from retrieval.search.copies import LEAST_CORRELATION, correlation, steps_of

    (folder / "copies").mkdir()
    write_copies(arguments.sample / "evaluation", folder / "copies")
    for name in MODELS:
        model = arguments.runs / name / "best"
        index = AudioIndex.build(folder / "copies", model, folder / f"{name}-copies")
        steps = {}
        for own in index.store.excerpts(range(len(index.store))):
            frames = index.store.frames(own.clip).float().numpy()
            path = Path(own.file.file)
            steps[path.parent.name, path.stem] = steps_of(frames, own.end - own.start)
        for kind in sorted({kind for kind, _ in steps} - {"original"}):
            found = [
                correlation(own, steps["original", stem])
                for (other, stem), own in steps.items()
                if other == kind
            ]
            print(
                f"{name}, {kind}: lowest {min(found):.3f}, median {np.median(found):.3f}, folded"
                f" {100 * np.mean(np.array(found) >= LEAST_CORRELATION):.0f} %",
                flush=True,
            )
        others = arguments.sample / "development"
        index = AudioIndex.build(others, model, folder / f"{name}-others")
        excerpts = index.store.excerpts(range(len(index.store)))
        for cut in CUTS:
            own_steps = []
            for own in excerpts:
                frames = index.store.frames(own.clip).float().numpy()
                seconds = min(cut, own.end - own.start)
                num_frames = round(len(frames) * seconds / (own.end - own.start))
                own_steps.append(steps_of(frames[:num_frames], seconds))
            found = np.array([correlation(*pair) for pair in combinations(own_steps, 2)])
            print(
                f"{name}, different recordings, at most {cut:g} s: {len(found):,} pairs, highest"
                f" {np.nanmax(found):.3f}, folded {(found >= LEAST_CORRELATION).sum()}",
                flush=True,
            )


def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=Path, default=ROOT / "data" / "sample")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    arguments = parser.parse_args()
    for path in (arguments.sample / "evaluation", arguments.runs / MODELS[0] / "best"):
        if not path.is_dir():
            raise UserError(f"{path} does not exist: run `make demo` first")
    set_quiet(True)
    with tempfile.TemporaryDirectory(prefix="copies_") as folder:
        measure(arguments, Path(folder))
    return 0


if __name__ == "__main__":
    run_main(main)
