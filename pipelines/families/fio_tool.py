"""fio as a tool of several benchmarks: its version, how its options are written, and the metrics that it gives."""

import re
from functools import partial

from pipelines.benchmark import Benchmark, Metric
from pipelines.families import fio_results
from pipelines.families.fio_params import KIB

MINIMUM_VERSION = (3, 16)  # fsync latencies and bins in ns are there since 3.6; older than 3.16 was not read
SEED = 20_180_412
SLOW_DISK_BYTES_PER_S = 250_000_000  # what planning assumes of a disk it knows nothing of
_REFILL_BELOW_BYTES = 128 * KIB


def version(text: str) -> str | None:
    """`3.33` of `fio-3.33`; a build between releases keeps its suffix: `3.36-5-g1234`, `3.33-dirty`."""
    found = re.search(r"^fio-(\d+(?:\.\d+)+(?:-[\w.-]+)?)\s*$", text, re.MULTILINE)
    return found.group(1) if found else None


benchmark = partial(
    Benchmark,
    tool="fio",
    minimum_version=MINIMUM_VERSION,
    version_argv=("fio", "--version"),
    install_hint="apt-get install fio",
    writes=True,
    source="https://fio.readthedocs.io/en/latest/fio_doc.html#json-output",
    required=fio_results.required,
    version=version,
)
"""A benchmark of fio, by what it has of its own."""


def refill(*, writes: bool, block_size_bytes: int) -> str:
    """So that a drive can neither compress the data nor store them once; beside `--scramble_buffers=1`.

    fio writes from one random buffer per request in flight and alters a little of it each time. Blocks smaller than
    what filesystems compress together (128 KiB on btrfs and ZFS) would repeat within that, so those are filled anew;
    for larger ones this would cost more than it gives (1 MiB: 49 % of a core instead of 7 %, 10 % less bandwidth).
    """
    return f"--refill_buffers={int(writes and block_size_bytes < _REFILL_BELOW_BYTES)}"


def escaped(path: object) -> str:
    """fio reads a colon as the end of one directory or file and the start of the next."""
    return str(path).replace(":", "\\:")


def milliseconds(seconds: float | None) -> int:
    return round((seconds or 0.0) * 1000)


def latencies(prefix: str, what: str) -> tuple[Metric, ...]:
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


def direction(verb: str, done: str) -> tuple[Metric, ...]:
    """The upper bounds are beyond what a node's memory can do; below the lower ones nothing works any more."""
    return (
        Metric(f"{verb}_bandwidth", "B/s", "higher", 1e3, 1e12, f"bytes {done} per second, all jobs together"),
        Metric(f"{verb}_iops", "1/s", "higher", 1e-2, 1e9, f"{verb} requests completed per second, all jobs together"),
        *latencies(f"{verb}_latency", f"the completion latency of a {verb} request"),
    )


def processor() -> tuple[Metric, ...]:
    """fio divides microseconds by truncated milliseconds, so a thread that never waits can pass 1 a little."""
    return tuple(
        Metric(name, "ratio", "neither", 0.0, 1.05, f"share of its time that a job's thread computed in {where}")
        for name, where in (("cpu_user", "user space"), ("cpu_system", "the kernel"))
    )
