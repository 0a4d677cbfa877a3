"""NVML, the library of NVIDIA's driver: what it says of each GPU. It may wait for a driver that is stuck.

Source: https://docs.nvidia.com/deploy/nvml-api/.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pynvml as nvml

from pipelines.families.nvidia_gpus import REASONS, Gpu, whole_mib

NVMLError = nvml.NVMLError
_PER_THOUSAND, _PER_MHZ, _PERCENT = 1000, 10**6, 100
_NOTHING = (
    nvml.NVML_ERROR_NOT_SUPPORTED,
    nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    nvml.NVML_ERROR_LIBRARY_NOT_FOUND,
    nvml.NVML_ERROR_DRIVER_NOT_LOADED,
)
_LOST = (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED)

Ask = Callable[[Any], Any]


def _clock(kind: int, *, most: bool = False) -> Ask:
    asked = nvml.nvmlDeviceGetMaxClockInfo if most else nvml.nvmlDeviceGetClockInfo
    return lambda gpu: asked(gpu, kind) * _PER_MHZ


def _ecc(kind: int, since: int) -> Ask:
    return lambda gpu: nvml.nvmlDeviceGetTotalEccErrors(gpu, kind, since)


def _remapped(place: int) -> Ask:
    return lambda gpu: nvml.nvmlDeviceGetRemappedRows(gpu)[place]


def _retired(cause: int) -> Ask:
    return lambda gpu: len(nvml.nvmlDeviceGetRetiredPages(gpu, cause))


def _memory_temperature(gpu: Any) -> Any:
    (found,) = nvml.nvmlDeviceGetFieldValues(gpu, [nvml.NVML_FI_DEV_MEMORY_TEMP])
    if found.nvmlReturn != nvml.NVML_SUCCESS:
        raise NVMLError(found.nvmlReturn)
    return found.value.uiVal


def _memory(gpu: Any) -> Any:
    """As nvidia-smi counts it: what the driver keeps for itself is not in use. A driver before 510 cannot tell."""
    try:
        return nvml.nvmlDeviceGetMemoryInfo(gpu, version=nvml.nvmlMemory_v2)
    except NVMLError:
        return nvml.nvmlDeviceGetMemoryInfo(gpu)


def _reasons(gpu: Any) -> Any:
    try:
        return nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu)
    except NVMLError as e:
        if e.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
        return nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)  # its name before driver 535


_CORRECTED, _UNCORRECTED = nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
_VALUES: Mapping[str, Ask] = {
    "temperature": lambda gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    "memory_temperature": _memory_temperature,
    "power": lambda gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / _PER_THOUSAND,
    "power_limit": lambda gpu: nvml.nvmlDeviceGetPowerManagementLimit(gpu) / _PER_THOUSAND,
    "sm_clock": _clock(nvml.NVML_CLOCK_SM),
    "sm_clock_max": _clock(nvml.NVML_CLOCK_SM, most=True),
    "memory_clock": _clock(nvml.NVML_CLOCK_MEM),
    "memory_clock_max": _clock(nvml.NVML_CLOCK_MEM, most=True),
    "memory_total": lambda gpu: whole_mib(_memory(gpu).total),
    "memory_used": lambda gpu: _memory(gpu).used,
    "pcie_generation": nvml.nvmlDeviceGetCurrPcieLinkGeneration,
    "pcie_generation_max": nvml.nvmlDeviceGetMaxPcieLinkGeneration,
    "pcie_width": nvml.nvmlDeviceGetCurrPcieLinkWidth,
    "pcie_width_max": nvml.nvmlDeviceGetMaxPcieLinkWidth,
    "ecc_corrected_volatile": _ecc(_CORRECTED, nvml.NVML_VOLATILE_ECC),
    "ecc_corrected_aggregate": _ecc(_CORRECTED, nvml.NVML_AGGREGATE_ECC),
    "ecc_uncorrected_volatile": _ecc(_UNCORRECTED, nvml.NVML_VOLATILE_ECC),
    "ecc_uncorrected_aggregate": _ecc(_UNCORRECTED, nvml.NVML_AGGREGATE_ECC),
    "remapped_correctable": _remapped(0),
    "remapped_uncorrectable": _remapped(1),
    "remap_pending": _remapped(2),
    "remap_failure": _remapped(3),
    "retired_single": _retired(nvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS),
    "retired_double": _retired(nvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR),
    "retirement_pending": nvml.nvmlDeviceGetRetiredPagesPendingStatus,
    REASONS: _reasons,
    "energy": lambda gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / _PER_THOUSAND,  # this and the next: telemetry
    "utilization": lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / _PERCENT,
}
_TEXTS: Mapping[str, Ask] = {
    "model": nvml.nvmlDeviceGetName,
    "driver": lambda _: nvml.nvmlSystemGetDriverVersion(),
    "uuid": nvml.nvmlDeviceGetUUID,
    "firmware": nvml.nvmlDeviceGetVbiosVersion,
    "ecc": lambda gpu: _mode(nvml.nvmlDeviceGetEccMode(gpu)[0]),
    "mig": lambda gpu: _mode(nvml.nvmlDeviceGetMigMode(gpu)[0]),
    "persistence": lambda gpu: _mode(nvml.nvmlDeviceGetPersistenceMode(gpu)),
}


def driver() -> str:
    """Raises: NVMLError: there is no driver, or it does not answer."""
    with _initialized():
        return str(nvml.nvmlSystemGetDriverVersion())


def read() -> tuple[Gpu, ...]:
    """Every GPU, with what it has a value for.

    Raises:
        NVMLError: there is no driver, or it does not answer. A GPU that does not answer is one with a problem.
    """
    with _initialized():
        return tuple(_gpu(index) for index in range(nvml.nvmlDeviceGetCount()))


def begin() -> int:
    """How many GPUs there are to `ask`. NVML stays initialised: it counts its users.

    Raises:
        NVMLError: there is no driver, or it does not answer.
    """
    nvml.nvmlInit()
    return int(nvml.nvmlDeviceGetCount())


def handle(index: int) -> Any:
    """Raises: NVMLError: this GPU does not answer."""
    return nvml.nvmlDeviceGetHandleByIndex(index)


def ask(key: str, gpu: Any) -> float:
    """One quantity, in base units.

    Raises:
        NVMLError: the GPU has no value for it, see `absent`, or does not answer.
    """
    return float(_VALUES[key](gpu))


def absent(e: Exception) -> bool:
    """Whether what was raised means that the machine, the GPU or the driver has no such thing."""
    return isinstance(e, NVMLError) and e.value in _NOTHING


@contextmanager
def _initialized() -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _gpu(index: int) -> Gpu:
    try:
        gpu = handle(index)
        texts = {name: str(found) for name, found in _answers(_TEXTS, gpu)}
        values = {key: float(found) for key, found in _answers(_VALUES, gpu)}
    except NVMLError as e:
        return Gpu(index=index, problem=str(e))
    return Gpu(index=index, texts=texts, values=values)


def _answers(asked: Mapping[str, Ask], gpu: Any) -> Iterator[tuple[str, Any]]:
    """What this GPU, under this driver, has a value for. Raises: NVMLError: it is lost."""
    for name, question in asked.items():
        try:
            yield name, question(gpu)
        except NVMLError as e:  # this GPU has no such sensor, or the driver does not know the question
            if e.value in _LOST:
                raise


def _mode(enabled: int) -> str:
    return "Enabled" if enabled else "Disabled"
