"""The only door to processes: argv through `sh`, its own process group, a timeout that ends the whole group."""

import ctypes
import os
import select
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

from pipelines.errors import ToolNotFound, ToolNotStarted

_GRACE_S = 3.0  # between SIGTERM and SIGKILL: enough for fio to write its document
_KEPT_BYTES = 16 * 2**20  # of each of stdout and stderr; a tool that prints more is not printing a result
_CHUNK_BYTES = 2**20  # more than a pipe holds (pipe(7)), so that one read empties it
_PR_SET_PDEATHSIG = 1
_WARDEN = 'read -r group && [ -n "$group" ] && { read -r ended || kill -KILL "-$group"; }'
_LIBC = ctypes.CDLL(None)
_OWN_PROGRAMS = str(Path(sys.executable).parent)  # a worker need not have it on its PATH
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
        seen = {name: environ[name] for name in (*_PASSED_ENVIRONMENT, *passed) if name in environ}
        running = _spawn(argv, cwd, seen, warden, out, err)
        child = _Child(running.pid, out, err)
        timed_out = False
        try:
            started(running.pid)
            timed_out = not child.ends_within(timeout_s)
        finally:
            _end(running.pid, child.ends_within)
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


def end_group(group: int, start_ticks: int, home: Path) -> bool:
    """End a process group left behind by an earlier process of ours; whether there was one.

    `start_ticks` (see `start_ticks_of`) tells the group's leader from a later process that was given the same id. Where
    only the leader's children are left, they are known by their working directory: `home` or below.
    """
    now = start_ticks_of(group)
    if now not in (None, start_ticks) or (now is None and not _works_in(group, home)):
        return False
    _end(group, lambda timeout_s: _ends_within(group, timeout_s))
    return True


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group; nothing happens where it has ended."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


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


def start_ticks_of(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is none, or it has ended already."""
    stat = _stat(pid)
    return None if stat is None or stat[0] == "Z" else int(stat[19])


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
            ended, readable = _wait_for(self.pid, tuple(self._open), left_s)
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


def _end(group: int, ends_within: Callable[[float], bool]) -> None:
    """SIGTERM if the leader still runs, then SIGKILL to whatever is left of the group, come what may in between."""
    try:
        if not ends_within(0):
            os.killpg(group, signal.SIGTERM)
            ends_within(_GRACE_S)
    except ProcessLookupError:
        return
    finally:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def _ends_within(pid: int, timeout_s: float) -> bool:
    return _wait_for(pid, (), timeout_s)[0]


def _wait_for(pid: int, descriptors: tuple[int, ...], timeout_s: float) -> tuple[bool, tuple[int, ...]]:
    """Sleep until a process ends or there is something to read (pidfd_open(2)): whether it ended, what is readable."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True, descriptors
    try:
        poller = select.poll()
        for descriptor in (process, *descriptors):
            poller.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poller.poll(timeout_s * 1000)}
    finally:
        os.close(process)
    return process in ready, tuple(ready - {process})


def _works_in(group: int, home: Path) -> bool:
    """Whether any process of the group has its working directory in `home`."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        stat = _stat(int(entry.name))
        with suppress(OSError):
            if stat and int(stat[2]) == group and (entry / "cwd").readlink().is_relative_to(home):
                return True
    return False


def _stat(pid: int) -> list[str] | None:
    """The fields of proc(5)'s stat from the third on (state, ppid, pgrp, ..); None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
