"""Runs of one case on one node, landed as the pipeline lands them."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import keys, storage
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tables import land, latest
from pipelines.tables.schema import TABLES

NIGHT = date(2026, 11, 20)


def run_of(night: date = NIGHT) -> str:
    return keys.run_id(datetime(night.year, night.month, night.day, 2, tzinfo=UTC), "test")


def rows(
    night: date = NIGHT,
    values: Sequence[float] = (1.0, 2.0, 6.0),
    node: str = "gpu-01",
    generation: int = 1,
    **more: Any,
) -> dict[str, pa.Table]:
    """The rows of one run: a repeat per value. `more` replaces columns of the measurements."""
    run = run_of(night)
    started = datetime(night.year, night.month, night.day, 2, tzinfo=UTC)
    shared = {
        "run_id": run, "month": f"{night:%Y-%m}", "night": night, "node": node, "cohort": "h200", "benchmark": "fio",
        "case": "rand_read", "attempt": 1, "environment_id": "env-1", "tool": "fio", "tool_version": "3.33",
        "simulated": False, "batch_id": f"{run}.{generation}-{'0' * 12}",
        "landed_at": started + timedelta(hours=generation),
    }  # fmt: skip
    jobs = [
        {**shared, "repeat": repeat, "job_id": f"{node}-{repeat}", "started_at": started + timedelta(minutes=repeat)}
        for repeat in range(1, len(values) + 1)
    ]
    measured = [
        {**job, "metric": "read_iops", "value": value, "unit": "1/s", "labels": [("direct_io", "true")], **more}
        for job, value in zip(jobs, values, strict=True)
    ]
    ended = {
        "suite": "quick", "trigger": "cli", "note": "", "outcome": "ok", "reason": "", "params": [], "facts": [],
        "notes": [], "exit_status": 0, "timed_out": False, "duration_s": 1.0, "lease_wait_s": 0.0,
    }  # fmt: skip
    return {
        "measurements": pa.Table.from_pylist(measured, schema=TABLES["measurements"].schema),
        "runs": pa.Table.from_pylist([{**job, **ended} for job in jobs], schema=TABLES["runs"].schema),
    }


def put(store: Store, landing: dict[str, pa.Table]) -> None:
    """Land the tables in their order, and fold the measurements into `latest`, as a landing does."""
    run, batch = (landing["measurements"][name][0].as_py() for name in ("run_id", "batch_id"))
    for name, table in landing.items():
        land.land_table(store, name, table, batch, run)
    latest.update(store, batch, landing["measurements"])


def land_nights(home: str, nights: Sequence[date]) -> None:
    """Land a run for each night, and every third one a second time; to be run in a process of its own."""
    store = storage.open_store(Settings(home=Path(home)))
    for number, night in enumerate(nights):
        put(store, rows(night))
        if number % 3 == 2:
            put(store, rows(night, generation=2))
