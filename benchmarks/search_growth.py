"""Opening and searching an index of up to a million excerpts, against the way with all in memory.

    python -m benchmarks.search --growth [--clips N] [--dim 1024] [--queries 50] [--work DIR]

The project's own IndexWriter writes vectors around cluster centres, with few large directions, as
models make them, 10 excerpts a file, without frames. Then two ways take turns, each time in a new
process: `now` is LocalStore; `before` is what it replaced: every row of SQLite as a Python object,
vectors copied into memory and checked, and copied again by faiss.IndexFlatIP. The files are in the
page cache if it is large enough. Resident memory is that of the whole process, with PyTorch and
FAISS, and with those pages of mapped files that it touched, which the system takes back when it
needs them; `own` is what it cannot take back.

    python -m benchmarks.search_growth now|before INDEX QUERIES   # one of these processes
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from retrieval.search.model_identity import ModelIdentity

SIZES = (10_000, 300_000, 1_000_000)
ROUNDS = 3
NUM_NEAREST = 100
NUM_WARM = 3  # first queries, not counted
EXCERPTS_OF_FILE = 10
MOST_SECONDS, MOST_MILLISECONDS, MOST_GB = 2.0, 30.0, 1.0
LARGE_DIRECTIONS, CLUSTERS = 64, 200


def vectors_of(num: int, dim: int, seed: int) -> Iterator[np.ndarray]:
    """Yield unit vectors float32 (10,000 at most, D): a cluster's centre, large and small parts."""
    shared = np.random.default_rng(0)
    large = min(LARGE_DIRECTIONS, dim)
    directions = np.linalg.qr(shared.standard_normal((dim, large)))[0].T.astype(np.float32)
    sizes = np.arange(1, large + 1, dtype=np.float32) ** -0.5
    centres = shared.standard_normal((CLUSTERS, large), dtype=np.float32)
    rng = np.random.default_rng(seed)
    for first in range(0, num, 10_000):
        count = min(10_000, num - first)
        inner = rng.standard_normal((count, large), dtype=np.float32)
        inner = (inner + centres[rng.integers(CLUSTERS, size=count)]) * sizes
        noise = rng.standard_normal((count, dim), dtype=np.float32) * (0.6 / dim**0.5)
        block = inner @ directions + noise
        yield block / np.linalg.norm(block, axis=1, keepdims=True)


def queries_of(num: int, dim: int) -> np.ndarray:
    """Return query vectors float32 (n, D), made like the others."""
    return np.concatenate(list(vectors_of(num, dim, seed=2)))


def write_index(
    path: Path,
    num: int,
    dim: int,
    model: "ModelIdentity | None" = None,
    seconds: float = 1.0,
    frames: list[np.ndarray] | None = None,
) -> float:
    """Write an index, or extend it; return the seconds that the files derived from it took.

    Args:
        path: Folder of the index.
        num: Number of its excerpts, 10 a file.
        dim: D.
        model: Model that a query loads; None: none, for a store without queries.
        seconds: Length of an excerpt.
        frames: (T, D) float16 of the first excerpts, a multiple of 10; the others refer to the same
            rows of the file, so that the frames of a large index take little disk. None: an index
            without frames.
    """
    from retrieval.search.index_meta import IndexMeta
    from retrieval.search.local.writer import IndexWriter, locked
    from retrieval.search.model_identity import ModelIdentity
    from retrieval.search.sound import Found

    model = model or ModelIdentity(path="none", files={})
    meta = IndexMeta(
        folder=str(path),
        model=model,
        hop_seconds=seconds,
        clip_seconds=seconds,
        dim=dim,
        has_frames=frames is not None,
    )
    with locked(path), IndexWriter.opened(path, meta, overwrite=False) as writer:
        done, row, kept = writer.meta.num_rows, 0, []
        for block in vectors_of(num, dim, seed=1):
            for first in range(0, len(block), EXCERPTS_OF_FILE):
                vectors = block[first : first + EXCERPTS_OF_FILE]
                row += len(vectors)
                if row <= done:
                    continue
                own = None if frames is None else frames[row - len(vectors) : row] or None
                places = writer.append(vectors, own)
                if own is not None:
                    kept += [place[1:] for place in places]
                elif frames is not None:
                    places = [(number, *kept[number % len(kept)]) for number, _, _ in places]
                excerpts = [
                    (start * seconds, (start + 1) * seconds, *place)
                    for start, place in enumerate(places)
                ]
                number = row // EXCERPTS_OF_FILE
                found = Found(f"{number % 1000:03}/{number:07}.wav", 0, 0)
                writer.add_file(found, str(number), seconds * len(places), excerpts)
            writer.commit()
        writer.commit(complete=True)
        start = time.perf_counter()
        writer.finish(lambda: queries_of(50, dim))
        return time.perf_counter() - start


class StoreBefore:
    """The way that LocalStore replaced."""

    def __init__(self, path: Path):
        import faiss

        from retrieval.search.hits import IndexedFile
        from retrieval.search.local.storage import connect, mapped, read_meta

        with connect(path) as database:
            meta = read_meta(database, path)
            files = database.execute("SELECT id, file, seconds FROM files ORDER BY file").fetchall()
            excerpts = database.execute(
                "SELECT e.file_id, e.start, e.stop, e.row FROM excerpts e"
                " JOIN files f ON f.id = e.file_id ORDER BY f.file, e.start"
            ).fetchall()
        rows = np.array([row[3] for row in excerpts], dtype=np.int64)
        self.vectors = mapped(path, meta)[0][rows]
        assert np.isfinite(self.vectors).all()
        self.times = np.array([row[1:3] for row in excerpts], dtype=np.float64)
        position = {number: position for position, (number, *_) in enumerate(files)}
        self.file_of = np.array([position[row[0]] for row in excerpts], dtype=np.int64)
        self.files = [IndexedFile(*file) for _, *file in files]
        self.index = faiss.IndexFlatIP(meta.dim)
        self.index.add(self.vectors)

    def nearest(self, queries: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
        scores, clips = self.index.search(queries, num)
        return clips, scores


def memory() -> dict[str, int]:
    """Return bytes of this process: all that is resident, and what is not from files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = {
        name: int(value.split()[0]) * 1024
        for name, _, value in (
            line.partition(":\t") for line in lines if line.startswith(("VmRSS", "RssAnon"))
        )
    }
    return {"resident": fields["VmRSS"], "own": fields["RssAnon"]}


def measure(way: str, path: Path, num_queries: int) -> dict[str, Any]:
    """Open an index and search in it; runs in a process of its own."""
    import faiss  # noqa: F401  # imports are not part of the opening
    import torch  # noqa: F401

    from retrieval.search.local.store import LocalStore

    imported = memory()["resident"]
    start = time.perf_counter()
    store = LocalStore(path) if way == "now" else StoreBefore(path)
    opened = time.perf_counter() - start
    dim = store.meta.dim if way == "now" else store.vectors.shape[1]
    times, clips = [], []
    for query in queries_of(num_queries + NUM_WARM, dim):
        start = time.perf_counter()
        found, _ = store.nearest(query[None], NUM_NEAREST)
        times.append(1000 * (time.perf_counter() - start))
        clips.append(found[0].tolist())
    facts = str(store.meta.approximate or "flat") if way == "now" else "flat"
    found = {"opened": opened, "searches": times[NUM_WARM:], "clips": clips, "facts": facts}
    return found | memory() | {"imported": imported}


def in_new_process(way: str, path: Path, num_queries: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.search_growth", way, str(path), str(num_queries)]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def growth(folder: Path, sizes: tuple[int, ...], dim: int, num_queries: int, rounds: int) -> bool:
    """Print a line for each size and way; return whether `now` reaches the aims."""
    is_good = True
    for size in sizes:
        path = folder / f"index-{size}"
        took = write_index(path, size, dim)
        print(f"{size:,} excerpts, D {dim}: derived files in {took:.1f} s", flush=True)
        found = {"before": [], "now": []}
        for _ in range(rounds):
            for way, results in found.items():
                results.append(in_new_process(way, path, num_queries))
        wanted = found["before"][0]["clips"]
        shares = [
            len(set(own) & set(other)) / len(other)
            for own, other in zip(found["now"][0]["clips"], wanted, strict=True)
        ]
        for way, results in found.items():
            opened = statistics.median(result["opened"] for result in results)
            search = statistics.median(sum((result["searches"] for result in results), []))
            resident, own, imported = (
                max(result[name] for result in results) / 1e9
                for name in ("resident", "own", "imported")
            )
            print(
                f"  {way:6}: opened in {opened:.2f} s, a search {search:.1f} ms, resident"
                f" {resident:.2f} GB (own {own:.2f}; before opening {imported:.2f});"
                f" {results[0]['facts']}",
                flush=True,
            )
            if way == "now":
                is_good &= opened < MOST_SECONDS and search < MOST_MILLISECONDS
                is_good &= resident < MOST_GB
        print(f"  found of the exact {NUM_NEAREST} nearest: {100 * np.mean(shares):.2f} %")
        for file in path.iterdir():
            file.unlink()
    return is_good


if __name__ == "__main__":
    way, path, num_queries = sys.argv[1:]
    print(json.dumps(measure(way, Path(path), int(num_queries))))
