"""What `dcgmi dmon` prints, as samples; and the judgement of an attempt.

Its table is text: columns stand where the header says, a cell may be blank, and the header comes again. There are no
times in it: a GPU's n-th row (from 0) is taken as n intervals after the start, which dmon keeps to within milliseconds.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from statistics import fmean

from pipelines.benchmarks.dcgm_profile.fields import FIELDS
from pipelines.benchmarks.dcgm_profile.params import Params
from pipelines.errors import UnknownOutput
from pipelines.families import asked, dcgm_tool
from pipelines.records import Measurement, Outcome, Parsed, RawOutput, Series
from pipelines.tracks import MOST_SAMPLES, Track

_MS_PER_S = 1_000
_FIRST_WITH_BLANK_CELLS = 4  # an older dcgmi leaves a missing value out, and those after it stand too far left
_ENTITY = re.compile(r"(GPU|GPU-I|GPU-CI) (\d{1,5})")
_STOPPED = "dmon was stopped"
_BEHIND = 0.9  # of the samples asked for: an interval is a little longer than asked

Samples = Mapping[tuple[str, str], list[tuple[float, float]]]
"""By device and short name: seconds since the start, and what was printed."""


def required(_: Params) -> frozenset[str]:
    return frozenset({"sm_active"})


def parse(raw: RawOutput) -> Parsed:
    """Judge and read one attempt.

    Raises:
        UnknownOutput: dcgmi ended well and printed something else than dmon's table, or a cell that is no number.
    """
    params = asked.params(raw, Params, dcgm_tool.TOOL)
    if isinstance(params, Parsed):
        return params
    ended_with = raw.facts.get("ended_with")  # what it stood beside has ended, and so it was ended: nothing is missing
    if raw.exit_status and not (ended_with and _STOPPED in raw.stdout):
        return dcgm_tool.failure(raw.exit_status, raw.stdout + raw.stderr)
    samples, rows, notes = _table(raw, params.interval_ms / _MS_PER_S)
    if not rows and (ended_with or raw.timed_out or raw.signal is not None):
        return Parsed(outcome=Outcome.TRUNCATED, reason="it was ended before it printed a sample")
    if not rows:
        raise UnknownOutput(dcgm_tool.TOOL, "a table that begins with #Entity and has a row", raw.stdout)
    measurements = tuple(_measurements(samples))
    outcome, reason = Outcome.OK, ""
    if not any(each.metric == "sm_active" for each in measurements):
        outcome, reason = Outcome.NOT_MEASURED, _WITHOUT
    elif not ended_with and (raw.timed_out or raw.signal is not None or rows < params.samples * _BEHIND):
        outcome, reason = Outcome.TRUNCATED, f"it printed {rows} of {params.samples} samples"
    return Parsed(
        outcome=outcome, reason=reason, measurements=measurements, series=tuple(_series(samples)), notes=notes
    )


_WITHOUT = (
    "no GPU has a value of sm_active: it has no profiling counters, a profiler such as Nsight holds them, or MIG or "
    "a missing permission hides them"
)


def _table(raw: RawOutput, interval_s: float) -> tuple[Samples, int, tuple[str, ...]]:
    """The samples, how many the device with most has, and a note where rows could not be told apart."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    counted: Counter[str] = Counter()
    columns: list[tuple[str, int, int | None]] = []
    skipped = 0
    lines = raw.stdout.splitlines() if raw.stdout.endswith("\n") else raw.stdout.splitlines()[:-1]
    for line in lines:
        if line.startswith("#Entity"):
            columns = _columns(line)
        elif columns and (entity := _ENTITY.match(line[: columns[0][1]].rstrip())):
            device = f"{entity[1].lower()}{entity[2]}"
            at_s = counted[device] * interval_s
            counted[device] += 1
            cells = {name: line[start:end].strip() for name, start, end in columns}
            if not all(cells.values()) and _shifts(raw.tool_version):
                skipped += 1
                continue
            for name, cell in cells.items():
                if name in FIELDS and cell not in {"", "N/A"}:
                    found.setdefault((device, name), []).append((at_s, _number(cell, raw.stdout)))
    notes = (f"{skipped} rows lack a value, and this dcgmi does not say which: they are left out",) if skipped else ()
    return found, max(counted.values(), default=0), notes


def _columns(header: str) -> list[tuple[str, int, int | None]]:
    """Name, start and end of each column but the entity's; the last one has no end."""
    cells = list(re.finditer(r"\S+", header))[1:]
    ends = [*(cell.start() for cell in cells[1:]), None]
    return [(cell[0], cell.start(), end) for cell, end in zip(cells, ends, strict=False)]


def _shifts(version: str | None) -> bool:
    major = re.match(r"\d{1,9}", version or "")
    return major is None or int(major[0]) < _FIRST_WITH_BLANK_CELLS


def _number(cell: str, printed: str) -> float:
    if not re.fullmatch(r"-?\d{1,25}(\.\d{1,25})?", cell) or not math.isfinite(float(cell)):
        raise UnknownOutput(dcgm_tool.TOOL, f"a number in a cell, and not {cell[:40]!r}", printed)
    return float(cell)


def _measurements(samples: Samples) -> Iterator[Measurement]:
    for (device, name), points in sorted(samples.items()):
        metric, values = FIELDS[name].metric, sorted(value for _, value in points)
        told = {"mean": fmean(values), "p10": _rank(values, 10), "p90": _rank(values, 90), "max": values[-1]}
        for statistic, value in told.items():
            labels = {"device": device, "statistic": statistic}
            yield Measurement(metric=metric.name, value=value, unit=metric.unit, labels=labels)


def _rank(ascending: list[float], percent: int) -> float:
    """The nearest-rank percentile."""
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)]


def _series(samples: Samples) -> Iterator[Series]:
    for (device, name), points in sorted(samples.items()):
        metric = FIELDS[name].metric
        track = Track(metric.name, metric.unit, {"device": device}, "dcgm", *points[0])
        for at_s, value in points[1:]:
            track.add(at_s, value)
        for _ in range(max(0, math.ceil(math.log2(len(points) / MOST_SAMPLES)))):
            track.thin()
        yield track.series()
