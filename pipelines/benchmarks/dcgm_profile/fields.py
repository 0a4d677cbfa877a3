"""The fields of DCGM that are watched, by the short name in the header of `dcgmi dmon` (dcgm_fields.cpp).

A field's id and short name are the same in every release; its macro is not.
"""

from dataclasses import dataclass
from typing import Literal

from pipelines.benchmark import Metric
from pipelines.records import Unit


@dataclass(frozen=True)
class Field:
    id: int
    metric: Metric


def _ratio(name: str, meaning: str) -> Metric:
    return Metric(name, "ratio", "higher", 0, 1.05, meaning)  # rounded, and of two counters: a little above 1 is seen


def _other(name: str, unit: Unit, low: float, high: float, meaning: str) -> Metric:
    better: Literal["neither"] = "neither"
    return Metric(name, unit, better, low, high, meaning)


FIELDS = {
    "GRACT": Field(1001, _ratio("gr_engine_active", "share of time in which the GPU computed anything at all")),
    "SMACT": Field(1002, _ratio("sm_active", "share of time in which an SM had a warp, mean over the SMs")),
    "SMOCC": Field(1003, _ratio("sm_occupancy", "warps on an SM over the most it can hold, mean over the SMs")),
    "TENSO": Field(1004, _ratio("tensor_active", "share of cycles in which the tensor pipe was active")),
    "DRAMA": Field(1005, _ratio("dram_active", "share of cycles in which the memory interface moved data")),
    "PCITX": Field(1009, _other("pcie_tx", "B/s", 0, 1e12, "bytes that the GPU sent over PCIe, with headers")),
    "PCIRX": Field(1010, _other("pcie_rx", "B/s", 0, 1e12, "bytes that the GPU received over PCIe, with headers")),
    "NVLTX": Field(1011, _other("nvlink_tx", "B/s", 0, 1e13, "bytes sent over NVLink, without headers")),
    "NVLRX": Field(1012, _other("nvlink_rx", "B/s", 0, 1e13, "bytes received over NVLink, without headers")),
    "POWER": Field(155, _other("power", "W", 0, 1e4, "power of the board")),
    "TMPTR": Field(150, _other("temperature", "°C", -50, 150, "temperature of the GPU")),
}
