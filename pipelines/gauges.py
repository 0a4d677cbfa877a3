"""What a machine can be asked about itself: NVML for its GPUs, the kernel for its processors and temperatures.

Sources: https://docs.nvidia.com/deploy/nvml-api/, and of Linux' documentation power/powercap/powercap.rst,
admin-guide/pm/cpufreq.rst, hwmon/sysfs-interface.rst and driver-api/thermal/sysfs-api.rst.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pynvml

from pipelines.records import Labels, Unit

UNREADABLE = (OSError, ValueError, pynvml.NVMLError)
"""What reading a gauge raises where it cannot be read."""

_SYS = Path("/sys")
_PER_UNIT = 1_000  # of mW, mJ and m°C
_MICRO = 1_000_000
_HZ_PER_MHZ, _HZ_PER_KHZ = 1_000_000, 1_000
_PERCENT = 100
_MOST_CLOCKS = 4  # the kernel interrupts an idle core to read its clock
_MOST_SENSORS = 32
_HELD_DOWN = {
    "sw_power_cap": pynvml.nvmlClocksEventReasonSwPowerCap,
    "hw_slowdown": pynvml.nvmlClocksEventReasonHwSlowdown,
    "sync_boost": pynvml.nvmlClocksEventReasonSyncBoost,
    "sw_thermal": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "hw_thermal": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    "hw_power_brake": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
}
"""Reasons for lower clocks that a fleet's operator did not ask for; idling, and clocks that were set, are none."""


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


def absent(e: Exception) -> bool:
    """Whether what was raised means that the machine has no such thing."""
    nothing = (
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    )
    return isinstance(e, pynvml.NVMLError) and e.value in nothing


def _gpus() -> tuple[list[Gauge], list[str]]:
    """NVML stays initialised: it is asked again for the next job, and counts its users."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as e:
        return [], [] if absent(e) else [f"nvml: {e}"]
    return [gauge for index, handle in enumerate(handles) for gauge in _gpu(f"gpu{index}", handle)], []


def _gpu(device: str, handle: Any) -> Iterator[Gauge]:
    plain: tuple[tuple[str, Unit, Callable[[], float]], ...] = (
        ("power", "W", lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / _PER_UNIT),
        ("energy", "J", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / _PER_UNIT),
        ("temperature", "°C", lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
        ("sm_clock", "Hz", lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) * _HZ_PER_MHZ),
        ("memory_clock", "Hz", lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM) * _HZ_PER_MHZ),
        ("memory_used", "B", lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used),
        ("utilization", "ratio", lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / _PERCENT),
    )
    labels = {"device": device}
    for metric, unit, value in plain:
        yield _plain("nvml", metric, unit, labels, value)
    yield Gauge("nvml", f"{device} throttled", partial(_held_down, device, handle))


def _held_down(device: str, handle: Any) -> tuple[Reading, ...]:
    try:
        mask = pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except pynvml.NVMLError as e:
        if e.value != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
        mask = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)  # its name before driver 535
    return tuple(
        Reading("throttled", "ratio", {"device": device, "reason": reason}, float(bool(mask & bit)))
        for reason, bit in _HELD_DOWN.items()
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
            yield _plain(source, "temperature", "°C", labels_of(file), partial(_scaled, file, _PER_UNIT))


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
