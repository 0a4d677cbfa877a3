"""numa: what memory across the sockets costs: the same load with its memory near, and far, under numactl."""

from collections.abc import Iterator
from pathlib import PurePath
from statistics import median
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from pipelines import keys
from pipelines.benchmark import Benchmark, Command, Cost, Metric, Workplace
from pipelines.errors import UnknownOutput
from pipelines.families import asked, llama_tool, numa_loads, probe_tool, scratch, stream_results
from pipelines.families.numa_loads import LOADS, Asked
from pipelines.records import Labels, Measurement, Outcome, Parsed, RawOutput, Record

_PROBE = "numa"
_MIB = 2**20
_STARTING_S = 2.0
_PLACES = 4  # two nodes with processors, and the memory of two
_SLOW_DISK_BYTES_PER_S = 250_000_000
_SLACK, _SLACK_S = 3.0, 30.0  # a run may take so many times what is expected, and so much more
_LONGEST_NAME = 63


class Params(Record):
    load: numa_loads.Name = Field(
        default="memory",
        description="what runs: stress-ng's stream, fio's random reads of 128 KiB, or llama-bench generating tokens",
    )
    processors: Literal["one", "all"] = Field(default="all", description="how many of a NUMA node's processors")
    rounds: Annotated[int, Field(ge=1, le=20)] = Field(default=2, description="times that each place is measured")
    duration_s: Annotated[int, Field(ge=1, le=600)] = Field(
        default=6, description="seconds of each measurement of memory, which takes 5 at least, or of fio"
    )
    array_bytes: Annotated[int, Field(ge=_MIB, le=2**35, multiple_of=_MIB)] = Field(
        default=128 * _MIB, description="of memory: bytes of each of the three arrays of a processor"
    )
    size_bytes: Annotated[int, Field(ge=_MIB, le=2**40, multiple_of=_MIB)] = Field(
        default=1024 * _MIB, description="of fio: bytes of the file that is read"
    )
    model: llama_tool.ModelName = Field(
        default="model.gguf",
        description="of llama: file name of the model, in the job's dataset or the node's folder of files",
    )

    @model_validator(mode="after")
    def _gives_a_rate(self) -> Self:
        if self.load == "memory" and self.duration_s < stream_results.SHORTEST_S:
            raise ValueError(f"duration_s: with less than {stream_results.SHORTEST_S} s stress-ng gives no rate")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        return llama_tool.ModelParams(model=self.model).files if self.load == "llama" else ()

    @property
    def each_s(self) -> float:
        """What one measurement is expected to take."""
        if self.load == "llama":
            return llama_tool.LOADING_S + numa_loads.TOKENS / llama_tool.DECODE_STEPS_PER_S
        return self.duration_s + stream_results.SETTLING_S


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
    version: str = ""  # what the load's tool said of its version
    runs: tuple[_Run, ...]


def case(params: Params) -> str:
    """`all`, `one-1024MiB`, `fio-all`, `llama-all-MODEL`: what is not the usual is in the name."""
    sizes = {"memory": "array_bytes", "fio": "size_bytes"}
    tokens: list[str] = [params.processors] if params.load == "memory" else [params.load, params.processors]
    if params.load == "llama":
        tokens.append(params.model.removesuffix(".gguf"))
    elif (size := getattr(params, sizes[params.load])) != Params.model_fields[sizes[params.load]].default:
        tokens.append(f"{size // _MIB}MiB")
    name = "-".join(tokens)
    return name if len(name) <= _LONGEST_NAME else f"{name[:32]}-{keys.content_id(tokens)}"


def cost(params: Params) -> Cost:
    """What the tools print lies in the probe's directory, and with fio the file that it reads."""
    written = _MIB + (params.size_bytes if params.load == "fio" else 0)
    seconds = _STARTING_S + written / _SLOW_DISK_BYTES_PER_S + params.rounds * _PLACES * params.each_s
    return Cost(seconds=seconds, written_bytes=written)


def command(params: Params, workplace: Workplace) -> Command:
    folder = workplace.files or PurePath()
    expected_s = params.each_s + params.size_bytes / _SLOW_DISK_BYTES_PER_S
    words = Asked(
        load=params.load,
        rounds=params.rounds,
        duration_s=params.duration_s,
        within_s=round(_SLACK * expected_s + _SLACK_S),
        processors=params.processors,
        array_bytes=params.array_bytes,
        size_bytes=params.size_bytes,
        direct=workplace.direct_io,
        model=str(folder / params.model) if params.load == "llama" else "",
    ).words()
    return Command(argv=(probe_tool.PROGRAM, _PROBE, *words))


def files(params: Params) -> tuple[str, ...]:
    return params.files


def required(params: Params) -> frozenset[str]:
    return frozenset({LOADS[params.load].metric, "remote_share"})


def parse(raw: RawOutput) -> Parsed:
    """Judge and read one attempt.

    Raises:
        UnknownOutput: the probe ended well and printed something else than its document, or the load's tool did.
    """
    found = probe_tool.read(raw, _PROBE, _Document)
    if isinstance(found, Parsed):
        return found
    params = asked.of_run(raw, Params, _PROBE)
    return _judged(params, found, scratch.labels(raw) if params.load == "fio" else {})


def _judged(params: Params, document: _Document, extra: Labels) -> Parsed:
    tool = LOADS[params.load].tool
    if failure := next((failed for run in document.runs if (failed := _failure(tool, run))), None):
        return failure
    measurements = tuple(_measurements(params, document.runs, extra))
    rounds = {run.round for run in document.runs}
    missing = required(params) - {each.metric for each in measurements}
    reason = f"it gives no {', '.join(sorted(missing))}" if missing else ""
    if len(rounds) < params.rounds or len(document.runs) < params.rounds * _PLACES:
        reason = f"{len(document.runs)} of {params.rounds * _PLACES} measurements were made"
    outcome = Outcome.TRUNCATED if reason else Outcome.OK
    version = LOADS[params.load].version(document.version)
    notes = (f"{tool} {version}",) if version and params.load != "memory" else ()  # of memory it is the row's own
    return Parsed(outcome=outcome, reason=reason, measurements=measurements, notes=notes)


def _failure(tool: str, run: _Run) -> Parsed | None:
    where = f"processors of NUMA node {run.cpu_node}, memory of {run.memory_node}"
    if run.timed_out or run.signal is not None:
        return Parsed(outcome=Outcome.TRUNCATED, reason=f"{where}: {tool} was ended before its time")
    if not run.exit_status:
        return None
    said = "; ".join(line.strip() for line in run.stderr.splitlines() if line.strip())[-300:] or "it gave no reason"
    forbidden = "Operation not permitted" in run.stderr  # set_mempolicy(2), in a container that forbids it
    outcome = Outcome.CONFIG if forbidden else Outcome.TOOL_FAILED
    return Parsed(outcome=outcome, reason=f"{where}: exit status {run.exit_status}: {said}")


def _measurements(params: Params, runs: tuple[_Run, ...], extra: Labels) -> Iterator[Measurement]:
    load = LOADS[params.load]
    measured: dict[tuple[int, int, str], float] = {}
    for run in runs:
        instances = load.instances_of(run.argv)
        if instances is None or run.output is None:
            raise UnknownOutput(_PROBE, f"a run of {load.tool} with its output", str(run))
        rate = load.rate(run.output, instances, params.duration_s)
        if rate is None:
            continue
        measured[run.cpu_node, run.round, run.placement] = rate
        labels = {
            "processors": params.processors,
            "instances": str(instances),
            "cpu_node": str(run.cpu_node),
            "memory_node": str(run.memory_node),
            "placement": run.placement,
            "round": str(run.round),
            **extra,
        }
        yield Measurement(metric=load.metric, value=rate, unit=load.unit, labels=labels)
    for node in dict.fromkeys(run.cpu_node for run in runs):
        shares = [
            measured[node, number, "remote"] / measured[node, number, "local"]
            for number in dict.fromkeys(run.round for run in runs)
            if {(node, number, "remote"), (node, number, "local")} <= set(measured)
        ]
        if shares:
            labels = {"processors": params.processors, "cpu_node": str(node), **extra}
            yield Measurement(metric="remote_share", value=median(shares), unit="ratio", labels=labels)


def version(text: str) -> str | None:
    """stress-ng's; where there is none, that of another tool that the node could do it with."""
    return next((found for load in LOADS.values() if (found := load.version(text))), None)


BENCHMARK = Benchmark(
    name="numa",
    title="Memory across the sockets of the node (stress-ng, fio or llama-bench under numactl)",
    caveat="It compares the two NUMA nodes that are farthest apart, with all memory at one of them: the worst that a "
    "process meets which runs on one socket and whose memory lies at another. A program whose memory is spread, or "
    "that waits for something else, loses less: fio for the disk, llama-bench with one processor for its arithmetic. "
    "With all processors it is the link between the sockets that is measured, with one the latency of a line that "
    "comes over it. Where the disk is attached it does not ask; the label cpu_node tells the two sides apart.",
    cadence="weekly",
    tool=probe_tool.PROGRAM,
    minimum_version=(),  # each load has one of its own, which the probe knows
    version_argv=(probe_tool.PROGRAM, _PROBE, "--version"),
    install_hint="apt-get install numactl stress-ng; for the other loads fio, or llama.cpp",
    writes=True,
    source="https://man7.org/linux/man-pages/man8/numactl.8.html",
    params=Params,
    metrics=(
        Metric("bandwidth", "B/s", "higher", 1e5, 1e14, "bytes read and written per second (label placement)"),
        Metric("decode_throughput", "tok/s", "higher", 1e-3, 1e7, "of llama: tokens per second (label placement)"),
        Metric("remote_share", "ratio", "higher", 0.005, 10, "the rate across over that with its own memory: the tax"),
    ),
    case=case,
    cost=cost,
    required=required,
    command=command,
    version=version,
    parse=parse,
    files=files,
)
