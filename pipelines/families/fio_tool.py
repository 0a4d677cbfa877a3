"""fio as a tool of several benchmarks: its version, how its options are written, and the metrics that it gives."""

import re

from pipelines.benchmark import Metric

MINIMUM_VERSION = (3, 16)  # fsync latencies and bins in ns are there since 3.6; older than 3.16 was not read


def version(text: str) -> str | None:
    """`3.33` of `fio-3.33`; a build between releases keeps its suffix: `3.36-5-g1234`, `3.33-dirty`."""
    found = re.search(r"^fio-(\d+(?:\.\d+)+(?:-[\w.-]+)?)\s*$", text, re.MULTILINE)
    return found.group(1) if found else None


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
