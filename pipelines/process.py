"""The only door to processes: argv through `sh`, its own process group, a timeout that ends the whole group."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sh

from pipelines import process_groups
from pipelines.errors import ToolNotFound, ToolNotStarted

_KEPT_BYTES = 16 * 2**20  # of each of stdout and stderr; a tool that prints more is not printing a result
_CHUNK_BYTES = 2**20  # more than a pipe holds (pipe(7)), so that one read empties it
_PR_SET_PDEATHSIG = 1
_WARDEN = 'read -r group && [ -n "$group" ] && { read -r ended || kill -KILL "-$group"; }'
_LIBC = ctypes.CDLL(None)
_OWN_PROGRAMS = str(Path(sys.executable).parent)  # a worker need not have it on its PATH
_SET_ENVIRONMENT = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # else CUDA's number of a GPU need not be that of NVML
_PASSED_ENVIRONMENT = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"),
)


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
    passed: tuple[str, ...] = (),
    started: Callable[[int], None] = lambda _: None,
) -> Completed:
    """Run a command to its end, whatever its exit status, and give back all that is known of it.

    The child sees an allow-list of `environ`, and what is `passed` of it, so that a tool which dumps its environment
    dumps no secret. It leads its own process group; `started` is told the group's id. The group ends at the timeout,
    when this call is interrupted, and with this process, even if that is killed with SIGKILL; what has left the group
    (setsid(2)) does not. Of stdout and stderr the first 16 MiB are kept, in memory: nothing is written beside what the
    tool writes.

    Raises:
        ToolNotFound: argv[0] is not an executable on the PATH of `environ`.
        ToolNotStarted: it is, and the system would not execute it there.
    """
    with _pipes() as (out, err), _warden() as warden:
        started_at = datetime.now(UTC)
        clock = time.monotonic()
        given = {name: environ[name] for name in (*_PASSED_ENVIRONMENT, *passed) if name in environ}
        seen = {**_SET_ENVIRONMENT, **given}
        running = _spawn(argv, cwd, seen, warden, out, err)
        child = _Child(running.pid, out, err)
        timed_out = False
        try:
            started(running.pid)
            timed_out = not child.ends_within(timeout_s)
        finally:
            process_groups.end(running.pid, child.ends_within)
        duration_s = time.monotonic() - clock
        status = running.process.wait()
        return Completed(
            argv=argv,
            exit_status=status if status >= 0 else None,
            signal=-status if status < 0 else None,
            timed_out=timed_out,
            stdout=out.text(),
            stderr=err.text(),
            started_at=started_at,
            duration_s=duration_s,
        )


def spawn(argv: tuple[str, ...], *, log: Path, environ: Mapping[str, str], parents_end: signal.Signals | None) -> int:
    """Start a process in a session of its own, out of reach of the terminal's signals. Returns its id.

    It appends to `log`. When this process ends, however it ends, it is sent `parents_end`; None lets it run on.
    """
    parent = os.getpid()
    with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
        running = sh.Command(argv[0])(
            *argv[1:],
            _bg=True,
            _bg_exc=False,
            _new_session=True,
            _tty_out=False,
            _in=nothing,
            _out=output,
            _err=output,
            _env=dict(environ),
            _preexec_fn=(lambda: _die_with(parent, parents_end)) if parents_end else None,
        )
    return int(running.pid)


def die_with_parent() -> None:
    """To be called in a child that was just forked: it is killed when its parent ends, however that ends."""
    _die_with(os.getppid())


class _Pipe:
    """The reading end of a pipe, emptied without blocking; keeps what comes first."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reading, False)
        self._kept = bytearray()

    def drain(self) -> bool:
        """Take what is there, in one read; whether more may come."""
        try:
            chunk = os.read(self.reading, _CHUNK_BYTES)
        except BlockingIOError:
            return True
        self._kept += chunk[: _KEPT_BYTES - len(self._kept)]
        return bool(chunk)

    def text(self) -> str:
        self.drain()
        return self._kept.decode(errors="replace")


@contextmanager
def _pipes() -> Iterator[tuple[_Pipe, _Pipe]]:
    out, err = _Pipe(), _Pipe()
    try:
        yield out, err
    finally:
        os.close(out.reading)
        os.close(err.reading)


class _Child:
    def __init__(self, pid: int, *pipes: _Pipe) -> None:
        self.pid = pid
        self._open = {pipe.reading: pipe for pipe in pipes}

    def ends_within(self, timeout_s: float) -> bool:
        """Take what the process prints until it ends or the time is up; whether it ended."""
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            ended, readable = process_groups.wait_for(self.pid, tuple(self._open), left_s)
            for descriptor in readable:
                if not self._open[descriptor].drain():
                    del self._open[descriptor]
            if ended or left_s == 0.0:
                return ended


def _spawn(
    argv: tuple[str, ...], cwd: Path | None, environ: Mapping[str, str], warden: int, out: _Pipe, err: _Pipe
) -> Any:
    parent = os.getpid()

    def in_the_child() -> None:
        _die_with(parent)
        os.write(warden, b"%d\n" % os.getpid())

    try:
        found_in = [*environ.get("PATH", os.defpath).split(os.pathsep), _OWN_PROGRAMS]
        command = sh.Command(argv[0], search_paths=found_in)
        with Path(os.devnull).open("rb") as nothing:
            return command(
                *argv[1:],
                _bg=True,
                _bg_exc=False,
                _new_group=True,
                _tty_out=False,
                _in=nothing,
                _out=out.writing,
                _err=err.writing,
                _cwd=str(cwd) if cwd else None,
                _env=dict(environ),
                _preexec_fn=in_the_child,
            )
    except sh.CommandNotFound as e:
        raise ToolNotFound(argv[0]) from e
    except (sh.ForkException, OSError) as e:
        problem = str(e).rstrip().rpartition("\n")[2].strip() or "it could not be executed"
        raise ToolNotStarted(argv[0], problem) from e
    finally:
        os.close(out.writing)
        os.close(err.writing)


@contextmanager
def _warden() -> Iterator[int]:
    """A shell that kills a process group when this process ends within the block, however it ends.

    PR_SET_PDEATHSIG reaches the leader of the group alone. Gives the descriptor to which the group's leader writes its
    id, before it executes the tool. The shell sees the pipe's end when this process, which alone keeps it, is gone.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        argv = ("sh", "-c", _WARDEN)
        silent = [(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_WRONLY, 0) for descriptor in (1, 2)]
        files = [(os.POSIX_SPAWN_DUP2, reading, 0), *silent]
        shell = os.posix_spawn("/bin/sh", argv, {}, file_actions=files, setsid=True)
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    try:
        yield writing
    finally:
        with suppress(BrokenPipeError):  # somebody has killed it
            os.write(writing, b"\n")
        os.close(writing)
        with suppress(ChildProcessError):  # this process ignores SIGCHLD
            os.waitpid(shell, 0)


def _die_with(parent: int, how: signal.Signals = signal.SIGKILL) -> None:
    """In the child, before exec: prctl(2) PR_SET_PDEATHSIG, and the case that the parent is gone already."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, how, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
