"""What frames of fewer bytes cost: mAP@10 and moments of search by --frames and its rate.

    python -m benchmarks.frame_sizes    # after `make demo`
    python -m benchmarks.frame_sizes --runs runs --sample data/sample

Indexes the recordings of the sample's evaluation split anew for each setting, with the demo's
models, and asks for its 300 captions. R1@0.7: share of the captions whose first stretch in their
own recording overlaps a true one by an IoU of 0.7. Bytes are those of vectors and frames, for an
hour of these short recordings; long ones, whose excerpts overlap by half, take twice as many.
"""

import argparse
import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.progress import set_quiet

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("sample_tap", "sample_mean", "sample_moments")
SETTINGS = [
    *(("float16", rate) for rate in (None, 12.5, 5.0, 1.0)),
    *(("int8", rate) for rate in (None, 12.5, 5.0, 1.0)),
    ("none", None),
]
LEAST_IOU = 0.7


def captions_of(sample: Path) -> list[tuple[str, str]]:
    """Return captions of the evaluation split, and the file of each."""
    with open(sample / "clotho_captions_evaluation.csv", encoding="utf-8", newline="") as file:
        return [
            (row[f"caption_{number}"], row["file_name"])
            for row in csv.DictReader(file)
            for number in range(1, 6)
        ]


def moments_of(sample: Path) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Return the true stretches of each caption in its file."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with open(sample / "clotho_moments_evaluation.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            times = float(row["start"]), float(row["end"])
            found.setdefault((row["query"], row["file_name"]), []).append(times)
    return found


def measured(arguments: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Yield a row of the table for each model and setting."""
    from retrieval.evaluation.metrics.text_audio_retrieval.ranking import metrics_of_ranks
    from retrieval.moments.spans import iou
    from retrieval.search import AudioIndex

    pairs, true = captions_of(arguments.sample), moments_of(arguments.sample)
    for name in MODELS:
        for frames, rate in SETTINGS:
            if frames == "none" and name != "sample_mean":
                continue  # TAP needs its frames
            path = folder / f"{name}-{frames}-{rate}"
            index = AudioIndex.build(
                arguments.sample / "evaluation",
                arguments.runs / name / "best",
                path,
                frames=frames,
                frames_per_second=rate,
            )
            captions = [caption for caption, _ in pairs]
            answers = index.search_many(captions, k=index.num_files, fold=False)
            ranks, good = [], []
            for hits, (caption, file) in zip(answers, pairs):
                (own,) = (hit for hit in hits if hit.file == file)
                ranks.append(own.rank)
                best = max(iou(own.moments[0][:2], times) for times in true[caption, file])
                good.append(best >= LEAST_IOU)
            metrics = metrics_of_ranks(np.array(ranks)[:, None])
            files = [*path.glob("vectors-*"), *path.glob("frames-*")]
            megabytes = sum(own.stat().st_size for own in files) / 1e6 / (index.seconds / 3600)
            yield (
                f"{name} {frames} {rate or 'all'}: mAP@10 {100 * metrics['mAP@10']:.2f}, R1@0.7"
                f" {100 * np.mean(good):.1f}, {megabytes:.2f} MB an hour (D {index.model.dim})"
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
    with tempfile.TemporaryDirectory(prefix="frame_sizes_") as folder:
        for line in measured(arguments, Path(folder)):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    run_main(main)
