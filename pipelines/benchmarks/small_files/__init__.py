"""small_files: how many small files a second the node's scratch filesystem creates, reads, renames and removes."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from pipelines import histograms
from pipelines.benchmark import Command, Cost, Metric, Workplace
from pipelines.families import probe_tool, scratch
from pipelines.families.probe_tool import Count, Seconds
from pipelines.records import Histogram, Labels, Measurement, Outcome, Parsed, RawOutput, Record

KIB, MIB = 2**10, 2**20
_STARTING_S = 1.0
_DURABLE_S = 0.01  # what planning assumes of a disk it knows nothing of; the probe makes a tenth of the files durable
_OTHER_S = 0.0005  # of all other phases of a file together
_BLOCK_BYTES = 4 * KIB  # that a file takes at least
_METADATA_BYTES = KIB  # of its inode and its names

_Phase = Literal["create_durable", "create", "list", "stat", "read", "rename", "unlink"]
_PERCENTILES = {"p50": 50.0, "p99": 99.0}


class Params(Record):
    files: Annotated[int, Field(ge=100, le=100_000)] = Field(default=2000, description="files of each worker")
    size_bytes: Annotated[int, Field(ge=1, le=MIB)] = Field(default=4 * KIB, description="bytes of each file")
    workers: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="processes side by side, each with a directory of its own"
    )
    forget: Literal["files", "all"] = Field(
        default="files",
        description="what is put out of memory before the first reads: the files' bytes, or, where the user is root, "
        "all that the machine holds of all files, names and inodes",
    )


class _Done(probe_tool.Printed):
    probe: str = ""
    phase: _Phase
    files: Count
    seconds: Seconds
    cache: Literal["cold", "data_cold", "warm"] | None = None
    latencies_s: tuple[Seconds, ...] = ()


class _Document(probe_tool.Printed):
    workers: Count
    files: Count
    size_bytes: Count
    phases: tuple[_Done, ...]


def case(params: Params) -> str:
    """`4096B-w1`, `4096B-w8-n10000-all`."""
    usual = Params()
    files = f"-n{params.files}" if params.files != usual.files else ""
    forget = "-all" if params.forget != usual.forget else ""
    return f"{params.size_bytes}B-w{params.workers}{files}{forget}"


def cost(params: Params) -> Cost:
    """All workers share one disk's flushes."""
    files = params.files * params.workers
    each_bytes = max(params.size_bytes, _BLOCK_BYTES) + _METADATA_BYTES
    durable = params.workers * min(1000, max(20, params.files // 10))
    seconds = _STARTING_S + durable * _DURABLE_S + files * _OTHER_S
    return Cost(seconds=seconds, written_bytes=(files + durable) * each_bytes)


def required(_: Params) -> frozenset[str]:
    rates = {f"{name}_rate" for name in ("create_durable", "create", "list", "stat", "read", "rename", "unlink")}
    return frozenset(rates | {f"create_durable_latency_{name}" for name in _PERCENTILES})


def command(params: Params, _: Workplace) -> Command:
    options = (f"--files={params.files}", f"--bytes={params.size_bytes}", f"--workers={params.workers}")
    return Command(argv=(probe_tool.PROGRAM, "small_files", *options, f"--forget={params.forget}"))


def parse(raw: RawOutput) -> Parsed:
    """Raises: UnknownOutput: the probe ended well and printed something else than its document."""
    found = probe_tool.read(raw, "small_files", _Document)
    if isinstance(found, Parsed):
        return found
    loaded = {"workers": str(found.workers), "files": str(found.files), "size": str(found.size_bytes)}
    labels = {**loaded, **scratch.labels(raw)}
    measurements = tuple(each for done in found.phases for each in _measurements(done, labels))
    missing = required(Params()) - {each.metric for each in measurements}
    return Parsed(
        outcome=Outcome.TRUNCATED if missing else Outcome.OK,
        reason=f"the document gives no {', '.join(sorted(missing))}" if missing else "",
        measurements=measurements,
        histograms=tuple(_histogram(done, labels) for done in found.phases if done.latencies_s),
    )


def _measurements(done: _Done, labels: Labels) -> Iterator[Measurement]:
    read = {**labels, "cache": done.cache} if done.cache else labels
    yield Measurement(metric=f"{done.phase}_rate", value=done.files / done.seconds, unit="1/s", labels=read)
    if done.phase == "create_durable" and done.latencies_s:
        taken = histograms.percentiles(_bins(done), tuple(_PERCENTILES.values()))
        for name, value in zip(_PERCENTILES, taken, strict=True):
            metric = f"create_durable_latency_{name}"
            yield Measurement(metric=metric, value=value, unit="s", labels=labels)


def _bins(done: _Done) -> dict[float, int]:
    return histograms.merged({latency: 1} for latency in done.latencies_s)


def _histogram(done: _Done, labels: Labels) -> Histogram:
    bins = tuple(_bins(done).items())
    return Histogram(metric=f"{done.phase}_latency", unit="s", labels=labels, bins=bins)


BENCHMARK = probe_tool.benchmark(
    name="small_files",
    title="Small files and metadata of the node's storage",
    caveat="Each operation is one system call or a few, made by Python: what it adds, 2 to 20 microseconds, is in each "
    "number, so that a filesystem which answers from memory in less shows the probe rather than itself. Creations are "
    "not flushed, and end in memory; those of create_durable are, one file after the other. Reads labelled warm come "
    "from memory. In those labelled data_cold the files' bytes had been forgotten and their names and inodes had not; "
    "only cold ones, for which the user must be root and which slow everything else on the machine, have all of it "
    "from the disk. On a shared filesystem each worker has its own directory, and many workers in one are slower.",
    cadence="weekly",
    writes=True,
    source="https://docs.python.org/3/library/os.html#files-and-directories",
    params=Params,
    metrics=(
        Metric("create_durable_rate", "1/s", "higher", 0.01, 1e7, "files created and flushed per second"),
        Metric("create_durable_latency_p50", "s", "lower", 1e-7, 1e4, "median of what that takes for one file"),
        Metric("create_durable_latency_p99", "s", "lower", 1e-7, 1e4, "99th percentile of it"),
        Metric("create_rate", "1/s", "higher", 0.1, 1e9, "files created and written per second, not flushed"),
        Metric("list_rate", "1/s", "higher", 0.1, 1e10, "names read from directories per second (label cache)"),
        Metric("stat_rate", "1/s", "higher", 0.1, 1e9, "files whose attributes were read per second (label cache)"),
        Metric("read_rate", "1/s", "higher", 0.1, 1e9, "files opened, read and closed per second (label cache)"),
        Metric("rename_rate", "1/s", "higher", 0.1, 1e9, "files renamed per second"),
        Metric("unlink_rate", "1/s", "higher", 0.1, 1e9, "files removed per second"),
    ),
    case=case,
    cost=cost,
    required=required,
    command=command,
    parse=parse,
)
