"""fio: bandwidth, IOPS and latency of the node's scratch filesystem under six loads; the descriptor and the command."""

from pipelines.benchmark import Command, Cost, Floor, Workplace
from pipelines.benchmarks.fio.params import Params, case
from pipelines.families import fio_params, fio_results, fio_tool, scratch
from pipelines.families.fio_params import MIB
from pipelines.records import Labels, Parsed, RawOutput

_CHECKPOINT_FLOOR_BYTES_PER_S = 500_000_000


def command(params: Params, workplace: Workplace) -> Command:
    """fio's command line. Everything follows `--name`, so that the document's "job options" hold all of it.

    `--thread`: without it a killed fio leaves the processes of its jobs behind, still writing.
    """
    direct = params.direct == "on" or (params.direct == "auto" and workplace.direct_io)
    argv = (
        "fio",
        f"--output={workplace.output}",
        "--output-format=json+",
        "--eta=never",
        f"--name={params.profile}",
        "--thread=1",
        f"--directory={fio_tool.escaped(workplace.scratch)}",
        f"--rw={fio_params.RW[params.profile]}",
        f"--bs={params.block_size_bytes}",
        f"--iodepth={params.iodepth}",
        f"--numjobs={params.numjobs}",
        f"--size={params.size_bytes}",
        f"--ioengine={params.engine}",
        f"--direct={int(direct)}",
        f"--randseed={fio_tool.SEED}",
        fio_tool.refill(writes=params.writes, block_size_bytes=params.block_size_bytes),
        "--scramble_buffers=1",
        *_duration(params),
        *((f"--rwmixread={params.read_percent}",) if params.read_percent is not None else ()),
    )
    return Command(argv=argv, labels={**fio_params.labels(params), "direct": str(direct).lower()})


def _duration(params: Params) -> tuple[str, ...]:
    """A time, over and over the same file; or, for a checkpoint, all of a new file, durable at the end.

    What the last fsync takes is part of fio's runtime, so of the bandwidth, but not one of its fsync latencies.
    `overwrite`: the file is laid out before, since the first write to a new block measures the filesystem's allocation.
    """
    if params.fsync_bytes is not None:
        return (f"--fsync={params.fsync_bytes // params.block_size_bytes}", "--end_fsync=1", "--fallocate=none")
    return (
        "--time_based=1",
        f"--runtime={fio_tool.milliseconds(params.runtime_s)}ms",
        f"--ramp_time={fio_tool.milliseconds(params.ramp_s)}ms",
        f"--overwrite={int(params.writes)}",
    )


def cost(params: Params) -> Cost:
    """Expected seconds: laying the files out or writing them on a slow disk, warm-up, measured time.

    `written_bytes` is what lies on the disk at most: the files, which a timed load writes over and over. What goes
    through to the drive in that time is not bounded by it.
    """
    files_s = params.total_bytes / fio_tool.SLOW_DISK_BYTES_PER_S
    return Cost(
        seconds=files_s + (params.ramp_s or 0.0) + (params.runtime_s or 0.0), written_bytes=params.total_bytes + MIB
    )


def floors(params: Params) -> tuple[Floor, ...]:
    if params.profile != "checkpoint":
        return ()
    return (
        Floor(
            metric="write_bandwidth",
            minimum=_CHECKPOINT_FLOOR_BYTES_PER_S,
            unit="B/s",
            source="default of the checkpoint profile: a node that saves more slowly holds up its whole training job",
        ),
    )


def parse(raw: RawOutput) -> Parsed:
    """Raises: UnknownOutput: fio ended well and printed something else than its document."""

    def labelled(params: Params) -> Labels:
        return {**fio_params.labels(params), **scratch.labels(raw)}

    return fio_results.parse(raw, Params.model_validate, labelled)


BENCHMARK = fio_tool.benchmark(
    name="fio",
    title="Storage of the node (fio)",
    caveat="It is the filesystem of the scratch directory with files of the stated size: a drive's cache may hold a "
    "small one, a drive that is nearly full or hot is slower, and the time that a write takes to reach the medium is "
    "only in the checkpoint profile. What has a label `filesystem` (tmpfs, ZFS) may have come from memory, with direct "
    "I/O as well.",
    cadence="nightly",
    params=Params,
    metrics=(
        *fio_tool.direction("read", "read"),
        *fio_tool.direction("write", "written"),
        *fio_tool.latencies("sync_latency", "the time an fsync takes"),
        *fio_tool.processor(),
    ),
    case=case,
    cost=cost,
    command=command,
    parse=parse,
    floors=floors,
)
