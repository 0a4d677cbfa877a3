"""The repeats of a run, from its landed rows: of each case on each node, measured or absent with a reason. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from pipelines import benchmark
from pipelines.records import Job, Labels, Outcome, Plan, Record
from pipelines.tables.landed import Landed

if TYPE_CHECKING:
    import pyarrow as pa


class Repeat(Record):
    repeat: PositiveInt
    value: float  # in the metric's base unit
    raw_key: str | None


class Absence(Record):
    """A planned repeat without a believed value."""

    repeat: PositiveInt
    reason: str


class Repeats(Record):
    """Every planned repeat of one metric of one case on one node: believed values, and why the others are absent.

    Of a test between two nodes, those of the node as client with one peer, which is one of the labels.
    """

    node: str
    cohort: str
    benchmark: str
    case: str
    metric: str
    labels: Labels
    measured: tuple[Repeat, ...]
    absent: tuple[Absence, ...] = ()

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(each.value for each in self.measured)

    @property
    def median(self) -> float | None:
        return median(self.values) if self.measured else None


def of_run(plan: Plan, landed: Landed, metrics: Iterable[str] = ()) -> Iterator[Repeats]:
    """The repeats of each case and metric in the order of the plan and the descriptor; of `metrics` only, when given.

    A metric that gave no value at all has one entry without values, if its case requires it or `metrics` names it.
    """
    wanted = frozenset(metrics)
    values = _values(landed.measurements)
    refused = {key: reason for key, _, reason in _rows(landed.quarantine, "reason")}
    failures = _failures(landed.runs)
    cohorts = {node.name: node.cohort for node in plan.nodes}
    in_order = sorted(plan.jobs, key=_case_order(plan))
    cases = groupby(in_order, key=lambda job: (job.node, job.benchmark, job.case, job.dataset, job.peer))
    for (node, name, case, _, peer), jobs in cases:
        planned = tuple(jobs)
        descriptor = benchmark.get(name)
        required = descriptor.required(descriptor.params_of(planned[0]))
        for metric in (each.name for each in descriptor.described):
            if wanted and metric not in wanted:
                continue
            sets = sorted({labels for job in planned for labels, _ in values.get((job.job_id, metric), ())})
            for labels in sets or ([_of(peer)] if metric in required or metric in wanted else []):
                measured, absent = [], []
                for job in planned:
                    found = [each for own, each in values.get((job.job_id, metric), ()) if own == labels]
                    measured += [Repeat(repeat=job.repeat, value=value, raw_key=raw) for value, raw in found]
                    if not found:
                        failure = failures.get(job.job_id, "its job has no row in runs")
                        why = failure or refused.get((job.job_id, metric)) or "its job ended ok without it"
                        absent.append(Absence(repeat=job.repeat, reason=why))
                yield Repeats(
                    node=node,
                    cohort=cohorts[node],
                    benchmark=name,
                    case=case,
                    metric=metric,
                    labels=dict(labels),
                    measured=tuple(measured),
                    absent=tuple(absent),
                )


def _case_order(plan: Plan) -> Any:
    """Sorts jobs by node, then by the place of their case in the plan, then by peer and repeat."""
    nodes = {node.name: place for place, node in enumerate(plan.nodes)}
    cases: dict[tuple[str, str, str | None], int] = {}
    for job in plan.jobs:
        cases.setdefault((job.benchmark, job.case, job.dataset), len(cases))

    def place(job: Job) -> tuple[int, int, int, int]:
        peer = nodes[job.peer] if job.peer else 0
        return nodes[job.node], cases[job.benchmark, job.case, job.dataset], peer, job.repeat

    return place


Labelled = tuple[tuple[str, str], ...]


def _of(peer: str | None) -> Labelled:
    return (("peer", peer),) if peer else ()


def _rows(table: "pa.Table", *columns: str) -> Iterator[tuple[Any, ...]]:
    """((job_id, metric), labels, *columns) of each row."""
    names = ("job_id", "metric", "labels", *columns)
    for job_id, metric, labels, *rest in zip(*(table[name].to_pylist() for name in names), strict=True):
        yield (job_id, metric), tuple(sorted(labels or ())), *rest


def _values(measurements: "pa.Table") -> Mapping[tuple[str, str], list[tuple[Labelled, tuple[float, str | None]]]]:
    found: dict[tuple[str, str], list[tuple[Labelled, tuple[float, str | None]]]] = {}
    for key, labels, value, raw_key in _rows(measurements, "value", "raw_key"):
        found.setdefault(key, []).append((labels, (value, raw_key)))
    return found


def _failures(runs: "pa.Table") -> Mapping[str, str]:
    """By job: outcome and reason of its last attempt; empty when that ended ok."""
    rows = runs.select(["job_id", "attempt", "outcome", "reason"]).sort_by([("attempt", "ascending")]).to_pylist()
    return {row["job_id"]: "" if row["outcome"] == Outcome.OK else f"{row['outcome']}: {row['reason']}" for row in rows}
