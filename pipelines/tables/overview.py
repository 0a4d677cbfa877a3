"""A run on one screen. Pure.

Of storage a line per case and direction with bandwidth, IOPS and percentiles of latency; of the rest, one per metric.
"""

from collections.abc import Iterable

from pipelines.tables.render import Column, Result, format_value
from pipelines.tables.results import Summary

_HEADINGS = {  # the quantity behind the direction in a metric's name (`read_latency_p99`), and its heading
    "bandwidth": "bandwidth",
    "iops": "IOPS",
    "latency_p50": "p50",
    "latency_p99": "p99",
    "latency_p999": "p99.9",
}


def overview(summaries: tuple[Summary, ...]) -> Result:
    """Of storage: the median of the repeats with half their spread in percent. Other metrics are left out."""
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for each in summaries:
        direction, _, quantity = each.metric.partition("_")
        if quantity in _HEADINGS:
            key = (each.node, f"{each.benchmark} {each.case}", direction)
            lines.setdefault(key, {"repeats": str(each.repeats)})[quantity] = _with_spread(each)
    names = ("node", "case", "", *_HEADINGS.values(), "repeats")
    return Result(
        columns=tuple(Column(name=name, type="VARCHAR") for name in names),
        rows=tuple((*key, *(line.get(name) for name in _HEADINGS), line["repeats"]) for key, line in lines.items()),
    )


def others(summaries: tuple[Summary, ...]) -> Result:
    """Of cases of which `overview` says nothing: each metric, with the labels by which a case has several of it."""
    shown = {(each.node, each.benchmark, each.case) for each in summaries if _quantity(each) in _HEADINGS}
    left = [each for each in summaries if (each.node, each.benchmark, each.case) not in shown]
    columns = ("node", "benchmark", "case", "metric", "of", "median", "repeats")
    return Result(
        columns=tuple(Column(name=name, type="VARCHAR") for name in columns),
        rows=tuple(
            (each.node, each.benchmark, each.case, each.metric, of, _with_spread(each), str(each.repeats))
            for group in _alike(left)
            for each, of in zip(group, _telling(group), strict=True)
        ),
    )


def _alike(summaries: Iterable[Summary]) -> Iterable[list[Summary]]:
    """Those of the same metric of the same case together, which only their labels tell apart."""
    alike: dict[tuple[str, ...], list[Summary]] = {}
    for each in summaries:
        alike.setdefault((each.node, each.benchmark, each.case, each.metric), []).append(each)
    return alike.values()


def _telling(alike: list[Summary]) -> list[str]:
    """The labels that differ among them, as text."""
    names = sorted({name for each in alike for name in each.labels})
    differing = [name for name in names if len({each.labels.get(name) for each in alike}) > 1]
    return [" ".join(f"{name}={each.labels[name]}" for name in differing if name in each.labels) for each in alike]


def _quantity(summary: Summary) -> str:
    return summary.metric.partition("_")[2]


def _with_spread(summary: Summary) -> str:
    text = format_value(summary.median, summary.unit)
    if summary.repeats < 2 or not summary.median:
        return text
    return f"{text} ±{(summary.high - summary.low) / 2 / abs(summary.median):.0%}"
