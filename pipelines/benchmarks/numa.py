"""numa: what memory across the sockets costs: the same load with its memory near, and far (stress-ng under numactl)."""

from collections.abc import Iterator
from statistics import median
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, ValidationError

from pipelines.benchmark import Benchmark, Command, Cost, Metric, Workplace
from pipelines.errors import UnknownOutput
from pipelines.families import probe_tool, stream_results
from pipelines.records import Measurement, Outcome, Parsed, RawOutput, Record

_PROBE = "numa"
_MIB = 2**20
_STARTING_S = 2.0
_PLACES = 4  # two nodes with processors, and the memory of two


class Params(Record):
    processors: Literal["one", "all"] = Field(default="all", description="how many of a NUMA node's processors")
    rounds: Annotated[int, Field(ge=1, le=20)] = Field(default=2, description="times that each place is measured")
    array_bytes: Annotated[int, Field(ge=_MIB, le=2**35, multiple_of=_MIB)] = Field(
        default=128 * _MIB, description="bytes of each of the three arrays of a processor"
    )
    duration_s: Annotated[int, Field(ge=stream_results.SHORTEST_S, le=600)] = Field(
        default=6, description="seconds of each measurement"
    )


class _Run(Record):
    round: PositiveInt
    cpu_node: int
    memory_node: int
    argv: tuple[str, ...]
    exit_status: int | None
    signal: int | None
    timed_out: bool
    stderr: str
    output: str | None

    @property
    def placement(self) -> str:
        return "local" if self.cpu_node == self.memory_node else "remote"


class _Document(probe_tool.Printed):
    hardware: str
    runs: tuple[_Run, ...]


def case(params: Params) -> str:
    """`all`, `one-1024MiB`."""
    usual: int = Params.model_fields["array_bytes"].default
    size = "" if params.array_bytes == usual else f"-{params.array_bytes // _MIB}MiB"
    return f"{params.processors}{size}"


def cost(params: Params) -> Cost:
    """The documents that the probe reads lie in its directory: 2 kB each."""
    each_s = params.duration_s + stream_results.SETTLING_S
    return Cost(seconds=_STARTING_S + params.rounds * _PLACES * each_s, written_bytes=0)


def command(params: Params, _: Workplace) -> Command:
    argv = (
        probe_tool.PROGRAM,
        _PROBE,
        f"--rounds={params.rounds}",
        f"--duration={params.duration_s}",
        f"--array-bytes={params.array_bytes}",
        f"--processors={params.processors}",
    )
    return Command(argv=argv)


def required(_: Params) -> frozenset[str]:
    return frozenset({"bandwidth", "remote_share"})


def parse(raw: RawOutput) -> Parsed:
    """Judge and read one attempt.

    Raises:
        UnknownOutput: the probe ended well and printed something else than its document, or stress-ng wrote another.
    """
    found = probe_tool.read(raw, _PROBE, _Document)
    if isinstance(found, Parsed):
        return found
    try:
        params = Params.model_validate(dict(raw.job.params))
    except ValidationError as e:
        raise UnknownOutput(_PROBE, "a job with parameters of this benchmark", str(dict(raw.job.params))) from e
    return _judged(params, found)


def _judged(params: Params, document: _Document) -> Parsed:
    if failure := next((failed for run in document.runs if (failed := _failure(run))), None):
        return failure
    measurements = tuple(_measurements(params, document.runs))
    rounds = {run.round for run in document.runs}
    missing = required(params) - {each.metric for each in measurements}
    reason = f"it gives no {', '.join(sorted(missing))}" if missing else ""
    if len(rounds) < params.rounds or len(document.runs) < params.rounds * _PLACES:
        reason = f"{len(document.runs)} of {params.rounds * _PLACES} measurements were made"
    return Parsed(outcome=Outcome.TRUNCATED if reason else Outcome.OK, reason=reason, measurements=measurements)


def _failure(run: _Run) -> Parsed | None:
    where = f"processors of NUMA node {run.cpu_node}, memory of {run.memory_node}"
    if run.timed_out or run.signal is not None:
        return Parsed(outcome=Outcome.TRUNCATED, reason=f"{where}: stress-ng was ended before its time")
    if not run.exit_status:
        return None
    said = "; ".join(line.strip() for line in run.stderr.splitlines() if line.strip())[-300:] or "it gave no reason"
    forbidden = "Operation not permitted" in run.stderr  # set_mempolicy(2), in a container that forbids it
    outcome = Outcome.CONFIG if forbidden else Outcome.TOOL_FAILED
    return Parsed(outcome=outcome, reason=f"{where}: exit status {run.exit_status}: {said}")


def _measurements(params: Params, runs: tuple[_Run, ...]) -> Iterator[Measurement]:
    measured: dict[tuple[int, int, str], float] = {}
    for run in runs:
        instances = stream_results.instances(run.argv)
        if instances is None or run.output is None:
            raise UnknownOutput(_PROBE, "a run of stream with a document", str(run))
        rates = stream_results.read(run.output, instances)
        if rates is None:
            continue
        bandwidth = measured[run.cpu_node, run.round, run.placement] = rates.read + rates.write
        labels = {
            "processors": params.processors,
            "instances": str(instances),
            "cpu_node": str(run.cpu_node),
            "memory_node": str(run.memory_node),
            "placement": run.placement,
            "round": str(run.round),
        }
        yield Measurement(metric="bandwidth", value=bandwidth, unit="B/s", labels=labels)
    for node in dict.fromkeys(run.cpu_node for run in runs):
        shares = [
            measured[node, number, "remote"] / measured[node, number, "local"]
            for number in dict.fromkeys(run.round for run in runs)
            if {(node, number, "remote"), (node, number, "local")} <= set(measured)
        ]
        if shares:
            labels = {"processors": params.processors, "cpu_node": str(node)}
            yield Measurement(metric="remote_share", value=median(shares), unit="ratio", labels=labels)


BENCHMARK = Benchmark(
    name="numa",
    title="Memory across the sockets of the node (stress-ng under numactl)",
    caveat="It compares the two NUMA nodes that are farthest apart, with all memory at one of them: the worst that a "
    "process meets which runs on one socket and whose memory lies at another. A program whose memory is spread, or "
    "that waits for something else, loses less. With all processors it is the link between the sockets that is "
    "measured, with one the latency of a line that comes over it.",
    cadence="weekly",
    tool=probe_tool.PROGRAM,
    minimum_version=stream_results.MINIMUM_VERSION,
    version_argv=(probe_tool.PROGRAM, _PROBE, "--version"),
    install_hint="apt-get install numactl stress-ng",
    writes=False,
    source="https://man7.org/linux/man-pages/man8/numactl.8.html",
    params=Params,
    metrics=(
        Metric("bandwidth", "B/s", "higher", 1e7, 1e14, "bytes read and written per second (label placement)"),
        Metric("remote_share", "ratio", "higher", 0.005, 1.5, "bandwidth across over that of the own memory: the tax"),
    ),
    case=case,
    cost=cost,
    required=required,
    command=command,
    version=stream_results.version,
    parse=parse,
)
