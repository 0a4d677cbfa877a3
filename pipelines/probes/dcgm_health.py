"""DCGM's health watches of all GPUs of the node: `dcgm_health --watch-s=N`.

Where nothing is watched yet, everything is for N seconds, and then nothing again; what an operator has set is left as
it is, and asked at once. It prints every call of dcgmi. `dcgm_health --version` prints what dcgmi says of itself.
"""

import json
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from pipelines import process
from pipelines.errors import ToolNotFound, ToolNotStarted
from pipelines.families import dcgm_tool

_ALL_GPUS = ("-g", "0")  # DCGM_GROUP_ALL_GPUS, which each host engine has
_WITHIN_S = 60.0  # of each call


def main(argv: Sequence[str]) -> int:
    try:
        if list(argv) == ["--version"]:
            done = process.run(dcgm_tool.VERSION_ARGV, timeout_s=_WITHIN_S)
            print(done.stdout + done.stderr, end="")
            return 0
        signal.signal(signal.SIGTERM, _ended)
        calls = _asked(float(argv[0].removeprefix("--watch-s=")))
    except (ToolNotFound, ToolNotStarted) as e:
        print(f"{e}; install it: {dcgm_tool.INSTALL_HINT}", file=sys.stderr)
        return 1
    print(json.dumps({"probe": "dcgm_health", "calls": calls}))
    return 0


def _ended(number: int, _: object) -> None:
    """So that what was set is cleared."""
    sys.exit(128 + number)


def _asked(watch_s: float) -> list[dict[str, Any]]:
    calls = [_call("-f")]
    if calls[-1]["exit_status"] != 0 or '"On"' in calls[-1]["stdout"]:
        return [*calls, _call("-c")] if calls[-1]["exit_status"] == 0 else calls
    try:
        calls.append(_call("-s", "a"))
        if calls[-1]["exit_status"] == 0:
            time.sleep(watch_s)  # over which errors are counted
            calls.append(_call("-c"))
    finally:
        cleared = _call("--clear")
    return [*calls, cleared]


def _call(*what: str) -> dict[str, Any]:
    argv = (dcgm_tool.TOOL, "health", *_ALL_GPUS, *what, *(("-j",) if what[0] in ("-f", "-c") else ()))
    done = process.run(argv, timeout_s=_WITHIN_S)
    return {
        "what": what[0],
        "exit_status": done.exit_status,
        "timed_out": done.timed_out,
        "stdout": done.stdout,
        "stderr": done.stderr,
    }
