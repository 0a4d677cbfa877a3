"""cpu: how fast the node's processors compute, one alone and all at once, and how evenly (sysbench cpu).

stress-ng has methods for processors as well. It counts "bogo" operations, of its own making, that changed between its
versions. An event of sysbench is the same work since 1.0: the prime numbers up to a limit, by trial division.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from pipelines.benchmark import Benchmark, Command, Cost, Metric, Workplace
from pipelines.errors import UnknownOutput
from pipelines.families import asked
from pipelines.records import Measurement, Outcome, Parsed, RawOutput, Record, Unit

_TOOL = "sysbench"
_MS_PER_S = 10**3
_FULL = 0.95  # of the time asked for
_ROUNDED = 0.05  # by which the printed rate and events over time may differ: threads start one after the other
_SETTLING_S = 0.5
_PATTERNS = {
    "threads": r"^Number of threads: (\d{1,6})$",
    "rate": r"^ +events per second: +(\d{1,12}\.\d+)$",
    "seconds": r"^ +(?:total time|time elapsed): +(\d{1,9}\.\d+)s$",  # as 1.0 and as 1.1 calls it
    "events": r"^ +total number of events: +(\d{1,15})$",
    "mean": r"^ +avg: +(\d{1,9}\.\d+)$",
    "max": r"^ +max: +(\d{1,9}\.\d+)$",
    "p99": r"^ +99th percentile: +(\d{1,9}\.\d+)$",
    "per_thread": r"^ +events \(avg/stddev\): +(\d{1,15}\.\d+)/\d{1,15}\.\d+$",
    "deviation": r"^ +events \(avg/stddev\): +\d{1,15}\.\d+/(\d{1,15}\.\d+)$",
}


class Params(Record):
    processors: Literal["one", "all"] = Field(default="all", description="how many of the node's processors")
    duration_s: Annotated[int, Field(ge=1, le=3600)] = Field(default=5, description="seconds that are measured")
    max_prime: Annotated[int, Field(ge=100, le=1_000_000)] = Field(
        default=10_000, description="an event finds the prime numbers up to this"
    )


def case(params: Params) -> str:
    """`all`, `one-prime20000`."""
    usual = params.max_prime == Params.model_fields["max_prime"].default
    return params.processors if usual else f"{params.processors}-prime{params.max_prime}"


def cost(params: Params) -> Cost:
    return Cost(seconds=params.duration_s + _SETTLING_S, written_bytes=0)


def command(params: Params, workplace: Workplace) -> Command:
    argv = (
        _TOOL,
        "cpu",
        f"--threads={workplace.cpus if params.processors == 'all' else 1}",
        f"--time={params.duration_s}",
        "--events=0",
        f"--cpu-max-prime={params.max_prime}",
        "--percentile=99",
        "run",
    )
    return Command(argv=argv)


def version(text: str) -> str | None:
    """`1.0.20` of `sysbench 1.0.20`."""
    found = re.search(r"^sysbench (\d{1,9}(?:\.\d{1,9}){1,4})", text, re.MULTILINE)
    return found.group(1) if found else None


def required(_: Params) -> frozenset[str]:
    return frozenset({"event_rate"})


def parse(raw: RawOutput) -> Parsed:
    """Judge and read one attempt.

    Raises:
        UnknownOutput: sysbench ended well and printed something else than its report.
    """
    params = asked.params(raw, Params, _TOOL)
    if isinstance(params, Parsed):
        return params
    if raw.timed_out or raw.signal is not None:
        how = f"after {raw.job.timeout_s:g} s" if raw.timed_out else f"by signal {raw.signal}"
        return Parsed(outcome=Outcome.TRUNCATED, reason=f"{_TOOL} was ended {how}")
    if raw.exit_status:
        said = next((line.strip() for line in (raw.stderr + raw.stdout).splitlines() if line.strip()), "no reason")
        reason = f"{_TOOL} ended with exit status {raw.exit_status}: {said[:300]}"
        return Parsed(outcome=Outcome.TOOL_FAILED, reason=reason)
    values = _read(raw.stdout)
    measurements = tuple(_measurements(params, values))
    short = values["seconds"] < params.duration_s * _FULL
    reason = f"{values['seconds']:g} of {params.duration_s} s were measured" if short else ""
    return Parsed(outcome=Outcome.TRUNCATED if short else Outcome.OK, reason=reason, measurements=measurements)


def _read(text: str) -> Mapping[str, float]:
    """The numbers of the report. Milliseconds where it has a time of an event.

    Raises:
        UnknownOutput: it has no rate, or one that its events and its time do not make.
    """
    found = {name: re.search(pattern, text, re.MULTILINE) for name, pattern in _PATTERNS.items()}
    values = {name: float(match[1]) for name, match in found.items() if match}
    if not {"threads", "rate", "seconds", "events"} <= set(values) or not values["seconds"] or not values["rate"]:
        raise UnknownOutput(_TOOL, "a report with events per second", text)
    made = values["events"] / values["seconds"]
    if abs(made - values["rate"]) > _ROUNDED * values["rate"] + 1 / values["seconds"]:
        raise UnknownOutput(_TOOL, f"a rate of {made:g} events per second", text)
    return values


def _measurements(params: Params, values: Mapping[str, float]) -> Iterator[Measurement]:
    labels = {
        "processors": params.processors,
        "threads": f"{values['threads']:.0f}",
        "max_prime": str(params.max_prime),
    }
    for metric, value, unit in _values(values):
        yield Measurement(metric=metric, value=value, unit=unit, labels=labels)


def _values(values: Mapping[str, float]) -> Iterator[tuple[str, float, Unit]]:
    """Times are printed in hundredths of a millisecond; a 0.00 is a shorter one, and gives nothing."""
    yield "event_rate", values["rate"], "1/s"
    for name in ("mean", "p99", "max"):
        if values.get(name):
            yield f"event_time_{name}", values[name] / _MS_PER_S, "s"
    if values["threads"] > 1 and values.get("per_thread") and "deviation" in values:
        yield "thread_spread", values["deviation"] / values["per_thread"], "ratio"


BENCHMARK = Benchmark(
    name="cpu",
    title="Processors of the node (sysbench cpu)",
    caveat="It divides whole numbers in a small loop: it shows clocks, throttling, a slow or a missing core, and other "
    "work that took its share, and nothing of vector units, caches or memory. Numbers of different architectures are "
    "not to be compared.",
    cadence="nightly",
    tool=_TOOL,
    minimum_version=(1, 0),
    version_argv=(_TOOL, "--version"),
    install_hint="apt-get install sysbench",
    writes=False,
    source="https://github.com/akopytov/sysbench",
    params=Params,
    metrics=(
        Metric("event_rate", "1/s", "higher", 1e-2, 1e9, "events per second, all threads together"),
        Metric("event_time_mean", "s", "lower", 1e-6, 3600.0, "mean time of an event"),
        Metric("event_time_p99", "s", "lower", 1e-6, 3600.0, "99th percentile of it"),
        Metric("event_time_max", "s", "lower", 1e-6, 3600.0, "longest of them: something else had the processor"),
        Metric(
            "thread_spread", "ratio", "lower", 0.0, 10.0, "standard deviation of the threads' events over their mean"
        ),
    ),
    case=case,
    cost=cost,
    required=required,
    command=command,
    version=version,
    parse=parse,
)
