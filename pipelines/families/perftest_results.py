"""What one of perftest's programs left, read: an outcome, measurements in base units. Its document, or else its table.

Up to 6.06 the document has no quotes around its keys, and later ones are no JSON with some options; the table on stdout
says the same. Two numbers are not taken, whatever they are: BW_peak, which is 0 in a run that lasts a given time, and
t_stdev, which is computed from truncated differences, and is -nan where some of them overflow.
"""

import json
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipelines.errors import UnknownOutput
from pipelines.families import perftest_tool
from pipelines.families.perftest_tool import Params
from pipelines.records import Labels, Measurement, Outcome, Parsed, Record, Unit

_BITS_PER_BYTE = 8
_GIGA, _MEGA, _MIB = 10**9, 10**6, 2**20
_US_PER_S = 10**6
_ROUNDED = 0.02  # by which a rate and the bandwidth that it makes may differ
_NOTES, _SAID = 5, 300
_LARGEST = 1e15  # of a number in a result
_BANDWIDTH = ("MsgSize", "n_iterations", "BW_peak", "BW_average", "MsgRate")
_TIMES = ("t_min", "t_max", "t_typical", "t_avg", "t_stdev", "percentile_99", "percentile_99.9")
_LATENCY = ("MsgSize", "n_iterations", *_TIMES)
_CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS})
_NOT_TAKEN = frozenset({"n_iterations", "BW_peak", "t_stdev"})
_UNANSWERED = re.compile(r"Couldn't connect to |Temporary failure in name resolution")
_NO_DEVICE = re.compile(
    r"Did not detect devices|Unable to find the Infiniband/RoCE device|No IB devices found|IB device \S* ?not found"
)
_CONFIG = re.compile(r"unrecognized option|invalid option|Invalid Command|Parser function exited|not known for ")
_HEADER = re.compile(r"^ *#bytes +#iterations.*$", re.MULTILINE)


class Ended(Record):
    """How a program of perftest ended, and what it left. `output` is the document that a client writes to a file."""

    argv: tuple[str, ...]
    exit_status: int | None
    signal: int | None
    timed_out: bool
    stdout: str
    stderr: str
    output: str | None = None

    @property
    def said(self) -> str:
        """The lines that are about a failure, in one."""
        lines = [line.strip() for line in (self.stderr or self.stdout).splitlines()]
        return "; ".join(line for line in lines if line.strip("-* "))[:_SAID] or "it gave no reason"


@dataclass(frozen=True)
class _Printed:
    """The numbers that are taken, as perftest names them, and what a bandwidth of 1 is in B/s."""

    values: Mapping[str, float]
    bandwidth_unit: float


def unanswered(stdout: str, stderr: str) -> str | None:
    """Why a client met no server; None: it met one, or failed before it looked for one."""
    for line in (stderr + "\n" + stdout).splitlines():
        if _UNANSWERED.search(line):
            return line.strip()
    return None


def served(text: str) -> bool:
    """Whether a server had a client; it prints the address of its queue pair then."""
    return "remote address:" in text


def parse(ended: Ended, params: Params, timeout_s: float) -> Parsed:
    """Judge and read what a client left; `timeout_s` is what its job had.

    Raises:
        UnknownOutput: it ended well, and neither its document nor its table is what perftest prints.
    """
    if failure := _failure(ended, timeout_s):
        return failure
    names = _BANDWIDTH if params.measure == "bandwidth" else _LATENCY
    printed = _document(ended, names) or _table(ended.stdout, names)
    if printed is None:
        raise UnknownOutput(perftest_tool.program(params), "a table of one row", ended.output or ended.stdout)
    _check(params, printed)
    labels = {**perftest_tool.labels(params), **_seen(ended)}
    measurements = tuple(_measurements(params, printed, labels))
    missing = perftest_tool.required(params) - {each.metric for each in measurements}
    notes = tuple(line.strip() for line in ended.stdout.splitlines() if "WARNING" in line)[:_NOTES]
    return Parsed(
        outcome=Outcome.TRUNCATED if missing else Outcome.OK,
        reason=f"it gives no {', '.join(sorted(missing))}" if missing else "",
        measurements=measurements,
        notes=tuple(note[:_SAID] for note in notes),
    )


# --- how it ended -------------------------------------------------------------------------------------------


def _failure(ended: Ended, timeout_s: float) -> Parsed | None:
    program = ended.argv[0] if ended.argv else "perftest"
    everything = ended.stderr + "\n" + ended.stdout
    has_crashed = ended.signal in _CRASHES and not ended.timed_out
    if ended.timed_out or (ended.signal is not None and not has_crashed):
        how = f"after {timeout_s:g} s" if ended.timed_out else f"by signal {ended.signal}"
        return Parsed(outcome=Outcome.TRUNCATED, reason=f"{program} was ended {how}")
    if not ended.exit_status and not has_crashed:
        return None
    if _NO_DEVICE.search(everything) or unanswered(ended.stdout, ended.stderr):
        return Parsed(outcome=Outcome.NOT_MEASURED, reason=f"{program}: {ended.said}")
    if "unrecognized option '--use_cuda" in everything:
        return Parsed(outcome=Outcome.CONFIG, reason=f"this perftest was built without CUDA or DMA-BUF: {ended.said}")
    if "Couldn't allocate MR" in everything and any(word.startswith("--use_cuda=") for word in ended.argv):
        reason = "the adapter may not reach the GPU's memory; load nvidia-peermem, or try use_cuda_dmabuf"
        return Parsed(outcome=Outcome.CONFIG, reason=f"{reason}: {ended.said}")
    outcome = Outcome.CONFIG if _CONFIG.search(everything) else Outcome.TOOL_FAILED
    how = f"by crashing (signal {ended.signal})" if has_crashed else f"with exit status {ended.exit_status}"
    return Parsed(outcome=outcome, reason=f"{program} ended {how}: {ended.said}")


# --- what it printed ----------------------------------------------------------------------------------------


def _document(ended: Ended, names: tuple[str, ...]) -> _Printed | None:
    """The results of the JSON document. None: there is none, or it is no JSON."""
    try:
        found = json.loads(ended.output or "")["results"]
        values = {name: float(found[name]) for name in names if name not in _NOT_TAKEN}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    unit = _GIGA / _BITS_PER_BYTE if "--report_gbits" in ended.argv else _MIB
    return _Printed(values, unit) if _sensible(values) else None


def _sensible(values: Mapping[str, float]) -> bool:
    return all(0 <= value <= _LARGEST for value in values.values())


def _table(text: str, names: tuple[str, ...]) -> _Printed | None:
    """The first row of the table; what perftest calls MB in it is 2^20 bytes."""
    header = _HEADER.search(text)
    if header is None:
        return None
    for line in text[header.end() :].splitlines():
        cells = dict(zip(names, line.split(), strict=False))
        try:
            values = {name: float(cell) for name, cell in cells.items() if name not in _NOT_TAKEN}
        except ValueError:
            continue
        if len(cells) == len(names) and _sensible(values):
            return _Printed(values, _GIGA / _BITS_PER_BYTE if "[Gb/sec]" in header[0] else _MIB)
    return None


def _check(params: Params, printed: _Printed) -> None:
    """Raises: UnknownOutput: the numbers are not of this load, or do not agree with each other."""
    values = printed.values
    if values["MsgSize"] != params.size_bytes:
        raise UnknownOutput("perftest", f"messages of {params.size_bytes} B", str(values))
    if params.measure == "bandwidth":
        given = values["BW_average"] * printed.bandwidth_unit
        made = values["MsgRate"] * _MEGA * params.size_bytes
        least = 0.01 * printed.bandwidth_unit + params.size_bytes  # of either the last digit
        agree = abs(given - made) <= _ROUNDED * given + least
    else:
        low, high, median, mean = (values[name] for name in ("t_min", "t_max", "t_typical", "t_avg"))
        p99, p999 = values["percentile_99"], values["percentile_99.9"]
        agree = low <= median <= p99 <= p999 and low <= mean <= high and median <= high
    if not agree:
        raise UnknownOutput("perftest", "numbers that agree with each other", str(values))


def _seen(ended: Ended) -> Labels:
    """The device and its kind of link, where it says them, as the table's head does."""
    device = re.search(r"\bDevice +: (\S+)", ended.stdout)
    link = re.search(r"^ Link type +: (\S+)", ended.stdout, re.MULTILINE)
    return {name: found[1][:_SAID] for name, found in (("device", device), ("link", link)) if found}


def _measurements(params: Params, printed: _Printed, labels: Labels) -> Iterator[Measurement]:
    """A zero is a number with too few digits; it gives nothing."""
    for metric, value, unit in _values(params, printed):
        if value > 0:
            yield Measurement(metric=metric, value=value, unit=unit, labels=labels)


def _values(params: Params, printed: _Printed) -> Iterator[tuple[str, float, Unit]]:
    values = printed.values
    if params.measure == "bandwidth":
        yield "bandwidth", values["BW_average"] * printed.bandwidth_unit, "B/s"
        yield "message_rate", values["MsgRate"] * _MEGA, "1/s"
        return
    names = {"min": "t_min", "p50": "t_typical", "mean": "t_avg", "max": "t_max"}
    for name, printed_name in {**names, "p99": "percentile_99", "p999": "percentile_99.9"}.items():
        yield f"latency_{name}", values[printed_name] / _US_PER_S, "s"
