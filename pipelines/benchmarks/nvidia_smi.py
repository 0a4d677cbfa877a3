"""nvidia_smi: what the driver says of each GPU: clocks, power, temperature, errors, links (NVML, or nvidia-smi)."""

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from pipelines.benchmark import Benchmark, Command, Cost, Metric
from pipelines.errors import UnknownOutput
from pipelines.families import nvidia_gpus, probe_tool
from pipelines.families.nvidia_gpus import Gpu
from pipelines.records import Labels, Measurement, Outcome, Parsed, RawOutput, Record

_PROBE = "nvidia_smi"
_QUANTITIES = {quantity.key: quantity for quantity in nvidia_gpus.QUANTITIES}
_MASK_BITS = 64


class Params(Record):
    """There is nothing to choose."""


class _Document(probe_tool.Printed):
    source: Literal["nvml", "csv"]
    gpus: tuple[Gpu, ...] | None = Field(default=None, strict=False)
    csv: str | None = None
    nvml: str | None = None  # why NVML was not read


def version(text: str) -> str | None:
    """The driver's: `550.90.07` of `driver 550.90.07`."""
    found = re.search(r"^driver (\d{1,9}(?:\.\d{1,9})*)", text, re.MULTILINE)
    return found[1] if found else None


def parse(raw: RawOutput) -> Parsed:
    """Judge and read one attempt. A GPU that does not answer is a measurement of the node.

    Raises:
        UnknownOutput: the probe ended well and printed something else than its document.
    """
    document = probe_tool.read(raw, _PROBE, _Document)
    if isinstance(document, Parsed):
        return document
    gpus = document.gpus if document.source == "nvml" else nvidia_gpus.from_csv(document.csv or "")
    if gpus is None or len({gpu.index for gpu in gpus}) < len(gpus):
        raise UnknownOutput(probe_tool.PROGRAM, "each GPU of the node once", raw.stdout)
    if not gpus:
        return Parsed(outcome=Outcome.NOT_MEASURED, reason="the driver tells of no GPU")
    silent = {gpu.index: gpu.problem or "it has no value for anything" for gpu in gpus if gpu.problem or not gpu.values}
    answering = len(gpus) - len(silent)
    measurements = [Measurement(metric="gpus", value=answering, unit="1"), *(m for gpu in gpus for m in _of(gpu))]
    notes = [f"gpu {index} does not answer: {problem}"[:500] for index, problem in silent.items()]
    notes += [f"NVML was not read: {document.nvml}"[:500]] if document.nvml else []
    notes += [_inventory(gpu) for gpu in gpus if gpu.texts]
    return Parsed(outcome=Outcome.OK, measurements=tuple(measurements), notes=tuple(notes))


def _inventory(gpu: Gpu) -> str:
    return f"gpu {gpu.index}: " + ", ".join(f"{name} {text}" for name, text in gpu.texts.items())[:500]


def _of(gpu: Gpu) -> Iterator[Measurement]:
    labels = {"gpu": str(gpu.index)}
    for key, value in gpu.values.items():
        quantity = _QUANTITIES.get(key)
        if key == nvidia_gpus.REASONS:
            yield from _throttled(value, labels)
        elif quantity is not None and (value or not BENCHMARK.metric(quantity.metric).low):  # else 0 stands for nothing
            found = {**labels, **quantity.labels}
            yield Measurement(metric=quantity.metric, value=value, unit=quantity.unit, labels=found)
    width, most = gpu.values.get("pcie_width", 0), gpu.values.get("pcie_width_max", 0)
    if most and 0 < (share := width / most) <= 1:
        yield Measurement(metric="pcie_width_share", value=share, unit="ratio", labels=labels)


def _throttled(mask: float, labels: Labels) -> Iterator[Measurement]:
    if mask != int(mask) or not 0 <= mask < 2**_MASK_BITS:
        raise UnknownOutput(probe_tool.PROGRAM, "a bit mask of clock event reasons", str(mask))
    for reason, bit in nvidia_gpus.HELD_DOWN.items():
        value = int(bool(int(mask) & bit))
        yield Measurement(metric="throttled", value=value, unit="ratio", labels={**labels, "reason": reason})


BENCHMARK = Benchmark(
    name="nvidia_smi",
    title="What the driver says of each GPU (NVML, nvidia-smi)",
    caveat="It is one look at GPUs that do nothing: clocks, power and the generation of the PCI Express link are low "
    "because they are idle, not because the GPU is slow. What is worth comparing over nights are errors, remapped "
    "rows, retired pages, limits, the width of the link, and whether a GPU still answers. What a GPU or its driver "
    "does not know has no row.",
    cadence="nightly",
    tool=probe_tool.PROGRAM,
    minimum_version=(418,),
    version_argv=(probe_tool.PROGRAM, _PROBE, "--version"),
    install_hint=nvidia_gpus.INSTALL_HINT,
    writes=False,
    source="https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html",
    params=Params,
    metrics=(
        Metric("gpus", "1", "higher", 0.0, 64.0, "GPUs of the node that answer the driver"),
        Metric("temperature", "°C", "lower", 1.0, 150.0, "of the GPU"),
        Metric("memory_temperature", "°C", "lower", 1.0, 150.0, "of its memory"),
        Metric("power", "W", "neither", 0.5, 5000.0, "drawn now, or over the last second, by model"),
        Metric("power_limit", "W", "neither", 5.0, 5000.0, "that is set"),
        Metric("sm_clock", "Hz", "neither", 1e6, 1e10, "of the multiprocessors now"),
        Metric("sm_clock_max", "Hz", "higher", 1e6, 1e10, "that the multiprocessors may have"),
        Metric("memory_clock", "Hz", "neither", 1e6, 1e11, "of the memory now"),
        Metric("memory_clock_max", "Hz", "higher", 1e6, 1e11, "that the memory may have"),
        Metric("memory_total", "B", "higher", 2**20, 1e14, "of the GPU's memory"),
        Metric(
            "memory_used", "B", "lower", 0.0, 1e14, "of it; before driver 510 with what the driver keeps for itself"
        ),
        Metric("pcie_generation", "1", "neither", 1.0, 10.0, "of the link now; it falls when the GPU is idle"),
        Metric("pcie_generation_max", "1", "higher", 1.0, 10.0, "that GPU and slot can have"),
        Metric("pcie_width", "1", "higher", 1.0, 32.0, "lanes of the link now"),
        Metric("pcie_width_max", "1", "higher", 1.0, 32.0, "lanes that GPU and slot can have"),
        Metric("pcie_width_share", "ratio", "higher", 0.01, 1.0, "lanes now over those that it can have"),
        Metric("ecc_errors", "1", "lower", 0.0, 1e15, "memory errors that ECC saw (labels kind, since)"),
        Metric("remapped_rows", "1", "lower", 0.0, 1e6, "rows of memory that were replaced (label cause)"),
        Metric("remap_pending", "ratio", "lower", 0.0, 1.0, "1: a row is replaced at the next reset"),
        Metric("remap_failure", "ratio", "lower", 0.0, 1.0, "1: a row could not be replaced"),
        Metric("retired_pages", "1", "lower", 0.0, 1e6, "pages of memory that are no longer used (label cause)"),
        Metric("retirement_pending", "ratio", "lower", 0.0, 1.0, "1: a page is retired at the next reset"),
        Metric("throttled", "ratio", "lower", 0.0, 1.0, "1: the clocks are held down now (label reason)"),
    ),
    case=lambda _: "inventory",
    cost=lambda _: Cost(seconds=3.0, written_bytes=0),
    required=lambda _: frozenset({"gpus"}),
    command=lambda _params, _place: Command(argv=(probe_tool.PROGRAM, _PROBE)),
    version=version,
    parse=parse,
    needs=frozenset({"gpu"}),
)
