"""The only door to processes: argv through `sh`, its own process group, a timeout that ends the whole group."""

import ctypes
import os
import select
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import sh

from pipelines.errors import ToolNotFound

_GRACE_S = 3.0  # between SIGTERM and SIGKILL: enough for fio to write its document
_KEPT_BYTES = 16 * 2**20  # of each of stdout and stderr; a tool that prints more is not printing a result
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_PASSED_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Completed:
    """How a process ended. Either `exit_status` or `signal` is set; what it means is the caller's to judge."""

    argv: tuple[str, ...]
    exit_status: int | None
    signal: int | None
    timed_out: bool
    stdout: str
    stderr: str
    started_at: datetime
    duration_s: float


def run(
    argv: tuple[str, ...],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    started: Callable[[int], None] = lambda _: None,
) -> Completed:
    """Run a command to its end, whatever its exit status, and give back all that is known of it.

    The child sees an allow-list of `environ`, so that a tool which dumps its environment dumps no secret. It leads
    its own process group; `started` is told the group's id. The group ends at the timeout and when this call is
    interrupted; the child itself ends with this process, even if that is killed with SIGKILL.

    Raises:
        ToolNotFound: argv[0] is not an executable on the PATH.
    """
    try:
        command = sh.Command(argv[0])
    except sh.CommandNotFound as e:
        raise ToolNotFound(argv[0]) from e
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started_at = datetime.now(UTC)
        clock = time.monotonic()
        running: Any = command(
            *argv[1:],
            _bg=True,
            _bg_exc=False,
            _new_group=True,
            _tty_out=False,
            _out=out,
            _err=err,
            _cwd=str(cwd) if cwd else None,
            _env={name: environ[name] for name in _PASSED_ENVIRONMENT if name in environ},
            _preexec_fn=_die_with_parent,
        )
        try:
            started(running.pid)
            timed_out = not _ends_within(running.pid, timeout_s)
        finally:
            _end_group(running.pid)
        status = running.process.wait()
        return Completed(
            argv=argv,
            exit_status=status if status >= 0 else None,
            signal=-status if status < 0 else None,
            timed_out=timed_out,
            stdout=_text(out),
            stderr=_text(err),
            started_at=started_at,
            duration_s=time.monotonic() - clock,
        )


def end_group(group: int, start_ticks: int) -> bool:
    """End a process group left behind by an earlier process of ours; whether it was there.

    `start_ticks` (see `start_ticks_of`) tells the group's leader from a later process that was given the same id.
    """
    if start_ticks_of(group) != start_ticks:
        return False
    _end_group(group)
    return True


def start_ticks_of(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (proc(5), field 22 of stat); None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[19])


def _end_group(group: int) -> None:
    """SIGTERM if the leader still runs, then SIGKILL to whatever is left of the group."""
    with suppress(ProcessLookupError):
        if not _ends_within(group, 0):
            os.killpg(group, signal.SIGTERM)
            _ends_within(group, _GRACE_S)
        os.killpg(group, signal.SIGKILL)


def _ends_within(pid: int, timeout_s: float) -> bool:
    """Wait for a process to end; whether it did. Wakes at once, without polling (pidfd_open(2))."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        ready = poller.poll(timeout_s * 1000)
    finally:
        os.close(descriptor)
    return bool(ready)


def _die_with_parent() -> None:
    """In the child, before exec: prctl(2) PR_SET_PDEATHSIG."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(_KEPT_BYTES).decode(errors="replace")
