"""Prometheus' classic histograms: read from a server's text, subtracted, and their quantiles as PromQL has them. Pure.

https://prometheus.io/docs/instrumenting/exposition_formats/ says how they are written; the quantile is that of
`histogram_quantile` (promql/quantile.go, bucketQuantile).
"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from prometheus_client.parser import text_string_to_metric_families
from pydantic import Field, FiniteFloat

from pipelines.errors import UnknownOutput
from pipelines.records import Record

_STARTED = "process_start_time_seconds"
_INF = "+Inf"
_HIGHEST_BOUND = 1e12  # a bound beyond is none of anything that is measured


class Series(Record):
    """A histogram with one set of labels. `buckets` has cumulative counts by upper bound, as the server wrote that."""

    labels: Mapping[str, str]
    buckets: Mapping[str, Annotated[float, Field(ge=0, le=2**63)]]


class Snapshot(Record):
    """What was read at one moment: series by histogram's name; and when the server's process began, if it says so."""

    histograms: Mapping[str, tuple[Series, ...]] = {}
    started_at: FiniteFloat | None = None


@dataclass(frozen=True)
class Increase:
    """What was observed between two snapshots: cumulative counts by upper bound, ascending; the last is infinity."""

    buckets: tuple[tuple[float, float], ...]

    @property
    def count(self) -> float:
        return self.buckets[-1][1]


def read(text: str, names: Collection[str]) -> Snapshot:
    """The histograms of these names in a server's answer; one that it does not have is not there.

    Raises:
        UnknownOutput: the text is not in Prometheus' format.
    """
    found: dict[str, dict[tuple[tuple[str, str], ...], dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    started_at = None
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removesuffix("_bucket")
                if sample.name == _STARTED:
                    started_at = float(sample.value)
                elif name != sample.name and name in names and "le" in sample.labels:
                    labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "le"))
                    found[name][labels][sample.labels["le"]] = float(sample.value)
        histograms = {
            name: tuple(Series(labels=dict(labels), buckets=buckets) for labels, buckets in series.items())
            for name, series in found.items()
        }
        return Snapshot(histograms=histograms, started_at=started_at)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as e:  # the parser's, and pydantic's, of NaN
        raise UnknownOutput("prometheus", "metrics in the text format", text) from e


def is_reset(before: Snapshot, after: Snapshot) -> bool:
    """Whether the server began anew in between: its process did, a count went down, or a series is gone."""
    if None not in (before.started_at, after.started_at) and before.started_at != after.started_at:
        return True
    for name, series in before.histograms.items():
        later = {_labels(each): each.buckets for each in after.histograms.get(name, ())}
        for each in series:
            now = later.get(_labels(each))
            if now is None or set(now) != set(each.buckets):
                return True
            if any(now[bound] < count for bound, count in each.buckets.items()):
                return True
    return False


def increase(before: Snapshot, after: Snapshot, name: str) -> Increase | None:
    """What a histogram observed in between, all of its series together; None where it has none, or nothing was.

    The server did not begin anew, see `is_reset`. A series that was not there before began at zero. None, too, of
    series whose bounds differ, or do not end at infinity.
    """
    earlier = {_labels(each): each.buckets for each in before.histograms.get(name, ())}
    total: dict[str, float] = defaultdict(float)
    series = after.histograms.get(name, ())
    if len({frozenset(each.buckets) for each in series}) != 1:
        return None
    for each in series:
        then = earlier.get(_labels(each), {})
        for bound, count in each.buckets.items():
            total[bound] += count - then.get(bound, 0.0)
    try:
        buckets = tuple(sorted((float(bound), count) for bound, count in total.items()))
    except ValueError:
        return None
    if _INF not in total or len(buckets) < 2 or not _is_cumulative(buckets) or buckets[-1][1] <= 0:
        return None
    return Increase(buckets)


def quantile(q: float, of: Increase) -> float:
    """The q-quantile, 0 < q < 1, linear within its bucket; in the last bucket, the highest finite bound."""
    rank = q * of.count
    place = next(number for number, (_, count) in enumerate(of.buckets) if count >= rank)
    if place == len(of.buckets) - 1:
        return of.buckets[-2][0]
    bound, count = of.buckets[place]
    if place == 0:
        return bound if bound <= 0 else bound * (rank / count)
    start, below = of.buckets[place - 1]
    return start + (bound - start) * ((rank - below) / (count - below))


def is_beyond(q: float, of: Increase) -> bool:
    """Whether the quantile lies above the highest finite bound, so that `quantile` is the least that it may be."""
    return of.buckets[-2][1] < q * of.count


def _is_cumulative(buckets: Sequence[tuple[float, float]]) -> bool:
    counts = [count for _, count in buckets]
    bounds = [bound for bound, _ in buckets]
    return (
        counts[0] >= 0
        and all(low <= high for low, high in pairwise(counts))
        and not any(math.isnan(bound) for bound in bounds)
        and all(abs(bound) <= _HIGHEST_BOUND for bound in bounds[:-1])
        and len(set(bounds)) == len(bounds)
    )


def _labels(series: Series) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(series.labels.items()))
