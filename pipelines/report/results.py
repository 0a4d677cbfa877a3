"""The results of a run as its page shows them: a card for each case, by node, or over all nodes when they are many."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from pipelines import benchmark, histograms
from pipelines.records import Outcome, Plan, Record
from pipelines.report import pictures
from pipelines.report.pictures import Distribution, Strip
from pipelines.tables import repeats
from pipelines.tables.landed import Landed
from pipelines.tables.repeats import Repeats

if TYPE_CHECKING:
    import pyarrow as pa

MOST_NODES = 12
"""With more nodes than this a page shows the fleet and not every node; the tables have them all."""

_REASONS = 3

Case = tuple[str, str]
"""Benchmark and case."""


class Line(Record):
    """A metric of a case: median and extremes in `unit`, of a node's repeats or of the nodes' medians."""

    metric: str
    meaning: str
    unit: str
    median: float
    low: float
    high: float
    values: int
    strip: Strip


class Picture(Record):
    metric: str
    shape: Distribution


class Card(Record):
    """A case: the metrics that it must give, whatever else it gave, and its latencies."""

    benchmark: str
    case: str
    counted: str  # "3 of 3 repeats"
    complete: bool
    absent: tuple[str, ...]  # why the others are missing
    required: tuple[Line, ...]
    others: tuple[Line, ...]
    pictures: tuple[Picture, ...]


class Section(Record):
    """The cards of one node, or of all nodes together: `node` is None then."""

    node: str | None
    cohort: str | None
    cards: tuple[Card, ...]


def sections(plan: Plan, landed: Landed) -> tuple[Section, ...]:
    """One section for each node in the plan's order; a single one when there are more than MOST_NODES."""
    by_node = len(plan.nodes) <= MOST_NODES
    found = tuple(repeats.of_run(plan, landed))
    tops: dict[tuple[str, str, str], float] = {}
    for each in found:
        key = (each.benchmark, each.case, each.metric)
        tops[key] = max((*each.values, tops.get(key, 0.0)))
    bins = _bins(landed)
    axis = pictures.decades(tuple(bins.values()))
    required = _required(plan)
    made = []
    for node in plan.nodes if by_node else (None,):
        name = node.name if node else None
        here = [each for each in found if name in {None, each.node}]
        cards = []
        for case in dict.fromkeys((each.benchmark, each.case) for each in here):
            of_case = [each for each in here if (each.benchmark, each.case) == case]
            shapes = _pictures(bins, name, case, axis)
            cards.append(_card(case, of_case, by_node, required[case], tops, shapes))
        made.append(Section(node=name, cohort=node.cohort if node else None, cards=tuple(cards)))
    return tuple(made)


def _required(plan: Plan) -> Mapping[Case, frozenset[str]]:
    found: dict[Case, frozenset[str]] = {}
    for job in plan.jobs:
        if (job.benchmark, job.case) not in found:
            descriptor = benchmark.get(job.benchmark)
            found[job.benchmark, job.case] = descriptor.required(descriptor.params_of(job))
    return found


def _card(
    case: Case,
    found: Sequence[Repeats],
    by_node: bool,
    required: frozenset[str],
    tops: Mapping[tuple[str, str, str], float],
    shapes: tuple[Picture, ...],
) -> Card:
    lines = []
    for metric in dict.fromkeys(each.metric for each in found if each.measured):
        same = [each for each in found if each.metric == metric and each.measured]
        values = [value for each in same for value in (each.values if by_node else (median(each.values),))]
        lines.append(_line(benchmark.get(case[0]).metric(metric), values, tops[*case, metric]))
    wanted = [each for each in found if each.metric in required] or found
    planned, measured = (
        (max(len(each.measured) + len(each.absent) for each in wanted), min(len(each.measured) for each in wanted))
        if by_node
        else (len({each.node for each in wanted}), len({each.node for each in wanted if not each.absent}))
    )
    return Card(
        benchmark=case[0],
        case=case[1],
        counted=f"{measured:,} of {planned:,} {'repeats' if by_node else 'nodes complete'}",
        complete=measured == planned,
        absent=tuple(dict.fromkeys(absence.reason for each in wanted for absence in each.absent))[:_REASONS],
        required=tuple(line for line in lines if line.metric in required),
        others=tuple(line for line in lines if line.metric not in required),
        pictures=shapes,
    )


def _line(metric: benchmark.Metric, values: Sequence[float], top: float) -> Line:
    middle, low, high = median(values), min(values), max(values)
    return Line(
        metric=metric.name,
        meaning=metric.meaning,
        unit=metric.unit,
        median=middle,
        low=low,
        high=high,
        values=len(values),
        strip=pictures.strip(values, middle, top, metric.unit),
    )


Bins = Mapping[tuple[str, str, str, str], Mapping[float, int]]
"""By node, benchmark, case and metric: counts by value, ascending."""


def _bins(landed: Landed) -> Bins:
    """The histograms of jobs that ended ok, repeats added up."""
    import pyarrow.compute as pc

    ok = landed.runs.filter(pc.equal(landed.runs["outcome"], Outcome.OK.value))["job_id"]
    rows = landed.histograms.filter(pc.is_in(landed.histograms["job_id"], value_set=ok.combine_chunks()))
    found: dict[tuple[str, str, str, str], dict[float, int]] = {}
    for row in _added_up(rows).to_pylist():
        key = (row["node"], row["benchmark"], row["case"], row["metric"])
        found.setdefault(key, {})[row["value"]] = row["count_sum"]
    return found


def _added_up(rows: "pa.Table") -> "pa.Table":
    """One row for each bin value of each node, case and metric, ascending; in Arrow: a fleet has millions of bins."""
    import pyarrow as pa
    import pyarrow.compute as pc

    bins = rows["bins"].combine_chunks()
    flat = pc.list_flatten(bins)
    names = ["node", "benchmark", "case", "metric"]
    owners = rows.select(names).take(pc.list_parent_indices(bins))
    table = owners.append_column("value", pc.struct_field(flat, "value")).append_column(
        "count", pa.chunked_array([pc.struct_field(flat, "count")])
    )
    keys = [*names, "value"]
    return table.group_by(keys).aggregate([("count", "sum")]).sort_by([(key, "ascending") for key in keys])


def _pictures(bins: Bins, node: str | None, case: Case, axis: tuple[int, int]) -> tuple[Picture, ...]:
    """A picture of each latency of the case: of the node, or of all nodes added up."""
    by_metric: dict[str, list[Mapping[float, int]]] = {}
    for (where, name, of_case, metric), counts in bins.items():
        if (name, of_case) == case and node in {None, where}:
            by_metric.setdefault(metric, []).append(counts)
    return tuple(
        Picture(metric=metric, shape=pictures.distribution(histograms.merged(parts), axis, "s"))
        for metric, parts in by_metric.items()
    )
