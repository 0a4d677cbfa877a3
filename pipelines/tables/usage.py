"""The table `usage`: what each run took of each node, and whom it is charged to. Landed once with the run's batch."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from pipelines import keys
from pipelines.datasets import names
from pipelines.datasets.events import Staging
from pipelines.records import Plan, Record
from pipelines.storage import Store
from pipelines.tables import datasets, files, land
from pipelines.tables.schema import USAGE

log = logging.getLogger(__name__)

_OF_RUN = ("run_id", "month", "night", "batch_id", "landed_at")
_OF_ATTEMPT = ("node", "cohort", "job_id", "attempt", "duration_s", "started_at", "exit_status", "signal", "peer")


class Used(Record):
    """What one run took of the fleet, of all of its nodes together."""

    run_id: str
    tenant: str
    trigger: str
    node_seconds: float


@dataclass
class _Taken:
    attempts: int = 0
    node_seconds: float = 0.0
    written_bytes: int = 0
    started_at: datetime | None = None


def land_batch(store: Store, batch: str) -> int:
    """Commit the batch's rows, in place of those of an earlier batch of its run. Returns the table's version.

    Safe to repeat and to race. Called before the run's other tables land, so that at no moment a run is neither
    planned nor used.

    Raises:
        KeyNotFound: the batch was never validated.
        LandingConflict, StoreRefused, StoreUnreachable, UnsafeStore: see `land.land_table`.
    """
    from pipelines import stages

    run = keys.run_of(batch)
    ended = files.read(store, keys.landing_key(batch, "runs"))
    rows = rows_of(stages.load_plan(store, run), ended, staged_bytes(store, run))
    return land.land_table(store, "usage", rows, batch, run)


def rows_of(made: Plan, ended: pa.Table, staged: Mapping[str, int]) -> pa.Table:
    """A row for each node of the plan, from the run's rows in `runs` and the bytes staged by node. Pure.

    `node_seconds` is the time that raw outputs took, of a test between two nodes for both. `written_bytes` is the most
    that the tools which were started may have written, for tools do not tell. A node where nothing was attempted has
    taken nothing, and its row says so. What watched beside another job is not counted.
    """
    if not ended.num_rows:
        return USAGE.empty_table()
    beside = {job.job_id for job in made.jobs if job.beside}  # in the time of another job
    may_write = {job.job_id: job.written_bytes for job in made.jobs}
    cohorts = {node.name: node.cohort for node in made.nodes}
    taken = {node.name: _Taken() for node in made.nodes}
    for row in ended.select(_OF_ATTEMPT).to_pylist():
        if row["job_id"] in beside:
            continue
        cohorts.setdefault(row["node"], row["cohort"])
        _add(taken.setdefault(row["node"], _Taken()), row, may_write.get(row["job_id"], 0))
        if row["peer"] in taken:  # it was held as long, and that row is the only one of both
            taken[row["peer"]].node_seconds += row["duration_s"] or 0.0
    shared = {
        **{name: ended[name][0].as_py() for name in _OF_RUN},
        "tenant": made.tenant,
        "suite": made.suite,
        "trigger": made.trigger,
    }
    rows = [
        {**shared, "node": node, "cohort": cohorts[node], "staged_bytes": staged.get(node, 0), **vars(each)}
        for node, each in taken.items()
    ]
    return pa.Table.from_pylist(rows, schema=USAGE)


def _add(taken: _Taken, row: Mapping[str, Any], may_write: int) -> None:
    if row["attempt"] is None:
        return
    taken.attempts += 1
    taken.node_seconds += row["duration_s"] or 0.0
    if row["exit_status"] is not None or row["signal"] is not None:  # a tool was started, and ended
        taken.written_bytes += may_write
    if row["started_at"] is not None:
        taken.started_at = min(taken.started_at or row["started_at"], row["started_at"])


def staged_bytes(store: Store, run_id: str) -> Mapping[str, int]:
    """The bytes that each node has fetched for the run, in every attempt. A damaged record is told of and left out."""
    fetched: Counter[str] = Counter()
    for key, data in _stagings(store, run_id):
        try:
            staging = Staging.model_validate_json(data)
        except ValidationError as e:
            log.warning("record of a staging left out: key=%s problem=%s", key, e.errors()[0]["msg"])
            continue
        fetched[staging.node] += sum(transfer.fetched_bytes for transfer in staging.transfers)
    return fetched


def _stagings(store: Store, run_id: str) -> Iterator[tuple[str, bytes]]:
    for staging_id in datasets.stagings_of(store, run_id):
        found = store.keys_under(names.staging_prefix(staging_id))
        yield from zip(found, store.read_many(found), strict=True)


def recent(store: Store, since: datetime) -> tuple[Used, ...]:
    """Every landed run of the nights since, with the node-seconds that it took on nodes where it began since."""
    from pipelines.tables.query import open_reader

    sql = f"""
        SELECT run_id, any_value(tenant), any_value("trigger"),
               coalesce(sum(node_seconds) FILTER (started_at >= TIMESTAMPTZ '{since.isoformat()}'), 0)
        FROM usage
        WHERE night >= DATE '{since.astimezone(UTC).date() - timedelta(days=1)}'
        GROUP BY run_id
    """  # noqa: S608
    with open_reader(store) as reader:
        return tuple(
            Used(run_id=run, tenant=tenant, trigger=trigger, node_seconds=seconds)
            for run, tenant, trigger, seconds in reader.query(sql).rows
        )
