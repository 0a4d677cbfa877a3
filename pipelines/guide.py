"""docs/benchmarks.md: every benchmark as its descriptor says it is; `python -m pipelines.guide` prints it. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.benchmark import COMMON_METRICS, Benchmark, Metric, discover

_HEAD = """\
# The benchmarks

Generated from the descriptors by `make docs`. `fleetmark bench show NAME` prints the same on a node, and
`fleetmark bench run NAME --param PARAMETER=VALUE` runs one there, with or without an inventory. A value outside a
metric's honest range is put into quarantine: the tool or its parser is broken, never the hardware. A metric that could
not be measured has no row.
"""

_COMMON = """\
## Metrics of every benchmark

What telemetry tells of the node while the tool ran, where there is a source of it ([telemetry.md](telemetry.md)).
"""


def page(benchmarks: Iterable[Benchmark]) -> str:
    """The page as Markdown."""
    given = list(benchmarks)
    index = table(
        ("benchmark", "what it measures", "tool", "how often", "needs"),
        [
            (f"[{each.name}](#{each.name})", each.title, f"`{each.tool}`", each.cadence, ", ".join(sorted(each.needs)))
            for each in given
        ],
    )
    return "\n".join((_HEAD, index, _COMMON, _metrics(COMMON_METRICS), *map(_section, given)))


def _section(each: Benchmark) -> str:
    minimum = ".".join(str(part) for part in each.minimum_version)
    since = f" {minimum} or later" if minimum else ""
    tool = f"Tool: `{each.tool}`{since} (`{each.install_hint}`). Source: <{each.source}>."
    writes = " It writes to the node's scratch directory." if each.writes else ""
    if each.device:
        writes = " It writes to a whole disk, whose content is lost, once somebody has approved that."
    pair = " It runs between two nodes." if each.pair else ""
    parameters = [
        (f"`{name}`", default(field), str(field.get("description", "")))
        for name, field in each.params.model_json_schema().get("properties", {}).items()
    ]
    return "\n".join(
        (
            f"## {each.name}\n",
            f"{each.title}.{pair}{writes}\n",
            f"**What it does not mean.** {each.caveat}\n",
            f"{tool}\n",
            table(("parameter", "default", "meaning"), parameters),
            _metrics(each.metrics),
        )
    )


def _metrics(metrics: Iterable[Metric]) -> str:
    rows = [
        (f"`{metric.name}`", f"`{metric.unit}`", metric.better, f"{metric.low:g} .. {metric.high:g}", metric.meaning)
        for metric in metrics
    ]
    return table(("metric", "unit", "better", "honest range", "meaning"), rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with an empty line after it."""
    cells = [header, ["---"] * len(header), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in cells)
    return "".join(f"| {' | '.join(row)} |\n" for row in escaped)


def default(field: Mapping[str, Any]) -> str:
    """A parameter's default as text; where it depends on another parameter, each value with what it is for."""
    by_profile: Mapping[str, Any] = field.get("defaults", {})
    values = dict.fromkeys(map(str, by_profile.values()))
    if len(values) < 2:
        return next(iter(values), str(field.get("default", "")))
    return "; ".join(
        f"{value} ({' '.join(profile for profile, default in by_profile.items() if str(default) == value)})"
        for value in values
    )


if __name__ == "__main__":
    print(page(discover().values()), end="")
