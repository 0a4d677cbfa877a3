"""What NVIDIA's driver says of the GPUs: `nvidia_smi`. NVML is asked; where it is not there, nvidia-smi for its CSV.

`nvidia_smi --version` prints the driver's version. Exit status 69: there is neither.
"""

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from pipelines import nvml, process
from pipelines.errors import ToolNotFound, ToolNotStarted
from pipelines.families import nvidia_gpus, probe_tool
from pipelines.process import Completed

_SMI = "nvidia-smi"
_WITHIN_S = 30.0  # without persistence mode the driver wakes every GPU first


class _Failed(Exception):
    """nvidia-smi is there and does not answer."""


def main(argv: Sequence[str]) -> int:
    try:
        if list(argv) == ["--version"]:
            print(_version())
        else:
            print(json.dumps({"probe": "nvidia_smi", **_asked()}))
    except (ToolNotFound, ToolNotStarted) as e:
        print(f"NVML is not there, and {e}; install it: {nvidia_gpus.INSTALL_HINT}", file=sys.stderr)
        return probe_tool.UNAVAILABLE
    except _Failed as e:
        print(e, file=sys.stderr)
        return 1
    return 0


def _version() -> str:
    try:
        return f"driver {nvml.driver()}"
    except nvml.NVMLError:
        done = process.run((_SMI, "--version"), timeout_s=_WITHIN_S)  # says as well if it stands in for the real one
        found = _smi("--query-gpu=driver_version", "--format=csv,noheader").split()
        return f"driver {found[0] if found else ''}\n{done.stdout}"


def _asked() -> dict[str, Any]:
    try:
        return {"source": "nvml", "gpus": [gpu.model_dump(mode="json") for gpu in nvml.read()]}
    except nvml.NVMLError as e:
        return {"source": "csv", "csv": _queried(), "nvml": str(e)}


def _queried() -> str:
    """The CSV of all fields that this nvidia-smi knows: one that it does not know fails the whole query."""
    known = set(re.findall(r'"([a-z0-9_.]+)"', _smi("--help-query-gpu")))
    names = [next((name for name in _names(field) if name in known), None) for field in nvidia_gpus.FIELDS]
    fields = [name for name in names if name] or nvidia_gpus.ALWAYS_KNOWN
    return _smi(f"--query-gpu={','.join(fields)}", "--format=csv,nounits")


def _names(field: str) -> tuple[str, ...]:
    return (field, nvidia_gpus.OLDER_NAMES.get(field, field))


def _smi(*arguments: str) -> str:
    done = process.run((_SMI, *arguments), timeout_s=_WITHIN_S)
    if done.exit_status != 0:
        raise _Failed(_sentence(done))
    return done.stdout


def _sentence(done: Completed) -> str:
    said = (done.stdout + done.stderr).strip().splitlines() or ["nothing"]
    ending = "did not end" if done.timed_out else f"ended with status {done.exit_status}"
    return f"{_SMI} {ending} and said: {said[0][:200]}"
