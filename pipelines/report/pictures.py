"""Small pictures of repeats and of latencies, as coordinates for SVG: the data and no decoration. Pure."""

import math
from collections.abc import Mapping, Sequence

from pipelines import histograms
from pipelines.records import Record
from pipelines.tables.render import format_value

_MOST_DOTS = 120
_COLUMNS = 72
_PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}
_RISES = {"p50": -10.0, "p99": -22.0, "p99.9": -10.0}
_NEAR_THE_END = 88.0  # beyond, a label behind its line would leave the picture


class Strip(Record):
    """Values on a line from zero to the largest of their kind on the page. Positions are in 0..100."""

    dots: tuple[float, ...]
    median: float
    says: str


class Mark(Record):
    at: float  # 0..100
    text: str
    rise: float = 0.0  # where its line begins, so that labels close together stand above each other
    before: bool = False  # its label stands before the line, not behind it


class Distribution(Record):
    """A histogram over a logarithmic axis. x is in 0..100; y runs from 0 at the top to 30, the base line."""

    says: str
    total: int
    path: str
    ticks: tuple[Mark, ...]
    marks: tuple[Mark, ...]


def strip(values: Sequence[float], middle: float, top: float, unit: str) -> Strip:
    """`top` is the value at the right end; beyond 120 values evenly spaced ones stand for all, ends included."""
    ordered = sorted(values)
    if len(ordered) > _MOST_DOTS:
        ordered = [ordered[round(i * (len(ordered) - 1) / (_MOST_DOTS - 1))] for i in range(_MOST_DOTS)]
    said = ", ".join(format_value(value, unit) for value in ordered[:10])
    return Strip(
        dots=tuple(_place(value, top) for value in ordered),
        median=_place(middle, top),
        says=f"values {said}{', and more' if len(ordered) > 10 else ''}; the axis starts at zero",
    )


def _place(value: float, top: float) -> float:
    return round(100 * (max(value, 0.0) / top), 2) if top > 0 else 0.0


def decades(bins: Sequence[Mapping[float, int]]) -> tuple[int, int]:
    """The powers of ten that enclose every bin above zero, so that pictures side by side share an axis."""
    values = [value for each in bins for value in each if value > 0]
    if not values:
        return 0, 1
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def distribution(bins: Mapping[float, int], axis: tuple[int, int], unit: str) -> Distribution:
    """`bins` count by value, ascending, and hold at least one sample; `axis` is from `decades`."""

    def x(value: float) -> float:
        place = (math.log10(value) - axis[0]) / (axis[1] - axis[0]) if value > 0 else 0.0
        return 100 * min(max(place, 0.0), 1.0)

    columns = [0] * _COLUMNS
    for value, count in bins.items():
        columns[min(int(x(value) / 100 * _COLUMNS), _COLUMNS - 1)] += count
    width, highest = 100 / _COLUMNS, max(columns)
    steps = [f"V{30 - 30 * count / highest:.2f}H{(i + 1) * width:.2f}" for i, count in enumerate(columns)]
    at = dict(zip(_PERCENTILES, histograms.percentiles(bins, tuple(_PERCENTILES.values())), strict=True))
    total = sum(bins.values())
    said = ", ".join(f"{name} {format_value(value, unit)}" for name, value in at.items())
    return Distribution(
        says=f"{said}, of {total:,} samples",
        total=total,
        path=f"M0 30{''.join(steps)}V30Z",
        ticks=tuple(
            Mark(at=round(x(10.0**power), 2), text=_bare(10.0**power, unit)) for power in range(axis[0], axis[1] + 1)
        ),
        marks=tuple(_mark(name, round(x(value), 2)) for name, value in at.items()),
    )


def _mark(name: str, at: float) -> Mark:
    return Mark(at=at, text=name, rise=_RISES[name], before=name == "p50" or at > _NEAR_THE_END)


def _bare(value: float, unit: str) -> str:
    """`100 µs` for an axis: no decimals."""
    number, _, rest = format_value(value, unit).partition(" ")
    return f"{float(number.replace(',', '')):g} {rest}"
