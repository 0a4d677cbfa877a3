"""The GPUs of this machine and their driver, as NVML or `nvidia-smi` tells them; nothing where there is none."""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from pipelines import process
from pipelines.errors import ToolNotFound, ToolNotStarted
from pipelines.families import nvidia_gpus, probe_tool
from pipelines.families.nvidia_gpus import Gpu
from pipelines.records import Record

_DRIVER = Path("/proc/driver/nvidia")
_TIMEOUT_S = 90.0  # the probe waits 30 s for each answer

Fact = str | int | tuple[Mapping[str, str | int | None], ...] | None


class _Document(Record):
    probe: str
    source: str
    gpus: tuple[Gpu, ...] = ()
    csv: str = ""
    nvml: str = ""


def facts(environ: Mapping[str, str] = os.environ) -> dict[str, Fact]:
    """The driver's version and the GPUs, equal ones counted. Empty when there is no driver.

    One that is there and fails is a fact as well (`gpu_problem`): such a node is not one without GPUs. A process of its
    own asks, which a stuck driver cannot keep from being given up.
    """
    if not _DRIVER.exists() and shutil.which("nvidia-smi", path=environ.get("PATH", os.defpath)) is None:
        return {}
    try:
        done = process.run((probe_tool.PROGRAM, "nvidia_smi"), timeout_s=_TIMEOUT_S, environ=environ)
    except (ToolNotFound, ToolNotStarted) as e:
        return {"gpu_problem": str(e)}
    if done.exit_status == probe_tool.UNAVAILABLE:
        return {}
    if done.exit_status != 0:
        said = done.stderr.strip().splitlines() or ["nothing"]
        return {"gpu_problem": "the driver does not answer" if done.timed_out else said[-1][:300]}
    try:
        document = _Document.model_validate_json(done.stdout)
    except ValidationError:
        return {"gpu_problem": f"{probe_tool.PROGRAM} nvidia_smi printed {done.stdout[:200]!r}"}
    return parse(document.csv) if document.source == "csv" else told(document.gpus)


def parse(text: str) -> dict[str, Fact]:
    """The facts in the answer of `nvidia-smi --format=csv,nounits`. Pure."""
    return told(nvidia_gpus.from_csv(text))


def told(gpus: Iterable[Gpu]) -> dict[str, Fact]:
    """The facts about GPUs. One that does not answer is counted without a model. Pure."""
    known = tuple(gpus)
    counted = Counter(tuple(_fact(gpu).items()) for gpu in known)
    return {
        "gpu_driver": " ".join(sorted({gpu.texts["driver"] for gpu in known if "driver" in gpu.texts})) or None,
        "gpus": tuple({**dict(gpu), "count": count} for gpu, count in sorted(counted.items(), key=repr)),
    }


def count(facts: Mapping[str, Fact]) -> int:
    """How many GPUs the facts tell of. Pure."""
    found = facts.get("gpus")
    counts = [gpu.get("count") for gpu in found] if isinstance(found, tuple) else []
    return sum(each for each in counts if isinstance(each, int))


def _fact(gpu: Gpu) -> dict[str, str | int]:
    fact: dict[str, str | int] = {
        name: gpu.texts[name] for name in ("model", "firmware", "ecc", "mig") if name in gpu.texts
    }
    if "memory_total" in gpu.values:
        fact["memory_bytes"] = nvidia_gpus.whole_mib(gpu.values["memory_total"])
    if "power_limit" in gpu.values:
        fact["power_limit_w"] = round(gpu.values["power_limit"])
    return fact
