"""Time of a query to an open index of 10,000 recordings, from sentence to answers with attention.

    python -m benchmarks.search [--clips 10000] [--queries 50] [--work DIR]
    python -m benchmarks.search --accuracy    # after `make demo`
    python -m benchmarks.search --growth      # up to a million excerpts: see search_growth.py
    python -m benchmarks.search --quick       # tiny sizes: shows that it runs

The first takes 16 GB of disk and 4 minutes; its exit code is 1 if the median query with the 8 bit
encoder takes more than 100 ms. `--accuracy` gives mAP@10 of the demo's captions with both text
encoders.

The model is that of configs/tap.yaml with random weights (roberta-large, D 1024). The project's own
IndexWriter writes clips of 15 to 30 s with random frames: the time does not depend on the values.
Text encoders of PyTorch and in 8 bit (fast_text) take turns. Also timed: the text encoder without
search, and TAP on every clip, the cost of a search without a shortlist. The frames that were just
written are in memory if it is large enough; `--cold` also queries after the system was told to drop
them.
"""

import argparse
import csv
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search_growth import ROUNDS, SIZES, growth
from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.progress import bar

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample"
MOST_SECONDS = 0.1
NUM_WARM = 3  # first queries, not counted: they meet cold caches
DISTINCT_CLIPS = 64  # the other clips are copies of these
NUM_ALL = 1000  # clips that TAP scores for the ratio
FILES_AT_ONCE = 256


def write_index(path: Path, checkpoint: Path, num_clips: int) -> None:
    """Write an index of clips without files, with frames if the model has some."""
    import torch

    from retrieval.models.pretrained import load_pretrained
    from retrieval.search.index_meta import IndexMeta
    from retrieval.search.local.writer import IndexWriter, locked
    from retrieval.search.model_identity import ModelIdentity
    from retrieval.search.sound import Found
    from retrieval.search.two_stage import OutputSizes
    from retrieval.search.update import keeps_frames

    model = load_pretrained(checkpoint)
    has_frames, pooling = keeps_frames(model, None, None), model.pooling
    dim, clip_seconds = model.dim, min(model.clip_seconds, pooling.longest_excerpt)
    rng = np.random.default_rng(0)
    lengths = rng.uniform(clip_seconds / 2, clip_seconds, num_clips)  # s
    num_frames = model.windows.num_valid_frames(
        torch.from_numpy((lengths * model.sample_rate).astype(np.int64))
    ).numpy()
    shape = (num_frames.max(), dim)
    distinct = [
        rng.standard_normal(shape, dtype=np.float32).astype(np.float16)
        for _ in range(DISTINCT_CLIPS if has_frames else 0)
    ]
    sizes = []
    if pooling.keeps_frames:
        compute = OutputSizes.of(pooling)
        sizes = [compute(torch.from_numpy(own)) for own in distinct]
    meta = IndexMeta(
        folder=str(path),
        model=ModelIdentity.of(checkpoint.resolve()),
        hop_seconds=1.0,
        clip_seconds=clip_seconds,
        dim=dim,
        has_frames=has_frames,
    )
    with (
        locked(path),
        IndexWriter.opened(path, meta, overwrite=False) as writer,
        bar(total=num_clips, desc="writing", unit="clip") as progress,
    ):
        for clip in range(num_clips):
            vector = rng.standard_normal((1, dim), dtype=np.float32)
            frames, sizes_of = None, None
            if has_frames:
                frames = [distinct[clip % DISTINCT_CLIPS][: num_frames[clip]]]
            if sizes:
                sizes_of = partial(_first_of, sizes[clip % DISTINCT_CLIPS])
            (place,) = writer.append(vector / np.linalg.norm(vector), frames, sizes_of)
            found, excerpt = Found(f"{clip:06}.wav", 0, 0), (0.0, lengths[clip], *place)
            writer.add_file(found, str(clip), lengths[clip], [excerpt])
            progress.update()
            if clip % FILES_AT_ONCE == 0:
                writer.commit()
        writer.commit(complete=True)


def _first_of(sizes: Any, frames: Any) -> Any:
    """Return known output sizes in place of computing those of `frames` again."""
    return sizes[: len(frames)]


def milliseconds(seconds: list[float]) -> str:
    median = 1000 * statistics.median(seconds)
    return f"median {median:.0f} ms, longest {1000 * max(seconds):.0f} ms"


def forget(file: Path) -> None:
    """Drop a file from the page cache."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def benchmark(folder: Path, arguments: argparse.Namespace) -> int:
    import torch

    from benchmarks.training_step import make_captions, make_model
    from retrieval.search import AudioIndex
    from retrieval.search.index import CANDIDATES

    checkpoint, path = folder / "model", folder / "index"
    make_model(arguments.quick)[0].save_pretrained(checkpoint)
    write_index(path, checkpoint, arguments.clips)
    start = time.perf_counter()
    index = AudioIndex.open(path)
    frames = path / "frames-0.f16"
    opened = (
        f"{index.num_files:,} clips, frames {frames.stat().st_size / 1e9:.1f} GB; opened in"
        f" {time.perf_counter() - start:.1f} s"
    )
    print(f"{opened}; {torch.get_num_threads()} threads")
    fast = AudioIndex.open(path, fast_text=True)
    queries = make_captions(arguments.queries + NUM_WARM)
    ways = {"PyTorch": index, "8 bit": fast}
    whole, text, cold = ({name: [] for name in ways} for _ in range(3))
    for number, query in enumerate(queries):
        for name, opened in ways.items():
            whole[name].append(seconds_of(lambda: opened.search(query)))
            with torch.no_grad():
                text[name].append(seconds_of(lambda: opened._encode_text([query])))
            if arguments.cold and number >= NUM_WARM:
                forget(frames)
                cold[name].append(seconds_of(lambda: opened.search(query)))
    for name in ways:
        print(
            f"text encoder {name}: a query {milliseconds(whole[name][NUM_WARM:])}; the encoder"
            f" alone {milliseconds(text[name][NUM_WARM:])}"
        )
        if cold[name]:
            print(
                f"text encoder {name}: a query with frames from the disk {milliseconds(cold[name])}"
            )
    median = statistics.median(whole["8 bit"][NUM_WARM:])
    num_all = min(NUM_ALL, index.num_files)
    clips = torch.from_numpy(np.random.default_rng(1).permutation(index.num_files)[None, :num_all])
    with torch.no_grad():
        vector = index._encode_text(queries[:1])
    every = seconds_of(lambda: index._two_stage.rescore(vector, clips)) * index.num_files / num_all
    print(
        f"TAP on every clip (from {num_all:,} of them): {every:.2f} s, {every / median:.0f} times a"
        f" query, in which it scores {CANDIDATES}"
    )
    if not arguments.quick and median > MOST_SECONDS:
        print(
            f"error: above {1000 * MOST_SECONDS:.0f} ms; is the machine busy with something else?",
            file=sys.stderr,
        )
        return 1
    return 0


def seconds_of(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def accuracy() -> int:
    """Print the metrics of search in the demo's index, with the text encoder in 32 and in 8 bit."""
    from retrieval.evaluation.metrics.text_audio_retrieval.ranking import metrics_of_ranks
    from retrieval.search import AudioIndex

    with open(SAMPLE / "clotho_captions_evaluation.csv", encoding="utf-8", newline="") as file:
        pairs = [
            (row[f"caption_{number}"], row["file_name"])
            for row in csv.DictReader(file)
            for number in range(1, 6)
        ]
    for fast_text in (False, True):
        index = AudioIndex.open(SAMPLE / "index", fast_text=fast_text)
        answers = index.search_many([caption for caption, _ in pairs], k=index.num_files)
        ranks = [
            [hit.file for hit in hits].index(name) + 1 for hits, (_, name) in zip(answers, pairs)
        ]
        metrics = metrics_of_ranks(np.array(ranks)[:, None])
        print(
            f"text encoder in {8 if fast_text else 32} bit: "
            + ", ".join(f"{name} {100 * value:.2f}" for name, value in metrics.items())
        )
    return 0


def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, help="recordings in the index (default: 10000)")
    parser.add_argument("--queries", type=int, help="default: 50")
    parser.add_argument(
        "--cold", action="store_true", help="also with frames that must be read from disk"
    )
    parser.add_argument(
        "--work", type=Path, help="folder for the temporary folder (default: the system's)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny model, 300 clips, 5 queries")
    parser.add_argument(
        "--accuracy", action="store_true", help="mAP@10 of the sample's captions in place of times"
    )
    parser.add_argument(
        "--growth", action="store_true", help="opening and searching at several sizes"
    )
    parser.add_argument("--dim", type=int, default=1024, help="with --growth: D of the vectors")
    parser.add_argument("--rounds", type=int, help="with --growth: processes of each way")
    arguments = parser.parse_args()
    if arguments.accuracy:
        if not (SAMPLE / "index").is_dir():
            raise UserError(f"{SAMPLE / 'index'} does not exist: run `make demo` first")
        return accuracy()
    default_clips, default_queries = (300, 5) if arguments.quick else (10_000, 50)
    sizes = ((3000,) if arguments.quick else SIZES) if arguments.growth else ()
    if arguments.growth and arguments.clips is not None:
        sizes = (arguments.clips,)
    if arguments.clips is None:
        arguments.clips = default_clips
    if arguments.queries is None:
        arguments.queries = default_queries
    for name in ("clips", "queries", "dim"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: must be 1 or more")
    from benchmarks.full_size import work_folder

    work = work_folder(arguments.work)
    needed = 0.1 if arguments.quick else 4.0 + 1.2e-3 * arguments.clips  # GB
    if sizes:
        needed = 6.0 * max(sizes) * arguments.dim / 1e9
    if shutil.disk_usage(work).free / 1e9 < needed:
        raise UserError(
            f"{work} has less than the {needed:.1f} GB free that this run writes; give a folder"
            " with more room: --work DIR"
        )
    with tempfile.TemporaryDirectory(prefix="search_", dir=work) as name:
        if arguments.growth:
            rounds = arguments.rounds or (1 if arguments.quick else ROUNDS)
            is_good = growth(Path(name), sizes, arguments.dim, arguments.queries, rounds)
            return 0 if is_good or arguments.quick else 1
        return benchmark(Path(name), arguments)


if __name__ == "__main__":
    run_main(main)
