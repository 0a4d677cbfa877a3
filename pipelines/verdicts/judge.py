"""Judging a run: its rows against floors, its nodes against each other; the verdicts have a table of their own."""

from collections.abc import Iterator, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING

from pipelines import benchmark, isolation, keys
from pipelines.isolation import Trial
from pipelines.records import Outcome, Plan
from pipelines.storage import Store
from pipelines.tables import landed, repeats
from pipelines.tables.landed import Landed
from pipelines.verdicts import rules
from pipelines.verdicts.rules import Verdict

if TYPE_CHECKING:
    import pyarrow as pa

_VALUE = ("job_id", "metric", "value")
_ENDING = ("job_id", "attempt", "outcome", "facts")


def judge_run(store: Store, plan: Plan, at: datetime) -> None:
    """Land a verdict for every floor of every case on every node, and on each node of its pairs.

    The same rows give the same verdicts, landed once.

    Raises:
        Unknown: the run has not been landed.
        LandingConflict: see `land.land_table`.
    """
    from pipelines.tables import land

    rows = landed.read(store, plan.run_id)
    verdicts = (*floors(plan, rows), *partners(plan, rows))
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


def partners(plan: Plan, rows: Landed) -> Iterator[Verdict]:
    """The verdict on each node of the plan's pairs, for every case in which they met."""
    cohorts = {node.name: node.cohort for node in plan.nodes}
    if not plan.paired_nodes():
        return
    for each in isolation.judgements(plan, isolation.results(_trials(plan, rows))):
        yield rules.partners(each, benchmark.get(each.benchmark).compared, cohorts[each.node])


def _trials(plan: Plan, rows: Landed) -> Iterator[Trial]:
    """The attempts at tests between two nodes, as they landed."""
    compared = {job.job_id: benchmark.get(job.benchmark).compared.name for job in plan.jobs if job.peer}
    values: dict[str, list[float]] = {}
    for job_id, metric, value in zip(*(rows.measurements[name].to_pylist() for name in _VALUE), strict=True):
        if compared.get(job_id) == metric:
            values.setdefault(job_id, []).append(value)
    ended = rows.runs.select(_ENDING).sort_by([("attempt", "ascending")])
    for job_id, _, outcome, facts in zip(*(ended[name].to_pylist() for name in _ENDING), strict=True):
        if job_id in compared:
            yield Trial(job_id, Outcome(outcome), values.get(job_id, ()), dict(facts))


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
