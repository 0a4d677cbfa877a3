"""The GPUs of this machine and their driver, as `nvidia-smi` tells them; nothing where there is none."""

import csv
import os
import re
from collections import Counter
from collections.abc import Mapping

from pipelines import process
from pipelines.errors import ToolNotFound, ToolNotStarted

_FIELDS = (
    "name",
    "driver_version",
    "vbios_version",
    "memory.total",
    "power.limit",
    "ecc.mode.current",
    "mig.mode.current",
)
_TIMEOUT_S = 30.0  # without persistence mode the driver wakes every GPU first
_ABSENT = re.compile(r"\[.*\]|N/A|")  # [N/A], [Not Supported], [Unknown Error], [GPU requires reset]

Fact = str | int | tuple[Mapping[str, str | int | None], ...] | None


def facts(environ: Mapping[str, str] = os.environ) -> dict[str, Fact]:
    """The driver's version and the GPUs, equal ones counted. Empty when there is no nvidia-smi.

    One that is there and fails is a fact as well (`gpu_problem`): such a node is not one without GPUs.
    """
    argv = ("nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,nounits")
    try:
        done = process.run(argv, timeout_s=_TIMEOUT_S, environ=environ)
    except (ToolNotFound, ToolNotStarted):
        return {}
    if done.exit_status != 0:
        said = (done.stdout + done.stderr).strip().splitlines() or ["nothing"]
        ending = "did not end" if done.timed_out else f"ended with status {done.exit_status}"
        return {"gpu_problem": f"nvidia-smi {ending} and said: {said[0][:200]}"}
    return parse(done.stdout)


def parse(text: str) -> dict[str, Fact]:
    """The facts in the answer of `--format=csv,nounits`, whose header names fields and units. Pure.

    A field without a value ("[N/A]") is absent; so is one whose unit is not the documented one.
    """
    rows = [tuple(cell.strip() for cell in row) for row in csv.reader(text.splitlines())]
    gpus = [dict(zip(rows[0], row, strict=True)) for row in rows[1:] if len(row) == len(rows[0])]
    known = [{name: cell for name, cell in gpu.items() if not _ABSENT.fullmatch(cell)} for gpu in gpus]
    counted = Counter(tuple(_gpu(gpu).items()) for gpu in known)
    return {
        "gpu_driver": " ".join(sorted({gpu["driver_version"] for gpu in known if "driver_version" in gpu})) or None,
        "gpus": tuple({**dict(gpu), "count": count} for gpu, count in sorted(counted.items(), key=repr)),
    }


def count(facts: Mapping[str, Fact]) -> int:
    """How many GPUs the facts tell of. Pure."""
    found = facts.get("gpus")
    counts = [gpu.get("count") for gpu in found] if isinstance(found, tuple) else []
    return sum(each for each in counts if isinstance(each, int))


def _gpu(cells: Mapping[str, str]) -> dict[str, str | int]:
    texts = {"model": "name", "firmware": "vbios_version", "ecc": "ecc.mode.current", "mig": "mig.mode.current"}
    gpu: dict[str, str | int] = {fact: cells[field] for fact, field in texts.items() if field in cells}
    if "memory.total [MiB]" in cells:
        gpu["memory_bytes"] = int(cells["memory.total [MiB]"]) * 2**20
    if "power.limit [W]" in cells:
        gpu["power_limit_w"] = round(float(cells["power.limit [W]"]))
    return gpu
