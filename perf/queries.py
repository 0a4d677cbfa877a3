"""The ten queries of docs/queries.md on 2, 22 and (with `--rows`) more million rows: p50 and p95 with the handle open.

`python -m perf.queries --rows 100_000_000` takes 10 GB of disk; `--keep FOLDER` generates there once and reuses it.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from perf import documented
from perf.generate import fleet_of, generate
from pipelines import console, storage
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tables.query import Reader, open_reader

SIZES = (2_000_000, 22_000_000)
TARGET_MS = 100.0  # p95 at 22 million rows
_THREADS = 2
_ROUNDS = 40  # the p95 of 40 is the third worst
_NIGHTS = 365


def main(sizes: Sequence[int] = SIZES, keep: Path | None = None) -> None:
    """Generate each size, time every query on it, print one table."""
    asked = documented.queries(documented.DOCUMENT.read_text())
    columns: dict[int, list[tuple[float, float, int]]] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="fleetmark-bench-") as temporary:
            columns[size] = _measured(_fleet(size, keep or Path(temporary)), asked)
    print(f"\n## The ten queries of docs/queries.md, {_THREADS} threads, handle open: p50 / p95 of {_ROUNDS}, ms\n")
    console.table(
        ("", *(f"{size / 1e6:.0f} million rows" for size in sizes), "rows of the answer"),
        [
            (
                query.title,
                *(f"{columns[size][number][0]:.0f} / {columns[size][number][1]:.0f}" for size in sizes),
                f"{columns[sizes[-1]][number][2]}",
            )
            for number, query in enumerate(asked)
        ],
    )


def _fleet(size: int, folder: Path) -> Store:
    """A store with the fleet whose year has that many rows; one that was generated before is used again."""
    root = folder / f"{size}"
    store = storage.open_store(Settings(home=folder, store=f"file://{root}"))
    if not (root / "complete").exists():
        console.say(f"  generating {size / 1e6:.0f} million rows ...")
        began = time.monotonic()
        generate(store, fleet_of(size, _NIGHTS))
        (root / "complete").touch()
        console.say(f"  generated in {time.monotonic() - began:.0f} s")
    return store


def _measured(store: Store, asked: Sequence[documented.Documented]) -> list[tuple[float, float, int]]:
    """For each query p50 and p95 in ms, and how many rows it gives."""
    began = time.perf_counter()
    with open_reader(store, threads=_THREADS) as reader:
        console.say(f"  opened in {(time.perf_counter() - began) * 1e3:.0f} ms, versions {reader.versions}")
        rows = [len(reader.query(query.sql).rows) for query in asked]  # and the footers are in the cache
        times = [[_ms(reader, query.sql) for query in asked] for _ in range(_ROUNDS)]  # interleaved
    by_query = (sorted(column) for column in zip(*times, strict=True))
    return [(t[_ROUNDS // 2], t[int(_ROUNDS * 0.95) - 1], count) for t, count in zip(by_query, rows, strict=True)]


def _ms(reader: Reader, sql: str) -> float:
    began = time.perf_counter()
    reader.query(sql)
    return (time.perf_counter() - began) * 1e3


def _write_docs() -> None:
    with tempfile.TemporaryDirectory(prefix="fleetmark-docs-") as folder:
        store = storage.open_store(Settings(home=Path(folder), store=f"file://{folder}/store"))
        text = documented.DOCUMENT.read_text()
        documented.DOCUMENT.write_text(documented.written(text, store))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, action="append", help="how many measurements; may be repeated")
    parser.add_argument("--keep", type=Path, help="folder to generate in and to reuse")
    parser.add_argument("--write-docs", action="store_true", help="write the output into docs/queries.md")
    given = parser.parse_args()
    if given.write_docs:
        _write_docs()
    else:
        main(given.rows or SIZES, given.keep)
