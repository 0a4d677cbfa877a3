"""Energy from a job's telemetry: of a window of its time, and the metrics that every benchmark has. Pure.

For a benchmark that knows when it did its work, energy per token is

    joules = energy.taken(raw.telemetry, begins_s, ends_s)      # None: this machine does not tell
    Measurement(metric="energy_per_token", value=joules / tokens, unit="J", ...)

with seconds since the tool's start. Where the tool does not say when, the whole job is the window, and the energy is
that of loading the model as well: say so in the metric's meaning.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from math import fsum, inf, isfinite
from typing import Literal

from pipelines.records import Labels, Measurement, Outcome, Parsed, RawOutput, Series, Telemetry, Unit

_SOURCES = {"gpu": "nvml", "cpu": "rapl"}
_EDGE_S = 2.0  # by which a window may begin before the first sample, or end after the last one


def taken(
    telemetry: Telemetry | None, begins_s: float, ends_s: float, of: Literal["gpu", "cpu"] = "gpu"
) -> float | None:
    """J that all GPUs, or all CPU packages, of the machine took within the window, idle ones too.

    None where there is none, where one of them does not tell, or where the window was not sampled.
    """
    source = _SOURCES[of]
    series = [each for each in telemetry.series if each.source == source] if telemetry else []
    devices = {each.labels["device"] for each in series if "device" in each.labels}
    found = within(series, begins_s, ends_s)
    total = _total(found.values())
    return total if devices and devices == found.keys() and isfinite(total) else None


def within(series: Iterable[Series], begins_s: float, ends_s: float) -> Mapping[str, float]:
    """J by device within the window: from its counter; where it has none, its power over time, linear in between."""
    known = tuple(series)
    found: dict[str, float] = {}
    if ends_s <= begins_s:
        return found
    for each in known:
        device = each.labels.get("device")
        if device and each.metric == "power" and (joules := _integral(each, begins_s, ends_s)) is not None:
            found[device] = joules
    for each in known:
        device = each.labels.get("device")
        if device and each.metric == "energy" and (joules := _grown(each, begins_s, ends_s)) is not None:
            found[device] = joules
    return found


def measurements(telemetry: Telemetry) -> tuple[Measurement, ...]:
    """`energy` and `power_mean` by device and `throttled_time` by device and reason, of the whole job.

    What was sampled once only gives none: it has no duration.
    """
    found = _measurements(telemetry.series)
    return tuple(
        Measurement(metric=name, value=value, unit=unit, labels=labels)
        for name, value, unit, labels in found
        if isfinite(value)
    )


def beside(raw: RawOutput, parsed: Parsed) -> Parsed:
    """What was sampled beside the tool is kept however the job ended; numbers are made of it if it ended well."""
    if raw.telemetry is None:
        return parsed
    told = measurements(raw.telemetry) if parsed.outcome is Outcome.OK else ()
    known = {(each.metric, tuple(sorted(each.labels.items()))) for each in parsed.measurements}
    added = (each for each in told if (each.metric, tuple(sorted(each.labels.items()))) not in known)
    return parsed.model_copy(
        update={
            "measurements": (*parsed.measurements, *added),
            "series": (*raw.telemetry.series, *parsed.series),
            "notes": (*parsed.notes, *raw.telemetry.notes),
        }
    )


def _measurements(series: tuple[Series, ...]) -> Iterator[tuple[str, float, Unit, Labels]]:
    lasting = [each for each in series if each.seconds[-1] > each.seconds[0]]
    with_power = {each.labels.get("device") for each in lasting if each.metric == "power"}
    with_counter = {each.labels.get("device") for each in lasting if each.metric == "energy"}
    for each in lasting:
        took_s, device = each.seconds[-1] - each.seconds[0], each.labels.get("device")
        if each.metric == "energy" and each.samples[-1] >= each.samples[0]:
            joules = each.samples[-1] - each.samples[0]
            yield "energy", joules, "J", each.labels
            if device not in with_power:
                yield "power_mean", joules / took_s, "W", each.labels
        elif each.metric == "power":
            yield "power_mean", each.mean, "W", each.labels
            if device not in with_counter:
                yield "energy", each.mean * took_s, "J", each.labels
        elif each.metric == "throttled":
            yield "throttled_time", each.mean * took_s, "s", each.labels


def _grown(counter: Series, begins_s: float, ends_s: float) -> float | None:
    first, last = _at(counter, begins_s), _at(counter, ends_s)
    return last - first if first is not None and last is not None and last >= first else None


def _integral(power: Series, begins_s: float, ends_s: float) -> float | None:
    first, last = _at(power, begins_s), _at(power, ends_s)
    if first is None or last is None:
        return None
    samples = zip(power.seconds, power.samples, strict=True)
    inside = [(at_s, value) for at_s, value in samples if begins_s < at_s < ends_s]
    corners = [(begins_s, first), *inside, (ends_s, last)]
    return _total((later_s - at_s) * (value + after) / 2 for (at_s, value), (later_s, after) in pairwise(corners))


def _total(values: Iterable[float]) -> float:
    """Every Python's `fsum` gives the same, which `sum` does not since 3.12. Infinite where it is beyond a float."""
    try:
        return fsum(values)
    except (OverflowError, ValueError):
        return inf


def _at(series: Series, at_s: float) -> float | None:
    """Its value at a time: linear between samples, and on past the edges for as little as a period or two."""
    times, values = series.seconds, series.samples
    if len(times) < 2 or not times[0] - _EDGE_S <= at_s <= times[-1] + _EDGE_S:
        return None
    right = min(max(bisect_right(times, at_s), 1), len(times) - 1)
    left = right - 1
    if times[right] <= times[left]:
        return values[left]
    if series.metric != "energy" and not times[0] <= at_s <= times[-1]:
        return values[0] if at_s < times[0] else values[-1]
    return values[left] + (values[right] - values[left]) * (at_s - times[left]) / (times[right] - times[left])
