"""A run on one screen: a line per case and direction with bandwidth, IOPS and the percentiles of latency. Pure."""

from pipelines.tables.render import format_value
from pipelines.tables.results import Summary

COLUMNS = {
    "bandwidth": "bandwidth",
    "iops": "IOPS",
    "latency_p50": "p50",
    "latency_p99": "p99",
    "latency_p999": "p99.9",
}
"""The quantity behind the direction in a metric's name (`read_latency_p99`), and its heading."""


def overview(summaries: tuple[Summary, ...]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Headings and rows of text; medians of the repeats, with units. A metric that has no column is left out."""
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for summary in summaries:
        direction, _, quantity = summary.metric.partition("_")
        if quantity in COLUMNS:
            line = lines.setdefault((summary.node, summary.case, direction), {})
            line[quantity] = format_value(summary.median, summary.unit)
    rows = tuple((*key, *(line.get(quantity, "") for quantity in COLUMNS)) for key, line in lines.items())
    return ("node", "case", "", *COLUMNS.values()), rows
