"""`dcgmi` as the tool of several benchmarks: its version, its exit statuses, and the JSON in what it prints."""

import json
import re
from typing import Any

from pipelines.records import Outcome, Parsed

TOOL = "dcgmi"
MINIMUM_VERSION = (3, 0)
VERSION_ARGV = (TOOL, "--version")
INSTALL_HINT = (
    "apt-get install datacenter-gpu-manager-4-cuda12 (of DCGM 3: datacenter-gpu-manager), from NVIDIA's repository, "
    "and start nvidia-dcgm"
)

_OUTCOMES = {  # dcgmReturn_t as the shell sees it, 256 + code (dcgm_structs.h)
    **dict.fromkeys((255, 251, 250, 239, 235, 227, 223), Outcome.CONFIG),  # not allowed, not supported, no hostengine
    **dict.fromkeys((234, 233, 231, 212, 204, 202), Outcome.CONFIG),  # GPUs, driver, packages that will not do; paused
    **dict.fromkeys((217, 222), Outcome.CONTENDED),  # another diagnostic is running, the resource is in use
    **dict.fromkeys((221, 220, 218), Outcome.NOT_MEASURED),  # no GPU, or none with counters for all that is asked
    **dict.fromkeys((245, 203, 190), Outcome.TRUNCATED),  # timeout, killed, stopped
}
_REASON_LENGTH = 500


def version(text: str) -> str | None:
    """`3.3.9` of `dcgmi  version: 3.3.9`."""
    found = re.search(rf"^{TOOL}\s+version:\s*(\d{{1,9}}(?:\.\d{{1,9}})+)", text, re.MULTILINE)
    return found[1] if found else None


def failure(exit_status: int, printed: str, said: str = "") -> Parsed:
    """How a call of dcgmi ended that gave no result. `said` is its reason where the document holds one."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("Error")] or lines
    reason = (said.strip() or " ".join(telling[:3]) or "it gave no reason")[:_REASON_LENGTH]
    outcome = _OUTCOMES.get(exit_status, Outcome.TOOL_FAILED)
    if "already running" in reason:
        outcome = Outcome.CONTENDED
    elif "Health watches not enabled" in reason or "connect to host engine" in reason:
        outcome = Outcome.CONFIG
    return Parsed(outcome=outcome, reason=f"{TOOL} ended with exit status {exit_status}: {reason}")


def document(printed: str) -> dict[str, Any] | None:
    """The first JSON object that begins a line: lines of text may stand before it. None where there is none."""
    for start in re.finditer(r"^[ \t]*(?=\{)", printed, re.MULTILINE):
        try:
            found, _ = json.JSONDecoder().raw_decode(printed, start.end())
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None
    return None
