"""The table `usage`: what a run took of each node, landed once with its batch."""

import re
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import keys, stages, storage
from pipelines.datasets import names
from pipelines.datasets.events import Arrival, Staging, Transfer
from pipelines.records import Outcome, Plan, RawOutput, Refusal
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tables import land, render, usage
from pipelines.tables.query import open_reader
from pipelines.tables.schema import USAGE
from pipelines.tables.usage import Used
from tests import make, processes
from tests.tables import landings, nights

DOCUMENT = (Path(__file__).parents[2] / "docs/tables.md").read_text()
DOCUMENTED = re.search(r"^## usage\n.*?```sql\n(?P<sql>.*?)```\n\n```text\n(?P<output>.*?)```", DOCUMENT, re.M | re.S)
REFUSED = Refusal(outcome=Outcome.CONTENDED, reason="somebody else held the node")


def raw(node: str = "gpu-01", number: int = 1, duration_s: float = 2.5, attempt: int = 1, **fields: Any) -> RawOutput:
    """Of a job that may write a MiB; started so many minutes after the run."""
    job = make.job(f"{node}-{number}", node=node)
    started_at = make.AT + timedelta(minutes=number)
    return make.raw(job, duration_s=duration_s, attempt=attempt, started_at=started_at, **fields)


def handed_in(store: Store, *given: RawOutput, left_out: tuple[str, ...] = ()) -> Plan:
    """The plan of these jobs, and of one on each node that was left out."""
    jobs = {each.job.job_id: each.job for each in given}
    jobs |= {node: make.job(node, node=node) for node in left_out}
    for each in given:
        landings.put(store, each)
    return stages.publish_plan(store, make.plan(*jobs.values()))


def rows_of(store: Store) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = landings.rows_of(store, "usage").sort_by("node").to_pylist()
    return rows


def staged(store: Store, node: str, attempt: int, *fetched: int, run: str = make.RUN_ID) -> str:
    staging_id = names.staging_of_run(run, attempt)
    transfers = [
        Transfer(
            dataset="photos",
            version="0" * 32,
            shard=f"{number:064x}",
            size_bytes=max(size, 1),
            arrival=Arrival.FETCHED if size else Arrival.PRESENT,
            fetched_bytes=size,
            duration_s=0.5,
            started_at=make.AT,
        )
        for number, size in enumerate(fetched)
    ]
    shared = {"store": "file:///srv/store", "cache": "/mnt/nvme/cache", "environment_id": "env-1"}
    key = names.staging_key(staging_id, node)
    record = Staging(staging_id=staging_id, node=node, transfers=tuple(transfers), **shared)
    store.create(key, record.model_dump_json().encode())
    return key


def test_a_row_says_what_a_run_took_of_a_node(any_settings: Settings) -> None:
    store = storage.open_store(any_settings)
    handed_in(store, raw(number=1), raw(number=2, duration_s=4.0))
    staged(store, "gpu-01", 1, 1000, 0, 500)
    batch = landings.ready(store)
    usage.land_batch(store, batch)
    assert rows_of(store) == [
        {
            "run_id": make.RUN_ID,
            "month": "2026-11",
            "night": date(2026, 11, 21),
            "tenant": "default",
            "suite": "quick",
            "trigger": "cli",
            "node": "gpu-01",
            "cohort": "h200",
            "attempts": 2,
            "node_seconds": 6.5,
            "written_bytes": 2 * 2**20,
            "staged_bytes": 1500,
            "started_at": make.AT + timedelta(minutes=1),
            "batch_id": batch,
            "landed_at": make.AT,
        }
    ]


def test_every_attempt_is_counted_and_only_a_started_tool_may_have_written(store: Store) -> None:
    killed = {"exit_status": None, "signal": 9}
    never = {"exit_status": None, "refusal": REFUSED, "argv": ()}
    handed_in(
        store,
        raw("gpu-01", attempt=1, duration_s=1.0, **killed),
        raw("gpu-01", attempt=2, duration_s=2.0),
        raw("gpu-02", attempt=1, duration_s=0.0, **never),
    )
    usage.land_batch(store, landings.ready(store))
    counted = [(row["node"], row["attempts"], row["node_seconds"], row["written_bytes"]) for row in rows_of(store)]
    assert counted == [("gpu-01", 2, 3.0, 2 * 2**20), ("gpu-02", 1, 0.0, 0)]


def test_what_watched_beside_a_job_is_not_charged(store: Store) -> None:
    beside = raw("gpu-01", number=2, duration_s=3.0)
    watched = beside.model_copy(update={"job": beside.job.model_copy(update={"beside": "gpu-01-1"})})
    handed_in(store, raw("gpu-01", duration_s=2.0), watched)
    usage.land_batch(store, landings.ready(store))
    assert [(row["attempts"], row["node_seconds"]) for row in rows_of(store)] == [(1, 2.0)]


def test_a_node_that_was_not_reached_has_taken_nothing_and_its_row_says_so(store: Store) -> None:
    handed_in(store, raw("gpu-01"), left_out=("gpu-02",))
    usage.land_batch(store, landings.ready(store))
    row = rows_of(store)[1]
    took = {name: row[name] for name in ("node", "attempts", "node_seconds", "written_bytes", "started_at")}
    assert took == {"node": "gpu-02", "attempts": 0, "node_seconds": 0.0, "written_bytes": 0, "started_at": None}


def test_bytes_staged_are_those_of_every_attempt_at_this_run_and_of_no_other(store: Store) -> None:
    staged(store, "gpu-01", 1, 100)
    staged(store, "gpu-01", 2, 10)
    staged(store, "gpu-02", 1, 1)
    staged(store, "gpu-01", 1, 10_000, run="20261121T020000Z-ffffff")
    assert usage.staged_bytes(store, make.RUN_ID) == {"gpu-01": 110, "gpu-02": 1}


def test_a_damaged_record_of_a_staging_is_left_out(store: Store) -> None:
    staged(store, "gpu-01", 1, 100)
    store.replace(staged(store, "gpu-02", 1, 100), b"{}")
    assert usage.staged_bytes(store, make.RUN_ID) == {"gpu-01": 100}


def test_a_batch_raced_by_eight_processes_is_charged_once(any_settings: Settings) -> None:
    store = storage.open_store(any_settings)
    handed_in(store, raw("gpu-01"), raw("gpu-02"))
    batch = landings.ready(store)
    processes.at_once(_land, [(any_settings, batch)] * 8)
    assert Counter(row["node"] for row in rows_of(store)) == {"gpu-01": 1, "gpu-02": 1}


def _land(settings: Settings, batch: str) -> int:
    return usage.land_batch(storage.open_store(settings), batch)


def test_a_later_batch_of_the_run_takes_the_place_of_what_was_charged_and_an_earlier_one_does_not(store: Store) -> None:
    handed_in(store, raw(attempt=1))
    first = landings.ready(store)
    landings.put(store, raw(attempt=2))
    second = landings.ready(store)
    for batch in (first, second, first):
        usage.land_batch(store, batch)
    assert [(row["batch_id"], row["attempts"]) for row in rows_of(store)] == [(second, 2)]


def test_the_other_tables_land_beside_it_as_they_did(store: Store) -> None:
    handed_in(store, raw())
    batch = landings.ready(store)
    usage.land_batch(store, batch)
    land.land_batch(store, batch)
    assert landings.standing(store) == landings.expected(store, batch)


def test_recent_runs_are_told_with_what_they_took_since(store: Store) -> None:
    handed_in(store, raw("gpu-01", number=1), raw("gpu-02", number=30))
    usage.land_batch(store, landings.ready(store))
    shared = {"run_id": make.RUN_ID, "tenant": "default", "trigger": "cli"}
    assert usage.recent(store, make.AT) == (Used(node_seconds=5.0, **shared),)
    assert usage.recent(store, make.AT + timedelta(minutes=10)) == (Used(node_seconds=2.5, **shared),)
    assert usage.recent(store, make.AT + timedelta(days=2)) == ()


def test_a_store_without_runs_has_no_usage(store: Store) -> None:
    assert usage.recent(store, make.AT) == ()


def documented(store: Store) -> None:
    """A month of two tenants' runs, and the nightly ones."""
    rows = []
    for day in range(1, 21):
        night = date(2026, 11, day)
        for tenant, trigger, every, nodes, seconds in (
            ("default", "schedule", 1, 12, 312.0),
            ("ml", "manual", 2, 3, 94.5),
            ("storage", "manual", 5, 8, 640.0),
        ):
            rows += [_charged(night, tenant, trigger, number, seconds) for number in range(nodes) if not day % every]
    run = make.RUN_ID
    land.land_table(store, "usage", pa.Table.from_pylist(rows, schema=USAGE), keys.batch_id(run, 1), run)
    nights.put(store, nights.rows(date(2026, 11, 20)))


def _charged(night: date, tenant: str, trigger: str, number: int, seconds: float) -> dict[str, Any]:
    staged = 12_884_901_888 if tenant == "ml" else 0
    return {
        "run_id": f"{nights.run_of(night)}-{tenant}", "month": "2026-11", "night": night, "tenant": tenant,
        "suite": "storage", "trigger": trigger, "node": f"gpu-{number:04}", "cohort": "h100", "attempts": 18,
        "node_seconds": seconds, "written_bytes": 8 * 2**30, "staged_bytes": staged, "started_at": make.AT,
        "batch_id": "-", "landed_at": make.AT,
    }  # fmt: skip


def test_the_documented_query_gives_the_output_that_is_shown(store: Store) -> None:
    assert DOCUMENTED is not None
    documented(store)
    with open_reader(store) as reader:
        assert render.as_table(reader.query(DOCUMENTED["sql"])) + "\n" == DOCUMENTED["output"]
