"""A quantity over time as it is sampled: bounded, with the summary of all samples. Pure."""

from pipelines.records import Labels, Series, Unit

MOST_SAMPLES = 512  # of a quantity that are kept


class Track:
    """One quantity's samples: those that are kept, and the summary of all that were taken."""

    def __init__(self, metric: str, unit: Unit, labels: Labels, source: str, at_s: float, value: float) -> None:
        self._metric, self._unit, self._labels, self._source = metric, unit, labels, source
        self._kept = [(at_s, value)]
        self._last = (at_s, value)
        self._count, self._area = 1, 0.0
        self._minimum = self._maximum = value

    def add(self, at_s: float, value: float) -> None:
        """Take a sample; the caller goes forward in time."""
        last_s, last = self._last
        self._area += (at_s - last_s) * (value + last) / 2
        self._last = (at_s, value)
        self._count += 1
        self._minimum, self._maximum = min(self._minimum, value), max(self._maximum, value)
        self._kept.append(self._last)

    def thin(self) -> None:
        """Keep every other sample."""
        del self._kept[1::2]

    def series(self) -> Series:
        """A counter's first sample is its zero."""
        zero = self._kept[0][1] if self._metric == "energy" else 0.0
        kept = self._kept if self._kept[-1] == self._last else [*self._kept, self._last]
        if self._minimum == self._maximum:
            kept = [kept[0], kept[-1]] if len(kept) > 1 else kept
        begun_s, ended_s = self._kept[0][0], self._last[0]
        mean = self._area / (ended_s - begun_s) if ended_s > begun_s else self._last[1]
        mean = min(max(mean, self._minimum), self._maximum)  # a sum of many is off by a rounding
        return Series(
            metric=self._metric,
            unit=self._unit,
            labels=self._labels,
            source=self._source,
            count=self._count,
            minimum=self._minimum - zero,
            mean=mean - zero,
            maximum=self._maximum - zero,
            seconds=tuple(round(at_s, 4) for at_s, _ in kept),
            samples=tuple(value - zero for _, value in kept),
        )
