"""memory_bandwidth: what the node's memory carries, one processor alone and all at once (stress-ng's stream).

sysbench has a test of memory, too. Its bytes are those of one loop that reads or writes; it clears the memory of all
threads in one of them, so that on a machine with several sockets all of it lies at one; and the 1 KiB that it takes by
default never leaves a cache. stream reads and writes as programs do, in memory that each process touched first.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from pipelines.benchmark import Benchmark, Command, Cost, Metric, Workplace
from pipelines.errors import UnknownOutput
from pipelines.families import asked, stream_results
from pipelines.families.stream_results import TOOL, Rates
from pipelines.records import Measurement, Outcome, Parsed, RawOutput, Record

_MIB = 2**20
_NO_RESOURCE = 3  # stress-ng's EXIT_NO_RESOURCE
_NO_MEMORY = re.compile(r"cannot allocate|failed to mmap")


class Params(Record):
    processors: Literal["one", "all"] = Field(default="all", description="how many of the node's processors")
    array_bytes: Annotated[int, Field(ge=_MIB, le=2**35, multiple_of=_MIB)] = Field(
        default=128 * _MIB,
        description="bytes of each of the three arrays of a processor; four times the cache that it can fill, at least",
    )
    duration_s: Annotated[int, Field(ge=stream_results.SHORTEST_S, le=3600)] = Field(
        default=6, description="seconds; with fewer it gives no rate"
    )


def case(params: Params) -> str:
    """`all`, `one-1024MiB`."""
    usual: int = Params.model_fields["array_bytes"].default
    size = "" if params.array_bytes == usual else f"-{params.array_bytes // _MIB}MiB"
    return f"{params.processors}{size}"


def cost(params: Params) -> Cost:
    return Cost(seconds=params.duration_s + stream_results.SETTLING_S, written_bytes=0)


def memory(params: Params, cpus: int) -> int:
    """Where the kernel ends an instance for want of memory, stress-ng says nothing of it and ends well."""
    return stream_results.ARRAYS * params.array_bytes * _instances(params, cpus)


def _instances(params: Params, cpus: int) -> int:
    return cpus if params.processors == "all" else 1


def command(params: Params, workplace: Workplace) -> Command:
    return Command(
        argv=stream_results.argv(
            instances=_instances(params, workplace.cpus),
            array_bytes=params.array_bytes,
            duration_s=params.duration_s,
            output=workplace.output,
        )
    )


def required(_: Params) -> frozenset[str]:
    return frozenset({"bandwidth", "read_bandwidth", "write_bandwidth"})


def parse(raw: RawOutput) -> Parsed:
    """Judge and read one attempt.

    Raises:
        UnknownOutput: stress-ng ended well and wrote something else than its document.
    """
    params = asked.params(raw, Params, TOOL)
    if isinstance(params, Parsed):
        return params
    if failure := _failure(raw):
        return failure
    instances = stream_results.instances(raw.argv)
    if instances is None or raw.output is None:
        raise UnknownOutput(TOOL, "a run of stream with a document", raw.output or raw.stdout)
    rates = stream_results.read(raw.output, instances)
    if rates is None:
        reason = "it gives no rate: an instance was ended, or had less than 4.5 s for its loops"
        return Parsed(outcome=Outcome.TRUNCATED, reason=reason)
    if not rates.is_whole(params.duration_s):
        reason = f"its instances ran for {rates.seconds:g} of {params.duration_s} s, in the mean: some were ended"
        return Parsed(outcome=Outcome.TRUNCATED, reason=reason)
    return Parsed(outcome=Outcome.OK, measurements=tuple(_measurements(params, rates, instances)))


def _failure(raw: RawOutput) -> Parsed | None:
    if raw.timed_out or raw.signal is not None:
        how = f"after {raw.job.timeout_s:g} s" if raw.timed_out else f"by signal {raw.signal}"
        return Parsed(outcome=Outcome.TRUNCATED, reason=f"{TOOL} was ended {how}")
    if not raw.exit_status:
        return None
    lines = [line.strip() for line in (raw.stderr + "\n" + raw.stdout).splitlines()]
    telling = [line for line in lines if " fail: " in line or " error: " in line] or [line for line in lines if line]
    said = "; ".join(telling)[:300] or "it gave no reason"
    too_little = raw.exit_status == _NO_RESOURCE or any(_NO_MEMORY.search(line) for line in telling)
    outcome = Outcome.CONFIG if too_little else Outcome.TOOL_FAILED
    return Parsed(outcome=outcome, reason=f"{TOOL} ended with exit status {raw.exit_status}: {said}")


def _measurements(params: Params, rates: Rates, instances: int) -> Iterator[Measurement]:
    labels = {"processors": params.processors, "instances": str(instances), "array_size": str(params.array_bytes)}
    values = {"bandwidth": rates.read + rates.write, "read_bandwidth": rates.read, "write_bandwidth": rates.write}
    for metric, value in values.items():
        yield Measurement(metric=metric, value=value, unit="B/s", labels=labels)


BENCHMARK = Benchmark(
    name="memory_bandwidth",
    title="Memory bandwidth of the node (stress-ng stream)",
    caveat="It counts what the loops read and write, as STREAM does; a processor may read lines that it only writes, "
    "and then the memory moves up to 40 % more. Compilers differ in how they write those loops, so that numbers of "
    "different builds of stress-ng, and of STREAM itself, are not to be compared. With all processors it is what the "
    "sockets reach from their own memory; what they reach from another one's is the benchmark numa.",
    cadence="nightly",
    tool=TOOL,
    minimum_version=stream_results.MINIMUM_VERSION,
    version_argv=(TOOL, "--version"),
    install_hint=stream_results.INSTALL_HINT,
    writes=False,
    source=stream_results.SOURCE,
    params=Params,
    metrics=(
        Metric("bandwidth", "B/s", "higher", 1e7, 1e14, "bytes read and written per second, all processors together"),
        Metric("read_bandwidth", "B/s", "higher", 1e7, 1e14, "of them those that are read"),
        Metric("write_bandwidth", "B/s", "higher", 1e7, 1e14, "of them those that are written"),
    ),
    case=case,
    cost=cost,
    required=required,
    command=command,
    version=stream_results.version,
    parse=parse,
    memory=memory,
)
