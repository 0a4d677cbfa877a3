"""Judging a run: its landed rows against the floors of its benchmarks, and the verdicts into their own table."""

from collections.abc import Iterator, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING

from pipelines import benchmark, keys
from pipelines.records import Plan
from pipelines.storage import Store
from pipelines.tables import landed, repeats
from pipelines.tables.landed import Landed
from pipelines.verdicts import rules
from pipelines.verdicts.rules import Verdict

if TYPE_CHECKING:
    import pyarrow as pa


def judge_run(store: Store, plan: Plan, at: datetime) -> None:
    """Land a verdict for every floor of every case on every node. The same rows give the same verdicts, landed once.

    Raises:
        Unknown: the run has not been landed.
        LandingConflict: see `land.land_table`.
    """
    from pipelines.tables import land

    rows = landed.read(store, plan.run_id)
    verdicts = tuple(floors(plan, rows))
    made_from = [rows.batch_id, [verdict.model_dump(mode="json") for verdict in verdicts]]
    batch = keys.batch_id(plan.run_id, made_from, keys.generation_of(rows.batch_id))
    land.land_table(store, "verdicts", table(plan.run_id, verdicts, batch, at), batch, plan.run_id)


def floors(plan: Plan, rows: Landed) -> Iterator[Verdict]:
    """The verdict on every floor of the plan's cases, in the plan's order."""
    expected = {
        (job.benchmark, job.case, floor.metric): floor
        for job in plan.jobs
        for descriptor in (benchmark.get(job.benchmark),)
        for floor in descriptor.floors(descriptor.params_of(job))
    }
    metrics = {metric for _, _, metric in expected}
    for each in repeats.of_run(plan, rows, metrics) if metrics else ():
        if floor := expected.get((each.benchmark, each.case, each.metric)):
            yield rules.floor(each, floor)


def table(run_id: str, verdicts: Sequence[Verdict], batch: str, at: datetime) -> "pa.Table":
    import pyarrow as pa

    from pipelines.tables.schema import VERDICTS

    night = date.fromisoformat(keys.run_date(run_id))
    shared = {"run_id": run_id, "month": f"{night:%Y-%m}", "night": night, "batch_id": batch, "landed_at": at}
    rows = [
        {**shared, **verdict.model_dump(exclude={"evidence"}), "evidence": verdict.evidence.model_dump_json()}
        for verdict in verdicts
    ]
    return pa.Table.from_pylist(rows, schema=VERDICTS)
