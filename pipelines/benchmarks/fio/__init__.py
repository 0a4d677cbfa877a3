"""fio: bandwidth, IOPS and latency of the node's scratch filesystem under six loads; the descriptor and the command."""

import re

from pipelines.benchmark import Benchmark, Command, Cost, Floor, Metric, Workplace
from pipelines.benchmarks.fio.output import parse, required
from pipelines.benchmarks.fio.params import KIB, MIB, Params, case, labels

_RW = {
    "seq_read": "read",
    "seq_write": "write",
    "rand_read": "randread",
    "rand_write": "randwrite",
    "mixed": "randrw",
    "checkpoint": "write",
}
_CHECKPOINT_FLOOR_BYTES_PER_S = 500_000_000
_SLOW_DISK_BYTES_PER_S = 250_000_000  # half the checkpoint floor: what planning assumes of a disk it knows nothing of
_REFILL_BELOW_BYTES = 128 * KIB
_SEED = 20_180_412


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
        f"--directory={_escaped(str(workplace.scratch))}",
        f"--rw={_RW[params.profile]}",
        f"--bs={params.block_size_bytes}",
        f"--iodepth={params.iodepth}",
        f"--numjobs={params.numjobs}",
        f"--size={params.size_bytes}",
        f"--ioengine={params.engine}",
        f"--direct={int(direct)}",
        f"--randseed={_SEED}",
        *_buffers(params),
        *_duration(params),
        *((f"--rwmixread={params.read_percent}",) if params.read_percent is not None else ()),
    )
    return Command(argv=argv, labels={**labels(params), "direct": str(direct).lower()})


def _escaped(directory: str) -> str:
    """fio reads a colon as the end of one directory and the start of the next."""
    return directory.replace(":", "\\:")


def _buffers(params: Params) -> tuple[str, ...]:
    """Data that a drive can neither compress nor store once.

    fio writes from one random buffer per request in flight and alters a little of it each time. Blocks smaller than
    what filesystems compress together (128 KiB on btrfs and ZFS) would repeat within that, so those are filled anew;
    for larger ones this would cost more than it gives (1 MiB: 49 % of a core instead of 7 %, 10 % less bandwidth).
    """
    refill = params.writes and params.block_size_bytes < _REFILL_BELOW_BYTES
    return (f"--refill_buffers={int(refill)}", "--scramble_buffers=1")


def _duration(params: Params) -> tuple[str, ...]:
    """A time, over and over the same file; or, for a checkpoint, all of a new file, durable at the end.

    What the last fsync takes is part of fio's runtime, so of the bandwidth, but not one of its fsync latencies.
    `overwrite`: the file is laid out before, since the first write to a new block measures the filesystem's allocation.
    """
    if params.fsync_bytes is not None:
        return (f"--fsync={params.fsync_bytes // params.block_size_bytes}", "--end_fsync=1", "--fallocate=none")
    return (
        "--time_based=1",
        f"--runtime={_milliseconds(params.runtime_s)}ms",
        f"--ramp_time={_milliseconds(params.ramp_s)}ms",
        f"--overwrite={int(params.writes)}",
    )


def _milliseconds(seconds: float | None) -> int:
    return round((seconds or 0.0) * 1000)


def cost(params: Params) -> Cost:
    """Expected seconds: laying the files out or writing them on a slow disk, warm-up, measured time.

    `written_bytes` is what lies on the disk at most: the files, which a timed load writes over and over. What goes
    through to the drive in that time is not bounded by it.
    """
    files_s = params.total_bytes / _SLOW_DISK_BYTES_PER_S
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


def version(text: str) -> str | None:
    """`3.33` of `fio-3.33`; a build between releases keeps its suffix: `3.36-5-g1234`, `3.33-dirty`."""
    found = re.search(r"^fio-(\d+(?:\.\d+)+(?:-[\w.-]+)?)\s*$", text, re.MULTILINE)
    return found.group(1) if found else None


def _latencies(prefix: str, what: str) -> tuple[Metric, ...]:
    """50 ns is less than a system call takes; after 10 minutes the kernel has long given up on a request."""
    meanings = {
        "mean": "mean",
        "p50": "median",
        "p95": "95th percentile",
        "p99": "99th percentile",
        "p999": "99.9th percentile",
        "max": "longest",
    }
    return tuple(
        Metric(f"{prefix}_{name}", "s", "lower", 5e-8, 600.0, f"{meaning} of {what}")
        for name, meaning in meanings.items()
    )


def _direction(verb: str, done: str) -> tuple[Metric, ...]:
    """The upper bounds are beyond what a node's memory can do; below the lower ones nothing works any more."""
    return (
        Metric(f"{verb}_bandwidth", "B/s", "higher", 1e3, 1e12, f"bytes {done} per second, all jobs together"),
        Metric(f"{verb}_iops", "1/s", "higher", 1e-2, 1e9, f"{verb} requests completed per second, all jobs together"),
        *_latencies(f"{verb}_latency", f"the completion latency of a {verb} request"),
    )


def _cpu(name: str, where: str) -> Metric:
    """fio divides microseconds by truncated milliseconds, so a thread that never waits can pass 1 a little."""
    return Metric(name, "ratio", "neither", 0.0, 1.05, f"share of its time that a job's thread computed in {where}")


BENCHMARK = Benchmark(
    name="fio",
    title="Storage of the node (fio)",
    caveat="It is the filesystem of the scratch directory with files of the stated size: a drive's cache may hold a "
    "small one, a drive that is nearly full or hot is slower, and the time that a write takes to reach the medium is "
    "only in the checkpoint profile.",
    cadence="nightly",
    tool="fio",
    minimum_version=(3, 16),  # fsync latencies and bins in ns are there since 3.6; older than 3.16 was not read
    version_argv=("fio", "--version"),
    install_hint="apt-get install fio",
    writes=True,
    source="https://fio.readthedocs.io/en/latest/fio_doc.html#json-output",
    params=Params,
    metrics=(
        *_direction("read", "read"),
        *_direction("write", "written"),
        *_latencies("sync_latency", "the time an fsync takes"),
        _cpu("cpu_user", "user space"),
        _cpu("cpu_system", "the kernel"),
    ),
    case=case,
    cost=cost,
    required=required,
    command=command,
    version=version,
    parse=parse,
    floors=floors,
)
