"""What a machine can be asked about itself: NVML for its GPUs, the kernel for its processors and temperatures.

Sources, of Linux' documentation: power/powercap/powercap.rst, admin-guide/pm/cpufreq.rst, hwmon/sysfs-interface.rst and
driver-api/thermal/sysfs-api.rst.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pipelines import nvml
from pipelines.families.nvidia_gpus import HELD_DOWN, REASONS
from pipelines.records import Labels, Unit

UNREADABLE = (OSError, ValueError, nvml.NVMLError)
"""What reading a gauge raises where it cannot be read."""

_SYS = Path("/sys")
_MILLI, _MICRO = 1_000, 1_000_000
_HZ_PER_KHZ = 1_000
_MOST_CLOCKS = 4  # the kernel interrupts an idle core to read its clock
_MOST_SENSORS = 32
_OF_A_GPU: Mapping[str, Unit] = {
    "power": "W",
    "energy": "J",
    "temperature": "°C",
    "sm_clock": "Hz",
    "memory_clock": "Hz",
    "memory_used": "B",
    "utilization": "ratio",
}


class Reading(NamedTuple):
    metric: str
    unit: Unit
    labels: Labels
    value: float


@dataclass(frozen=True)
class Gauge:
    """One question. `read` answers it with one reading or more; it raises one of UNREADABLE."""

    source: str
    what: str
    read: Callable[[], tuple[Reading, ...]]


def every() -> tuple[list[Gauge], list[str]]:
    """The gauges of this machine, and why a source that is there has none."""
    found, notes = _gpus()
    return [*found, *packages(), *_clocks(), *_sensors()], notes


def _gpus() -> tuple[list[Gauge], list[str]]:
    """NVML is not shut down: it is asked again for the next job."""
    found: list[Gauge] = []
    notes: list[str] = []
    try:
        for index in range(nvml.begin()):
            try:
                found += _gpu(f"gpu{index}", nvml.handle(index))
            except nvml.NVMLError as e:
                notes.append(f"nvml: gpu{index} is not read: {e}")
    except nvml.NVMLError as e:
        notes += [] if nvml.absent(e) else [f"nvml: {e}"]
    return found, notes


def _gpu(device: str, handle: Any) -> Iterator[Gauge]:
    for metric, unit in _OF_A_GPU.items():
        yield _plain("nvml", metric, unit, {"device": device}, partial(nvml.ask, metric, handle))
    yield Gauge("nvml", f"{device} throttled", partial(_held_down, device, handle))


def _held_down(device: str, handle: Any) -> tuple[Reading, ...]:
    mask = int(nvml.ask(REASONS, handle))
    return tuple(
        Reading("throttled", "ratio", {"device": device, "reason": reason}, float(bool(mask & bit)))
        for reason, bit in HELD_DOWN.items()
    )


def packages(root: Path = _SYS) -> Iterator[Gauge]:
    """The energy that each CPU package has taken, in J, going on where the kernel's counter begins again."""
    for zone in sorted((root / "class/powercap").glob("intel-rapl:*")):
        with suppress(OSError, ValueError):
            name = (zone / "name").read_text().strip()
            if re.fullmatch(r"package-\d+", name):
                counter = _Counter(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text()))
                yield _plain("rapl", "energy", "J", {"device": name}, counter.read)


class _Counter:
    """A counter of µJ that begins again after its range: read more often than it does that, it only grows."""

    def __init__(self, file: Path, range_uj: int) -> None:
        self._file, self._range_uj = file, range_uj
        self._last_uj: int | None = None
        self._begun_again = 0

    def read(self) -> float:
        now_uj = int(self._file.read_text())
        if self._last_uj is not None and now_uj < self._last_uj:
            self._begun_again += 1
        self._last_uj = now_uj
        return (now_uj + self._begun_again * self._range_uj) / _MICRO


def _clocks(root: Path = _SYS) -> Iterator[Gauge]:
    files = sorted((root / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"), key=_number)
    for file in files[:: max(1, -(-len(files) // _MOST_CLOCKS))]:
        labels = {"device": f"cpu{_number(file)}"}
        yield _plain("cpufreq", "cpu_clock", "Hz", labels, partial(_scaled, file, 1 / _HZ_PER_KHZ))


def _sensors(root: Path = _SYS) -> Iterator[Gauge]:
    """hwmon has names for its sensors; where there is none, the thermal zones do."""
    found = [(file, "hwmon", _hwmon) for file in sorted((root / "class/hwmon").glob("hwmon*/temp*_input"))]
    zones = [(file, "thermal", _zone) for file in sorted((root / "class/thermal").glob("thermal_zone*/temp"))]
    for file, source, labels_of in (found or zones)[:_MOST_SENSORS]:
        with suppress(OSError):
            yield _plain(source, "temperature", "°C", labels_of(file), partial(_scaled, file, _MILLI))


def _hwmon(file: Path) -> Labels:
    sensor = file.name.removesuffix("_input")
    label = file.with_name(f"{sensor}_label")
    named = label.read_text().strip() if label.exists() else sensor
    return {"device": f"{file.parent.name}-{(file.parent / 'name').read_text().strip()}", "sensor": f"{sensor} {named}"}


def _zone(file: Path) -> Labels:
    return {"device": file.parent.name, "sensor": (file.parent / "type").read_text().strip()}


def _scaled(file: Path, divisor: float) -> float:
    return int(file.read_text()) / divisor


def _number(file: Path) -> int:
    return int(file.parents[1].name.removeprefix("cpu"))


def _plain(source: str, metric: str, unit: Unit, labels: Labels, value: Callable[[], float]) -> Gauge:
    return Gauge(source, f"{labels['device']} {metric}", lambda: (Reading(metric, unit, labels, value()),))
