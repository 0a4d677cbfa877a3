"""What a raw output of nccl-tests says: an outcome, and measurements in base units."""

import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

from pipelines.benchmarks.nccl_tests import table
from pipelines.benchmarks.nccl_tests.params import Params, labels
from pipelines.benchmarks.nccl_tests.table import Row
from pipelines.errors import UnknownOutput
from pipelines.families import asked
from pipelines.records import Labels, Measurement, Outcome, Parsed, RawOutput, Unit

_NO_GPU = re.compile(r"no CUDA-capable device|CUDA driver version is insufficient|OS call failed or operation not supp")
_CONFIG = re.compile(  # the second is what releases before 2.17 say of too many GPUs
    r"Invalid number of GPUs|invalid device ordinal|invalid option|not enough slots|is not supported before NCCL"
)
_NOT_STARTED = re.compile(r"mpirun was unable to (?:launch|find)|could not (?:access|find).*executable")
_CRASHES = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS})  # the first where a failure leaves -J's file open
_NOTES = 5
_DIGITS = 1e9  # B/s; less than that is printed with two digits or fewer


def required(_: Params) -> frozenset[str]:
    return frozenset({"algbw", "busbw", "collective_time"})


def parse(raw: RawOutput) -> Parsed:
    """Judge and read one attempt. Sizes that were measured before it was ended come with TRUNCATED.

    Raises:
        UnknownOutput: nccl-tests ended well and printed something else than its table.
    """
    params = asked.params(raw, Params, "nccl-tests")
    if isinstance(params, Parsed):
        return params
    rows = (table.from_document(raw.output) if raw.output else None) or table.from_table(raw.stdout)
    if (failure := _failure(raw, params, rows or ())) is not None:
        return failure
    if rows is None:
        raise UnknownOutput("nccl-tests", "a table of sizes", raw.output or raw.stdout)
    seen = table.ranks(raw.stdout)
    shared = {**labels(params), **({"ranks": str(len(seen))} if seen else {}), **table.versions(raw.stdout)}
    factor = _factor(params, len(seen)) if seen else None
    measurements = tuple(each for row in rows for each in _measurements(row, factor, shared))
    reason = _interrupted(raw) or _short(raw, params, rows, measurements)
    return Parsed(
        outcome=Outcome.TRUNCATED if reason else Outcome.OK,
        reason=reason,
        measurements=measurements,
        notes=_notes(raw),
    )


# --- how it ended -------------------------------------------------------------------------------------------


def _interrupted(raw: RawOutput) -> str:
    if raw.timed_out:
        return f"nccl-tests was ended after {raw.job.timeout_s:g} s"
    return f"nccl-tests was ended by signal {raw.signal}" if raw.signal is not None else ""


def _failure(raw: RawOutput, params: Params, rows: tuple[Row, ...]) -> Parsed | None:
    """Why nothing that it measured counts; None: it may."""
    seen = table.ranks(raw.stdout)
    wrong = sorted({row.size for row in rows if row.wrong})
    if wrong or table.wrong_values(raw.stdout):
        sizes = f" at {', '.join(map(str, wrong))} B" if wrong else ""
        return Parsed(outcome=Outcome.TOOL_FAILED, reason=f"the {params.collective} gave wrong results{sizes}")
    if params.per_rank and len(seen) != len(set(seen)):
        reason = "this nccl-tests was built without MPI: each process was a rank 0 of its own"
        return Parsed(outcome=Outcome.CONFIG, reason=reason)
    if raw.exit_status or raw.signal in _CRASHES or "invalid option" in raw.stdout:
        return _ended_badly(raw)
    if len(seen) == 1:
        reason = "it ran on one GPU, and a collective operation is between several"
        return Parsed(outcome=Outcome.NOT_MEASURED, reason=reason)
    if _interrupted(raw) and not rows:
        return Parsed(outcome=Outcome.TRUNCATED, reason=f"{_interrupted(raw)}, before it had measured a size")
    return None


def _ended_badly(raw: RawOutput) -> Parsed:
    said = table.said(raw.stderr, raw.stdout) or next(
        (line.strip() for line in (raw.stderr + raw.stdout).splitlines() if line.strip("# ")), "it gave no reason"
    )
    everything = raw.stderr + raw.stdout
    if _NO_GPU.search(everything) or _NOT_STARTED.search(everything):
        outcome = Outcome.NOT_MEASURED
    else:
        outcome = Outcome.CONFIG if _CONFIG.search(everything) else Outcome.TOOL_FAILED
    how = f"by crashing (signal {raw.signal})" if raw.signal else f"with exit status {raw.exit_status}"
    return Parsed(outcome=outcome, reason=f"nccl-tests ended {how}: {said[:400]}")


def _short(raw: RawOutput, params: Params, rows: tuple[Row, ...], measurements: tuple[Measurement, ...]) -> str:
    """In what way it did less than was asked."""
    measured, asked = {row.size for row in rows}, params.sizes
    if reduced := re.search(r"^# (Reducing maxBytes to \d+ due to memory limitation)", raw.stdout, re.MULTILINE):
        return f"it did not measure all sizes: {reduced[1]}"
    if len(measured) < len(asked):
        return f"{len(measured)} of {len(asked)} sizes were measured"
    if table.wrong_values(raw.stdout) is None:
        return "it did not come to its end: there is no count of wrong results"
    missing = required(params) - {each.metric for each in measurements}
    return f"it gives no {', '.join(sorted(missing))}" if missing else ""


def _notes(raw: RawOutput) -> tuple[str, ...]:
    """The average over all sizes, the tiny ones as well, is no measure of anything; what NCCL warned of may be."""
    average = re.search(r"^# (Avg bus bandwidth\s*: \S{1,20})", raw.stdout, re.MULTILINE)
    warned = [line.strip()[:300] for line in (raw.stdout + raw.stderr).splitlines() if "NCCL WARN" in line]
    head = [f"{' '.join(average[1].split())} GB/s, over all sizes; no gate"] if average else []
    return tuple([*head, *dict.fromkeys(warned)][:_NOTES])


# --- what it measured ---------------------------------------------------------------------------------------


def _factor(params: Params, ranks: int) -> float:
    """busbw over algbw: the share of the size that goes over each GPU's links (doc/PERFORMANCE.md)."""
    return (2 if params.collective == "all_reduce" else 1) * (ranks - 1) / ranks


def _measurements(row: Row, factor: float | None, shared: Labels) -> Iterator[Measurement]:
    """A busbw of a small size is printed as 0.05 or 0.00, with too few digits; then it is algbw times its factor."""
    all_labels = {**shared, "size": str(row.size), "in_place": str(row.in_place).lower()}
    if row.busbw < _DIGITS and factor is not None:
        row = replace(row, busbw=row.algbw * factor)
    for metric, value, unit in _values(row):
        if value > 0:
            yield Measurement(metric=metric, value=value, unit=unit, labels=all_labels)
    for rank, time_s in enumerate(row.ranks_s):
        if time_s > 0:
            labels_of_rank = {**all_labels, "rank": str(rank)}
            yield Measurement(metric="rank_time", value=time_s, unit="s", labels=labels_of_rank)
    if len(row.ranks_s) > 1 and (slowest := max(row.ranks_s)) > 0:
        lag = 1 - median(row.ranks_s) / slowest
        yield Measurement(metric="straggler_lag", value=lag, unit="ratio", labels=all_labels)


def _values(row: Row) -> Iterator[tuple[str, float, Unit]]:
    yield "collective_time", row.time_s, "s"
    yield "algbw", row.algbw, "B/s"
    yield "busbw", row.busbw, "B/s"
    for name, time_s in row.iterations_s.items():
        yield f"iteration_time_{name}", time_s, "s"
