"""A year of a made-up fleet, written straight into a store's tables: the input of the query benchmark and of its docs.

`python -m perf.generate --store file:///tmp/fleet --nodes 1000 --nights 365` writes 22 million measurements.
"""

import argparse
import time
from collections.abc import Iterator
from datetime import date
from itertools import groupby
from pathlib import Path

import pyarrow as pa

from perf.fleet import Block, Fleet
from pipelines import storage
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tables import delta, latest
from pipelines.tables.schema import TABLES


def fleet_of(rows: int, nights: int = 365) -> Fleet:
    """The fleet whose year is about `rows` measurements."""
    return Fleet(nodes=max(1, round(rows / nights / 60)), nights=nights)


def generate(store: Store, fleet: Fleet) -> None:
    """Write every table of the fleet; within a table, one commit per month and then one per night."""
    for nights in _chunks(fleet):
        block = Block(fleet, nights)
        for table, batches in (
            ("environments", block.environments()),
            ("histograms", block.histograms()),
            ("measurements", block.measurements()),
            ("quarantine", block.quarantine()),
            ("verdicts", block.verdicts()),
            ("runs", block.runs()),
        ):
            schema = TABLES[table].schema
            reader = pa.RecordBatchReader.from_batches(schema, (b for t in batches for b in t.to_batches()))
            _append(store, table, reader)
    latest.rebuild(store)


def _append(store: Store, table: str, rows: pa.RecordBatchReader) -> None:
    from deltalake import write_deltalake

    write_deltalake(
        delta.open_table(store, table),
        rows,
        mode="append",
        target_file_size=2**40,
        writer_properties=delta.writer(TABLES[table]),
    )


def _chunks(fleet: Fleet) -> Iterator[tuple[date, ...]]:
    dates = fleet.dates
    settled, fresh = dates[: -fleet.nightly], dates[-fleet.nightly :]
    for _, nights in groupby(settled, key=lambda night: (night.year, night.month)):
        yield tuple(nights)
    for night in fresh:
        yield (night,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True, help="URL of an empty object store")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--nights", type=int, default=365)
    given = parser.parse_args()
    began = time.monotonic()
    generate(storage.open_store(Settings(home=Path.cwd(), store=given.store)), Fleet(given.nodes, given.nights))
    print(f"generated in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
