"""Long-running processes of ours: started, waited for, stopped, and told from later processes of the same id."""

import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from pipelines import process, process_groups
from pipelines.records import Record


class Server(Record):
    """A process that leads a session of its own."""

    name: str
    pid: int
    start_ticks: int  # see process_groups.start_ticks_of
    log: Path

    @property
    def running(self) -> bool:
        return process_groups.start_ticks_of(self.pid) == self.start_ticks


def start(
    name: str,
    argv: tuple[str, ...],
    *,
    log: Path,
    environ: Mapping[str, str],
    parents_end: signal.Signals | None = signal.SIGKILL,
) -> Server:
    """Start a server that appends to `log`; it is sent `parents_end` when this process ends, however it ends."""
    pid = process.spawn(argv, log=log, environ=environ, parents_end=parents_end)
    return Server(name=name, pid=pid, start_ticks=process_groups.start_ticks_of(pid) or 0, log=log)


def first_to_end(
    servers: Sequence[Server], timeout_s: float | None = None, *, unless: int | None = None
) -> Server | None:
    """Sleep until one of the servers has ended, and say which.

    None when the time is up, or when the descriptor `unless` can be read.
    """
    with ExitStack() as opened:
        poller = select.poll()
        by_descriptor: dict[int, Server] = {}
        for server in servers:
            if not server.running:
                return server
            descriptor = os.pidfd_open(server.pid)
            opened.callback(os.close, descriptor)
            poller.register(descriptor, select.POLLIN)
            by_descriptor[descriptor] = server
        if unless is not None:
            poller.register(unless, select.POLLIN)
        ready = {descriptor for descriptor, _ in poller.poll(None if timeout_s is None else timeout_s * 1000)}
        return None if unless in ready or not ready else by_descriptor[ready.pop()]


def stop(servers: Sequence[Server], grace_s: float) -> None:
    """SIGTERM to every server that still runs; SIGKILL to the groups of those that have not ended in time."""
    running = [server for server in servers if server.running]
    for server in running:
        with suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while running and (ended := first_to_end(running, max(0.0, deadline - time.monotonic()))):
        running.remove(ended)
    for server in running:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
