"""Beside a tool: what the machine says of its power, clocks and temperatures, sampled by a thread until the tool ends.

The thread begins once the tool has been started, so that no process is forked beside it, and is waited for at the end.
A source that fails is dropped with a note. Nothing here ends a job.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines import gauges, nvml
from pipelines.gauges import Gauge
from pipelines.records import Telemetry
from pipelines.tracks import MOST_SAMPLES, Track

_MOST_NOTES = 20
_PATIENCE_S = 5.0  # for a driver that does not answer

_Key = tuple[str, str, str, tuple[tuple[str, str], ...]]


class Sampler:
    """Samples from `start` to `stop`, every `period_s`; a job of many periods ever more rarely."""

    def __init__(self, period_s: float, most_samples: int = MOST_SAMPLES) -> None:
        self._period_s = period_s
        self._most_samples = most_samples
        self._ends = threading.Event()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._begun_at = 0.0
        self._tracks: dict[_Key, Track] = {}
        self._notes: list[str] = []
        self._cpu_s = 0.0

    def start(self) -> None:
        """From now on; now is second 0."""
        if self._period_s > 0 and self._thread is None:
            self._begun_at = time.monotonic()
            self._thread = threading.Thread(target=self._sample_until_the_end, name="telemetry", daemon=True)
            self._thread.start()

    def stop(self) -> Telemetry | None:
        """Take a last sample and give all back; None where nothing was sampled and nothing is to be said."""
        if self._thread is None:
            return None
        self._ends.set()
        if not self._done.wait(_PATIENCE_S):  # the thread may still write: nothing of it is read
            return Telemetry(notes=(f"telemetry: a source did not answer within {_PATIENCE_S:g} s",))
        self._thread.join()
        if not self._tracks and not self._notes:
            return None
        series = tuple(track.series() for _, track in sorted(self._tracks.items()))
        return Telemetry(series=series, notes=tuple(self._notes[:_MOST_NOTES]), cpu_s=self._cpu_s)

    def _sample_until_the_end(self) -> None:
        begun_s = time.thread_time()
        try:
            asked, self._notes = gauges.every()
            period_s, taken, due_at = self._period_s, 0, time.monotonic()
            while asked:
                asked = [gauge for gauge in asked if self._sampled(gauge)]
                taken += 1
                if taken == self._most_samples:
                    taken, period_s = taken // 2, period_s * 2
                    for track in self._tracks.values():
                        track.thin()
                if self._ends.is_set():
                    break
                due_at = max(due_at + period_s, time.monotonic())
                self._ends.wait(due_at - time.monotonic())
        finally:
            self._cpu_s = time.thread_time() - begun_s
            self._done.set()

    def _sampled(self, gauge: Gauge) -> bool:
        """Whether the gauge is worth asking again."""
        try:
            readings = gauge.read()
        except gauges.UNREADABLE as e:
            if not nvml.absent(e):
                self._notes.append(f"{gauge.source}: {gauge.what} is not read: {str(e)[:200]}")
            return False
        at_s = time.monotonic() - self._begun_at
        for reading in readings:
            if not math.isfinite(reading.value):
                continue
            key = (gauge.source, reading.metric, reading.unit, tuple(sorted(reading.labels.items())))
            if key in self._tracks:
                self._tracks[key].add(at_s, reading.value)
            else:
                self._tracks[key] = Track(
                    reading.metric, reading.unit, reading.labels, gauge.source, at_s, reading.value
                )
        return True


@contextmanager
def sampling(period_s: float) -> Iterator[Sampler]:
    """A sampler that has ended when the block has, however that ended."""
    sampler = Sampler(period_s)
    try:
        yield sampler
    finally:
        sampler.stop()
