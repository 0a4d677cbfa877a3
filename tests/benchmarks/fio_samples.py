"""Real outputs of fio, each with the parameters and the end of the run that gave it."""

import json
from pathlib import Path
from typing import Any

from pipelines import benchmark
from pipelines.records import Parsed, RawOutput
from tests import make

FOLDER = Path(__file__).parents[1] / "samples/fio"
FIO = benchmark.get("fio")

_MIB = 2**20
_TIMED = {"size_bytes": 16 * _MIB, "runtime_s": 0.5, "ramp_s": 0.2}
_SHORT = {"profile": "rand_read", "size_bytes": 16 * _MIB, "runtime_s": 0.3, "ramp_s": 0}
_KILLED = {"profile": "rand_read", "size_bytes": 16 * _MIB, "runtime_s": 30, "ramp_s": 0}

_RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "3.33-seq_read.json": ({"profile": "seq_read", **_TIMED}, {}),
    "3.33-seq_write.json": ({"profile": "seq_write", **_TIMED}, {}),
    "3.33-rand_read.json": ({"profile": "rand_read", **_TIMED}, {}),
    "3.33-rand_write.json": ({"profile": "rand_write", **_TIMED}, {}),
    "3.33-mixed.json": ({"profile": "mixed", **_TIMED}, {}),
    "3.33-checkpoint.json": ({"profile": "checkpoint", "size_bytes": 256 * _MIB, "fsync_bytes": 16 * _MIB}, {}),
    "3.25-mixed.json": ({"profile": "mixed", **_TIMED}, {}),
    "3.39-mixed.json": ({"profile": "mixed", **_TIMED}, {}),
    "3.39-checkpoint.json": ({"profile": "checkpoint", "size_bytes": 256 * _MIB, "fsync_bytes": 16 * _MIB}, {}),
    "3.33-numjobs2.json": ({"profile": "mixed", "numjobs": 2, **_TIMED}, {}),
    "3.33-sigterm.json": (_KILLED, {"exit_status": 128}),
    "3.33-sigterm_in_ramp.json": ({**_KILLED, "ramp_s": 10}, {"exit_status": 128, "timed_out": True}),
    "3.33-status_interval.json": ({**_KILLED, "iodepth": 1, "runtime_s": 1.2}, {}),
    "3.33-no_percentiles.json": (_SHORT, {}),
    "3.33-direct_einval.json": (_SHORT, {"exit_status": 1}),
    "3.33-io_uring_forbidden.json": ({**_SHORT, "engine": "io_uring"}, {"exit_status": 1}),
    "3.33-note_on_stdout.txt": ({**_SHORT, "engine": "psync", "iodepth": 1}, {}),
    "3.33-engine_missing.txt": (_SHORT, {"exit_status": 1}),
    "3.33-enospc.json": ({"profile": "checkpoint", "size_bytes": 16 * _MIB}, {"exit_status": 1}),
    "3.33-dev_full.txt": ({"profile": "checkpoint", "size_bytes": 16 * _MIB}, {"exit_status": 1}),
    "3.33-randrw_grouped.json": ({"profile": "mixed", "engine": "psync", "iodepth": 1, "numjobs": 2}, {}),
    "3.33-fdatasync.json": ({"profile": "checkpoint", "size_bytes": 256 * _MIB, "fsync_bytes": 8 * _MIB}, {}),
}
NAMES = tuple(_RUNS)


def text(name: str) -> str:
    return (FOLDER / name).read_text()


def raw(name: str, **fields: Any) -> RawOutput:
    """The raw output of the run that gave the sample `<name>`, or `3.33-<name>`; `fields` replace some of it."""
    file = next(each for each in NAMES if each.startswith((f"{name}.", f"3.33-{name}.")))
    given, ended = _RUNS[file]
    return of(given, **{"output": text(file), **ended, **fields})


def of(given: dict[str, Any], **fields: Any) -> RawOutput:
    """A raw output of a job with these parameters."""
    params = FIO.checked_params(given)
    complete = params.model_dump(mode="json", exclude_none=True)
    return make.raw(make.job(params=complete, case=FIO.case(params)), **fields)


def document(name: str) -> dict[str, Any]:
    """The one document of a sample."""
    output = raw(name).output or ""
    found: dict[str, Any] = json.loads(output[output.index("{") :])
    return found


def printed(changed: dict[str, Any]) -> str:
    """As fio prints a document: the outer braces alone on their lines."""
    return json.dumps(changed, indent=2) + "\n"


def parse_changed(name: str, changed: dict[str, Any], **fields: Any) -> Parsed:
    """What the parser makes of the sample's run with another document."""
    return FIO.parse(raw(name, output=printed(changed), **fields))


def values(parsed: Parsed) -> dict[str, float]:
    return {measurement.metric: measurement.value for measurement in parsed.measurements}
