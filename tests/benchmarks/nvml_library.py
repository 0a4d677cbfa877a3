"""NVML's C functions on a machine with two GPUs, the second of them lost: what pynvml calls for libnvidia-ml.

Each takes the pointers that pynvml gives it, and writes what the driver would. What it lists no answer for is answered
with NVML_ERROR_NOT_SUPPORTED, as by a GPU without that sensor. An older driver lacks the functions that `lacks` names.
"""

import ctypes
from collections.abc import Callable
from typing import Any

SUCCESS, NOT_SUPPORTED, GPU_IS_LOST = 0, 3, 15

TEXTS = {
    "nvmlSystemGetDriverVersion": b"570.86.15",
    "nvmlDeviceGetName": b"NVIDIA H100 80GB HBM3",
    "nvmlDeviceGetUUID": b"GPU-34bf77d1-c686-6821-79a8-32d326c5039c",
    "nvmlDeviceGetVbiosVersion": b"96.00.74.00.01",
}
NUMBERS: dict[tuple[str, int | None], tuple[int, ...]] = {  # by function and, where it has one, its second argument
    ("nvmlDeviceGetTemperature", 0): (31,),
    ("nvmlDeviceGetPowerUsage", None): (68_720,),
    ("nvmlDeviceGetPowerManagementLimit", None): (700_000,),
    ("nvmlDeviceGetClockInfo", 1): (345,),
    ("nvmlDeviceGetClockInfo", 2): (2619,),
    ("nvmlDeviceGetMaxClockInfo", 1): (1980,),
    ("nvmlDeviceGetMaxClockInfo", 2): (2619,),
    ("nvmlDeviceGetEccMode", None): (1, 1),
    ("nvmlDeviceGetMigMode", None): (0, 0),
    ("nvmlDeviceGetPersistenceMode", None): (1,),
    ("nvmlDeviceGetCurrPcieLinkGeneration", None): (1,),
    ("nvmlDeviceGetMaxPcieLinkGeneration", None): (5,),
    ("nvmlDeviceGetCurrPcieLinkWidth", None): (16,),
    ("nvmlDeviceGetMaxPcieLinkWidth", None): (16,),
    ("nvmlDeviceGetRemappedRows", None): (0, 1, 0, 0),
    ("nvmlDeviceGetCurrentClocksEventReasons", None): (0x4,),
    ("nvmlDeviceGetCurrentClocksThrottleReasons", None): (0x4,),
}
MEMORY_BYTES = 85_520_809_984  # 81559.06 MiB


class Library:
    def __init__(self, gpus: int = 2, lacks: frozenset[str] = frozenset()) -> None:
        self._gpus, self._lacks = gpus, lacks

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name in self._lacks:
            raise AttributeError(name)
        if name == "nvmlDeviceGetMemoryInfo_v2":
            return _memory
        if name in TEXTS:
            return lambda *arguments: _text(TEXTS[name], arguments)
        return lambda *arguments: _number(name, arguments)

    def nvmlInitWithFlags(self, _flags: Any) -> int:  # noqa: N802 - NVML's name
        return SUCCESS

    def nvmlShutdown(self) -> int:  # noqa: N802
        return SUCCESS

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self._gpus
        return SUCCESS

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, _handle: Any) -> int:  # noqa: N802
        return GPU_IS_LOST if index.value == 1 else SUCCESS

    def nvmlDeviceGetMemoryInfo(self, _gpu: Any, memory: Any) -> int:  # noqa: N802
        memory._obj.total, memory._obj.used = MEMORY_BYTES, 604 * 2**20
        return SUCCESS

    def nvmlDeviceGetTotalEccErrors(self, _gpu: Any, kind: Any, since: Any, count: Any) -> int:  # noqa: N802
        count._obj.value = 2 if (kind.value, since.value) == (1, 1) else 0
        return SUCCESS


def _memory(_gpu: Any, memory: Any) -> int:
    memory._obj.total, memory._obj.reserved, memory._obj.used = MEMORY_BYTES, 600 * 2**20, 4 * 2**20
    return SUCCESS


def _text(text: bytes, arguments: tuple[Any, ...]) -> int:
    buffer, size = arguments[-2:]
    ctypes.memmove(buffer, text + b"\0", min(len(text) + 1, size.value))
    return SUCCESS


def _number(name: str, arguments: tuple[Any, ...]) -> int:
    chosen = arguments[1].value if len(arguments) > 2 and hasattr(arguments[1], "value") else None
    values = NUMBERS.get((name, chosen))
    if values is None:
        return NOT_SUPPORTED
    for pointer, value in zip(arguments[-len(values) :], values, strict=True):
        pointer._obj.value = value
    return SUCCESS
