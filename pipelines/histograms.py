"""Histograms of latencies: counts by bin, which add up across jobs, nodes and nights, and their percentiles. Pure."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

Value = TypeVar("Value", int, float)


def merged(parts: Iterable[Mapping[Value, int]]) -> dict[Value, int]:
    """Counts by bin value of all parts together, ascending by value. Bins nothing fell into are left out."""
    total: dict[Value, int] = {}
    for part in parts:
        seen = total.get
        total.update({value: seen(value, 0) + count for value, count in part.items() if count})
    return dict(sorted(total.items()))


def percentiles(bins: Mapping[Value, int], wanted: Sequence[float]) -> tuple[Value, ...]:
    """The value of the first bin at which the cumulative count reaches p % of all samples, for each p of `wanted`.

    `bins` ascend by value, as `merged` gives them, and hold at least one sample; p lies in 0..100. This is fio's own
    rule (calc_clat_percentiles in its stat.c), in integers: p is taken as the exact binary fraction that it is, so
    that no rounding decides between two bins.
    """
    values = tuple(bins)
    cumulative = tuple(accumulate(bins.values()))
    return tuple(values[bisect_left(cumulative, _rank(p, cumulative[-1]))] for p in wanted)


def _rank(p: float, total: int) -> int:
    """How many samples are at least p % of `total`."""
    numerator, denominator = p.as_integer_ratio()
    return -(-numerator * total // (denominator * 100))
