"""What NVIDIA's driver says of a GPU, by NVML or in nvidia-smi's CSV: quantities in base units, and texts."""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, NonNegativeInt

from pipelines.records import Labels, Record, Unit

INSTALL_HINT = "NVIDIA's driver, whose packages have NVML and nvidia-smi"

_ABSENT = re.compile(r"\[.*\]|N/A|")  # [N/A], [Not Supported], [Unknown Error], [GPU requires reset]
_FLAGS = {"Yes": 1.0, "No": 0.0, "Active": 1.0, "Not Active": 0.0}
_MIB, _PER_MHZ = 2**20, 10**6


@dataclass(frozen=True)
class Quantity:
    """A number that the driver gives. `csv` is its field in nvidia-smi, in `csv_unit`, `times` what it is here.

    Where a field has two names, `csv` is the one that nvidia-smi prints in its header, however it was asked.
    """

    key: str
    metric: str
    unit: Unit
    csv: str
    csv_unit: str = ""
    times: int = 1
    labels: Labels = field(default_factory=dict)


def _ecc(kind: str, since: str) -> Quantity:
    labels = {"kind": kind, "since": {"volatile": "driver_load", "aggregate": "manufacture"}[since]}
    return Quantity(f"ecc_{kind}_{since}", "ecc_errors", "1", f"ecc.errors.{kind}.{since}.total", labels=labels)


REASONS = "clocks_event_reasons"
HELD_DOWN: Mapping[str, int] = {
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal": 0x20,
    "hw_thermal": 0x40,
    "hw_power_brake": 0x80,
}
"""Bits of nvmlClocksEventReasons (nvml.h) that nobody asks for: idling, and clocks that are set, hold nothing down."""

QUANTITIES = (
    Quantity("temperature", "temperature", "°C", "temperature.gpu"),
    Quantity("memory_temperature", "memory_temperature", "°C", "temperature.memory"),
    Quantity("power", "power", "W", "power.draw", "W"),
    Quantity("power_limit", "power_limit", "W", "power.limit", "W"),
    Quantity("sm_clock", "sm_clock", "Hz", "clocks.current.sm", "MHz", _PER_MHZ),
    Quantity("sm_clock_max", "sm_clock_max", "Hz", "clocks.max.sm", "MHz", _PER_MHZ),
    Quantity("memory_clock", "memory_clock", "Hz", "clocks.current.memory", "MHz", _PER_MHZ),
    Quantity("memory_clock_max", "memory_clock_max", "Hz", "clocks.max.memory", "MHz", _PER_MHZ),
    Quantity("memory_total", "memory_total", "B", "memory.total", "MiB", _MIB),
    Quantity("memory_used", "memory_used", "B", "memory.used", "MiB", _MIB),
    Quantity("pcie_generation", "pcie_generation", "1", "pcie.link.gen.current"),
    Quantity("pcie_generation_max", "pcie_generation_max", "1", "pcie.link.gen.max"),
    Quantity("pcie_width", "pcie_width", "1", "pcie.link.width.current"),
    Quantity("pcie_width_max", "pcie_width_max", "1", "pcie.link.width.max"),
    *(_ecc(kind, since) for kind in ("corrected", "uncorrected") for since in ("volatile", "aggregate")),
    *(
        Quantity(f"remapped_{cause}", "remapped_rows", "1", f"remapped_rows.{cause}", labels={"cause": cause})
        for cause in ("correctable", "uncorrectable")
    ),
    Quantity("remap_pending", "remap_pending", "ratio", "remapped_rows.pending"),
    Quantity("remap_failure", "remap_failure", "ratio", "remapped_rows.failure"),
    Quantity(
        "retired_single", "retired_pages", "1", "retired_pages.single_bit_ecc.count", labels={"cause": "single_bit"}
    ),
    Quantity("retired_double", "retired_pages", "1", "retired_pages.double_bit.count", labels={"cause": "double_bit"}),
    Quantity("retirement_pending", "retirement_pending", "ratio", "retired_pages.pending"),
    Quantity(REASONS, "throttled", "ratio", "clocks_event_reasons.active"),
)
TEXTS = {
    "model": "name",
    "driver": "driver_version",
    "uuid": "uuid",
    "firmware": "vbios_version",
    "ecc": "ecc.mode.current",
    "mig": "mig.mode.current",
    "persistence": "persistence_mode",
}
FIELDS = ("index", *TEXTS.values(), *(quantity.csv for quantity in QUANTITIES))
ALWAYS_KNOWN = ("name", "driver_version", "vbios_version", "memory.total", "power.limit", "ecc.mode.current")
OLDER_NAMES = {"clocks_event_reasons.active": "clocks_throttle_reasons.active"}  # before driver 535


class Gpu(Record):
    """One GPU. What the driver gave no value for is not in it; `problem` is why it gave none at all."""

    index: NonNegativeInt
    texts: Mapping[str, str] = {}
    values: Mapping[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}  # by a quantity's key, in base units
    problem: str | None = None


def whole_mib(size_bytes: float) -> int:
    """As nvidia-smi prints sizes, so that a GPU has the same memory whoever was asked."""
    return int(size_bytes) // _MIB * _MIB


def from_csv(text: str) -> tuple[Gpu, ...]:
    """The GPUs in the answer of `nvidia-smi --format=csv,nounits`, whose header names fields and units. Pure.

    A field without a value ("[N/A]") is absent; so is one whose unit is not the documented one.
    """
    try:
        rows = [tuple(cell.strip() for cell in row) for row in csv.reader(text.splitlines())]
    except csv.Error:
        return ()
    rows = [row for row in rows if row]
    whole = [dict(zip(rows[0], row, strict=True)) for row in rows[1:] if len(row) == len(rows[0])]
    known = [{name: cell for name, cell in row.items() if not _ABSENT.fullmatch(cell)} for row in whole]
    return tuple(_gpu(position, cells) for position, cells in enumerate(known))


def _gpu(position: int, cells: Mapping[str, str]) -> Gpu:
    index = cells.get("index", "")
    values = {}
    for quantity in QUANTITIES:
        name = quantity.csv if quantity.csv_unit == "" else f"{quantity.csv} [{quantity.csv_unit}]"
        number = _number(cells.get(name, cells.get(OLDER_NAMES.get(name, ""), "")))
        if number is not None:
            values[quantity.key] = number * quantity.times
    texts = {fact: cells[name] for fact, name in TEXTS.items() if name in cells}
    return Gpu(index=int(index) if re.fullmatch(r"\d{1,6}", index) else position, texts=texts, values=values)


def _number(cell: str) -> float | None:
    if cell in _FLAGS:
        return _FLAGS[cell]
    if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", cell):
        return float(int(cell, 16))
    return float(cell) if re.fullmatch(r"\d{1,15}(\.\d{1,6})?", cell) else None
