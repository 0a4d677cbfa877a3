"""Process groups that run: waited for, signalled, ended, and told from later ones of the same id (proc(5))."""

import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_GRACE_S = 3.0  # between SIGTERM and SIGKILL: enough for fio to write its document


def send(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group; nothing happens where it has ended."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def end(group: int, ends_within: Callable[[float], bool]) -> None:
    """SIGTERM if the leader still runs, then SIGKILL to whatever is left of the group, come what may in between."""
    try:
        if not ends_within(0):
            os.killpg(group, signal.SIGTERM)
            ends_within(_GRACE_S)
    except ProcessLookupError:
        return
    finally:
        send(group, signal.SIGKILL)


def end_left(group: int, start_ticks: int, home: Path) -> bool:
    """End a process group left behind by an earlier process of ours; whether there was one.

    `start_ticks` (see `start_ticks_of`) tells the group's leader from a later process that was given the same id. Where
    only the leader's children are left, they are known by their working directory: `home` or below.
    """
    now = start_ticks_of(group)
    if now not in (None, start_ticks) or (now is None and not _works_in(group, home)):
        return False
    end(group, lambda timeout_s: wait_for(group, (), timeout_s)[0])
    return True


def wait_for(pid: int, descriptors: tuple[int, ...], timeout_s: float) -> tuple[bool, tuple[int, ...]]:
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


def start_ticks_of(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is none, or it has ended already."""
    stat = _stat(pid)
    return None if stat is None or stat[0] == "Z" else int(stat[19])


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
