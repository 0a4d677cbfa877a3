"""A run on one screen: a line per case and direction with bandwidth, IOPS and the percentiles of latency. Pure."""

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
    """Text for people: the median of the repeats with half their spread in percent. Other metrics are left out."""
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for each in summaries:
        direction, _, quantity = each.metric.partition("_")
        if quantity in _HEADINGS:
            line = lines.setdefault((each.node, each.case, direction), {"repeats": str(each.repeats)})
            line[quantity] = _with_spread(each)
    names = ("node", "case", "", *_HEADINGS.values(), "repeats")
    return Result(
        columns=tuple(Column(name=name, type="VARCHAR") for name in names),
        rows=tuple((*key, *(line.get(name) for name in _HEADINGS), line["repeats"]) for key, line in lines.items()),
    )


def _with_spread(summary: Summary) -> str:
    text = format_value(summary.median, summary.unit)
    if summary.repeats < 2 or not summary.median:
        return text
    return f"{text} ±{(summary.high - summary.low) / 2 / abs(summary.median):.0%}"
