"""What nccl-tests prints and writes, read into records: its JSON document (-J) or, without one, its table on stdout."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_US_PER_S = 10**6
_GIGA = 10**9
_TIMES = frozenset({"time", "cputime"})  # the first column of either side
_PER_ITERATION = ("i_min", "i_max", "i_p99")
_ROUNDED, _LAST_DIGIT = 0.02, 0.01 * _GIGA  # by which size over time and the table's algbw may differ
_MOST = 1000  # ranks, sizes: beyond it the document is not one of ours

_Number = Annotated[float, Field(ge=0, le=1e12)]  # microseconds, GB/s


class _Reading(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Side(_Reading):
    """One of `out_of_place` and `in_place`. Microseconds, GB/s."""

    time: _Number
    alg_bw: _Number
    bus_bw: _Number
    nwrong: _Number | None = None


class PerIteration(_Reading):
    min_us: _Number
    max_us: _Number
    p50_us: _Number | None = None
    p99_us: _Number
    per_process_max_times_us: Annotated[tuple[tuple[_Number, ...], ...], Field(max_length=_MOST)] = ()


class _Result(_Reading):
    size: Annotated[int, Field(ge=0, le=2**50)]
    out_of_place: Side | None = None
    in_place: Side | None = None
    out_of_place_per_iter: PerIteration | None = None
    in_place_per_iter: PerIteration | None = None


class _Document(_Reading):
    """Keys that nothing here needs are ignored; `env`, the whole environment of the process, above all."""

    results: Annotated[tuple[_Result, ...], Field(max_length=_MOST)]


@dataclass(frozen=True)
class Row:
    """One size, in place or not. Seconds, B/s; `wrong` elements, None where they were not looked for."""

    size: int
    in_place: bool
    time_s: float
    algbw: float
    busbw: float
    wrong: float | None
    iterations_s: dict[str, float] = field(default_factory=dict)  # by "min", "p50", "p99", "max"
    ranks_s: tuple[float, ...] = ()  # the mean of each rank's times


def from_document(text: str) -> tuple[Row, ...] | None:
    """The rows of the JSON document. None: it is none, or was cut off."""
    start = text.find("{")
    if start < 0:
        return None
    try:
        document = _Document.model_validate(json.JSONDecoder().raw_decode(text, start)[0])
    except (ValueError, RecursionError):  # pydantic's and json's own are ValueErrors
        return None
    return tuple(row for result in document.results for row in _of_result(result))


def _of_result(result: _Result) -> Iterator[Row]:
    sides = (
        (False, result.out_of_place, result.out_of_place_per_iter),
        (True, result.in_place, result.in_place_per_iter),
    )
    for in_place, side, per_iteration in sides:
        if side is None:
            continue
        yield Row(
            size=result.size,
            in_place=in_place,
            time_s=side.time / _US_PER_S,
            algbw=side.alg_bw * _GIGA,
            busbw=side.bus_bw * _GIGA,
            wrong=side.nwrong,
            iterations_s=_iterations(per_iteration) if per_iteration else {},
            ranks_s=_ranks(per_iteration) if per_iteration else (),
        )


def _iterations(given: PerIteration) -> dict[str, float]:
    times = {"min": given.min_us, "p50": given.p50_us, "p99": given.p99_us, "max": given.max_us}
    return {name: time / _US_PER_S for name, time in times.items() if time is not None}


def _ranks(given: PerIteration) -> tuple[float, ...]:
    times = given.per_process_max_times_us
    return tuple(fmean(rank) / _US_PER_S for rank in times) if times and all(times) else ()


def from_table(text: str) -> tuple[Row, ...] | None:
    """The rows of the table. None: there is no head of one. Lines that NCCL prints between them are passed over.

    Read by the names in its head: some versions have no column `root`, or times of iterations. Older ones have `error`
    for `#wrong`, the largest relative deviation: floats that are added in another order give 1e-06, which is not wrong.
    """
    rows: list[Row] = []
    columns: list[str] = []
    for line in text.splitlines():
        if line.startswith("#"):
            names = re.sub(r" timestamp\s*$", "", line[1:]).split()
            columns = names if names[:2] == ["size", "count"] and _TIMES & set(names) else columns
        elif columns:
            rows.extend(_of_line(columns, line))
    return tuple(rows) if columns else None


def _of_line(columns: list[str], line: str) -> Iterator[Row]:
    cells = line.split()
    if not cells or not re.fullmatch(r"[0-9]{1,15}", cells[0]):
        return
    first = next(number for number, name in enumerate(columns) if name in _TIMES)
    width = (len(columns) - first) // 2  # of either side
    words = len([name for name in columns[2:first] if name != "root"])
    given = [cell for cell in cells if not re.fullmatch(r"\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d", cell)]
    numbers = given[max(0, len(given) - 2 * width) :]
    if not first - words <= len(given) - len(numbers) <= first:  # some collectives leave redop or root empty
        return
    for in_place in (False, True):
        side = dict(zip(columns[first : first + width], numbers[in_place * width :], strict=False))
        if (row := _row(int(cells[0]), in_place, side)) is not None:
            yield row


def _row(size: int, in_place: bool, side: dict[str, str]) -> Row | None:
    """Its algbw is size over time, which has more digits than the table's 0.05; None where the two do not agree."""
    wrong = side.get("#wrong", "N/A")
    try:
        numbers = {name: _number(cell) for name, cell in side.items() if name not in {"#wrong", "error"}}
        time_s = numbers["time" if "time" in numbers else "cputime"] / _US_PER_S
        algbw = size / time_s
        if abs(algbw - numbers["algbw"] * _GIGA) > _ROUNDED * algbw + _LAST_DIGIT:
            return None
        return Row(
            size=size,
            in_place=in_place,
            time_s=time_s,
            algbw=algbw,
            busbw=numbers["busbw"] * _GIGA,
            wrong=None if wrong == "N/A" else _number(wrong),
            iterations_s={name[2:]: numbers[name] / _US_PER_S for name in _PER_ITERATION if name in numbers},
        )
    except (ValueError, KeyError, ZeroDivisionError):
        return None


def _number(cell: str) -> float:
    """Raises: ValueError: it is none that nccl-tests prints."""
    if not re.fullmatch(r"\d{1,15}(\.\d{1,9})?(e[+-]\d{2})?", cell):
        raise ValueError(cell)
    return float(cell)


def wrong_values(text: str) -> int | None:
    """The footer's `Out of bounds values`; None: there is no footer, the run did not come to its end."""
    found = re.search(r"^# Out of bounds values\s*: (\d{1,12}) ", text, re.MULTILINE)
    return int(found[1]) if found else None


def ranks(text: str) -> list[int]:
    """The ranks that are listed, one for each GPU."""
    return [int(rank) for rank in re.findall(r"^# +Rank +([0-9]{1,6}) ", text, re.MULTILINE)]


def versions(text: str) -> dict[str, str]:
    """Of nccl-tests and of the NCCL library, as far as the output says them (from 2.17 on)."""
    found = re.search(r"^# nccl-tests version (\S{1,40}).* nccl-library=(\d{4,7})\b", text, re.MULTILINE)
    return {"nccl_tests": found[1], "nccl": _library(int(found[2]))} if found else {}


def _library(code: int) -> str:
    """`2.18.3` of 21803: NCCL_VERSION(X,Y,Z) of nccl.h; before 2.9 it was X*1000 + Y*100 + Z."""
    major = 10_000 if code >= 10_000 else 1000
    return f"{code // major}.{code % major // 100}.{code % 100}"


def said(*texts: str) -> str:
    """The lines that tell of a failure, in one: what NCCL warned of, and what the test calls a failure."""
    telling = re.compile(r"NCCL WARN|Test (?:NCCL|CUDA) failure|Test failure|error|Error|invalid|Invalid|Please check")
    lines = [line.strip() for text in texts for line in text.splitlines() if telling.search(line)]
    return "; ".join(dict.fromkeys(lines))[:400]
