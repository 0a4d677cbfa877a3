"""What a raw output of fio says, for the benchmarks that run it: an outcome, measurements in base units, histograms."""

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from typing import Any, Protocol

from pydantic import ValidationError

from pipelines import histograms
from pipelines.errors import UnknownOutput
from pipelines.families import fio_document as document
from pipelines.families.fio_document import Direction, JobDocument, Latency, Printed
from pipelines.records import Histogram, Labels, Measurement, Outcome, Parsed, RawOutput, Scalar, Unit

_NS_PER_S = 10**9
_MS_PER_S = 10**3
_PERCENT = 100
_PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}
_LATENCIES = ("mean", *_PERCENTILES, "max")
_FULL = 0.95  # of the time asked for: fio stops at a request's end, within a few ms
_ENDED_BY_SIGNAL = 128  # fio's exit status after SIGINT or SIGTERM, with a whole document whose error is 0
_NOTES, _NOTE_LENGTH = 20, 300
_NOT_IN_THIS_FIO = re.compile(r"engine \S+ not loadable|unrecognized option")
_NO_IO_URING = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP})  # by sysctl, seccomp, or an old kernel


class Load(Protocol):
    """What was asked of fio, as far as its answer is judged by it."""

    @property
    def reads(self) -> bool: ...
    @property
    def writes(self) -> bool: ...
    @property
    def syncs(self) -> bool: ...  # whether an fsync is timed
    @property
    def numjobs(self) -> int: ...
    @property
    def runtime_s(self) -> float | None: ...
    @property
    def total_bytes(self) -> int: ...  # that are written where no runtime is given


def required(load: Load) -> frozenset[str]:
    """The metrics without which a run of this load is not OK: all of each direction, and of fsync where it is asked."""
    verbs = [verb for verb, used in (("read", load.reads), ("write", load.writes)) if used]
    rates = {f"{verb}_{rate}" for verb in verbs for rate in ("bandwidth", "iops")}
    timed = [*verbs, "sync"] if load.syncs else verbs
    return frozenset(rates | {f"{verb}_latency_{name}" for verb in timed for name in _LATENCIES})


def parse(
    raw: RawOutput,
    params: Callable[[Mapping[str, Scalar]], Load],
    labels: Callable[[Any], Labels],
    measured: str | None = None,
) -> Parsed:
    """Judge and read one attempt. Measurements come with OK and with TRUNCATED, where they say how far it got.

    `params` reads the job's parameters, and `labels` says what of them labels its measurements. Where fio prepared
    something before it measured, `measured` is the name of the jobs that count.

    Raises:
        UnknownOutput: fio ended well and printed something else than its document.
    """
    if raw.refusal is not None:
        return Parsed(outcome=raw.refusal.outcome, reason=raw.refusal.reason)
    load = _load(raw, params)
    printed = _printed(raw)
    notes = tuple(dict.fromkeys(line[:_NOTE_LENGTH] for line in printed.said))[:_NOTES]
    if printed.document is None:
        outcome, reason = _without_document(raw, printed, notes)
        return Parsed(outcome=outcome, reason=reason, notes=notes)
    failure = _failure(raw, printed.document.jobs, notes)
    if failure is not None:
        return Parsed(outcome=failure[0], reason=failure[1], notes=notes)
    jobs = [job for job in printed.document.jobs if measured is None or job.jobname == measured]
    if not jobs:
        return Parsed(outcome=Outcome.TRUNCATED, reason=_interrupted(raw) or _short(load, jobs), notes=notes)
    all_labels = {**labels(load), "direct": "true" if jobs[0].direct else "false"}
    timed = tuple(_timed(jobs))
    measurements = tuple(_measurements(jobs, timed, all_labels))
    reason = _interrupted(raw) or _short(load, jobs) or _missing(load, measurements)
    return Parsed(
        outcome=Outcome.TRUNCATED if reason else Outcome.OK,
        reason=reason,
        measurements=measurements,
        histograms=tuple(_histogram(each, all_labels) for each in timed),
        notes=notes,
    )


def _load(raw: RawOutput, params: Callable[[Mapping[str, Scalar]], Load]) -> Load:
    try:
        return params(dict(raw.job.params))
    except ValidationError as e:
        raise UnknownOutput("fio", "a job with parameters of this benchmark", str(dict(raw.job.params))) from e


def _printed(raw: RawOutput) -> Printed:
    """The document in the file fio was told to write, else on stdout; with all that was said beside it."""
    in_file = document.read(raw.output or "")
    if in_file.document is not None or in_file.cut:
        return replace(in_file, said=(*in_file.said, *document.lines(raw.stdout), *document.lines(raw.stderr)))
    on_stdout = document.read(raw.stdout)
    return replace(on_stdout, said=(*in_file.said, *on_stdout.said, *document.lines(raw.stderr)))


# --- how it ended -------------------------------------------------------------------------------------------


def _interrupted(raw: RawOutput) -> str:
    if raw.timed_out:
        return f"fio was ended after {raw.job.timeout_s:g} s, the job's timeout"
    if raw.signal is not None:
        return f"fio was ended by signal {raw.signal}"
    if raw.exit_status == _ENDED_BY_SIGNAL:
        return "fio ended early, on a signal (exit status 128)"
    return ""


def _without_document(raw: RawOutput, printed: Printed, notes: Sequence[str]) -> tuple[Outcome, str]:
    if reason := _interrupted(raw):
        return Outcome.TRUNCATED, f"{reason}, before its document was written"
    if printed.cut:
        return Outcome.TRUNCATED, "fio's document is cut off: part of the output is missing"
    if not raw.exit_status:
        raise UnknownOutput("fio", "a JSON document", raw.output or raw.stdout)
    outcome = Outcome.CONFIG if any(_NOT_IN_THIS_FIO.search(note) for note in notes) else Outcome.TOOL_FAILED
    return outcome, f"fio ended with exit status {raw.exit_status}: {_said(notes)}"


def _failure(raw: RawOutput, jobs: Sequence[JobDocument], notes: Sequence[str]) -> tuple[Outcome, str] | None:
    """An errno that a job reports, or an exit status that no signal explains."""
    for job in jobs:
        if job.error:
            said = f"{errno.errorcode.get(job.error, f'errno {job.error}')} ({_error_text(job.error)})"
            if job.error == errno.EINVAL and job.direct:
                return (
                    Outcome.CONFIG,
                    f"{said} with direct I/O: the filesystem or the device does not take it in this block size",
                )
            if job.error in _NO_IO_URING and job.options.get("ioengine") == "io_uring":
                return Outcome.CONFIG, f"{said} with io_uring: this node does not allow it; choose another engine"
            return Outcome.TOOL_FAILED, f"{said}: {_said(notes)}"
    if raw.exit_status and not _interrupted(raw):
        return Outcome.TOOL_FAILED, f"fio ended with exit status {raw.exit_status}: {_said(notes)}"
    return None


def _error_text(error: int) -> str:
    return os.strerror(error) if error in errno.errorcode else "unknown"


def _said(notes: Sequence[str]) -> str:
    return next((note for note in notes if note.startswith("fio:")), "it gave no reason")


def _short(load: Load, jobs: Sequence[JobDocument]) -> str:
    """In what way the jobs did less than was asked."""
    if len(jobs) < load.numjobs:
        return f"{len(jobs)} of {load.numjobs} jobs reported"
    if load.runtime_s is None:
        written = sum(job.write.io_bytes for job in jobs)
        return f"{written} of {load.total_bytes} B were written" if written < load.total_bytes else ""
    ran_s = min(max(job.read.runtime, job.write.runtime) for job in jobs) / _MS_PER_S
    return f"{ran_s:g} of {load.runtime_s:g} s were measured" if ran_s < load.runtime_s * _FULL else ""


def _missing(load: Load, measurements: Sequence[Measurement]) -> str:
    missing = required(load) - {measurement.metric for measurement in measurements}
    return f"the document gives no {', '.join(sorted(missing))}" if missing else ""


# --- what it measured ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Timed:
    """The latencies of one kind of request, of all jobs together; at least one. In ns."""

    metric: str
    mean: float
    max: int
    bins: Mapping[int, int]


def _directions(jobs: Sequence[JobDocument]) -> Iterator[tuple[str, Sequence[Direction]]]:
    """The directions in which there was a request."""
    for verb, directions in (("read", [job.read for job in jobs]), ("write", [job.write for job in jobs])):
        if any(direction.total_ios for direction in directions):
            yield verb, directions


def _timed(jobs: Sequence[JobDocument]) -> Iterator[_Timed]:
    """What was timed: a run that ended within its ramp has requests, and not one latency."""
    kinds = [(verb, [direction.clat_ns for direction in directions]) for verb, directions in _directions(jobs)]
    for kind, latencies in (*kinds, ("sync", [job.sync.lat_ns for job in jobs if job.sync is not None])):
        bins = histograms.merged(latency.bins for latency in latencies)
        if bins:
            yield _Timed(f"{kind}_latency", _mean(latencies), max(latency.max for latency in latencies), bins)


def _mean(latencies: Sequence[Latency]) -> float:
    """Weighted by requests."""
    counts = [sum(latency.bins.values()) for latency in latencies]
    total = sum(counts)
    return fsum(latency.mean * (count / total) for latency, count in zip(latencies, counts, strict=True))


def _measurements(jobs: Sequence[JobDocument], timed: Sequence[_Timed], all_labels: Labels) -> Iterator[Measurement]:
    for metric, value, unit in _values(jobs, timed):
        yield Measurement(metric=metric, value=value, unit=unit, labels=all_labels)


def _values(jobs: Sequence[JobDocument], timed: Sequence[_Timed]) -> Iterator[tuple[str, float, Unit]]:
    """A zero is no measurement of a rate or a latency, so it gives nothing; of CPU time it is one."""
    for verb, directions in _directions(jobs):
        runtime_s = max(direction.runtime for direction in directions) / _MS_PER_S
        io_bytes = sum(direction.io_bytes for direction in directions)
        if runtime_s and io_bytes:
            yield f"{verb}_bandwidth", io_bytes / runtime_s, "B/s"
            yield f"{verb}_iops", sum(direction.total_ios for direction in directions) / runtime_s, "1/s"
    for each in timed:
        taken = histograms.percentiles(each.bins, tuple(_PERCENTILES.values()))
        for name, nanoseconds in zip(_LATENCIES, (each.mean, *taken, each.max), strict=True):
            if nanoseconds >= 1:
                yield f"{each.metric}_{name}", nanoseconds / _NS_PER_S, "s"
    yield "cpu_user", fsum(job.usr_cpu / len(jobs) for job in jobs) / _PERCENT, "ratio"
    yield "cpu_system", fsum(job.sys_cpu / len(jobs) for job in jobs) / _PERCENT, "ratio"


def _histogram(timed: _Timed, all_labels: Labels) -> Histogram:
    bins = tuple((nanoseconds / _NS_PER_S, count) for nanoseconds, count in timed.bins.items())
    return Histogram(metric=timed.metric, unit="s", labels=all_labels, bins=bins)
