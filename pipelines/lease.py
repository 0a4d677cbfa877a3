"""The node's lease: one benchmark at a time per machine, whoever starts it; it ends with its process (flock(2))."""

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from pipelines.errors import LeaseTimeout, LeaseUnusable
from pipelines.records import Name, Record

_FILE = "fleetmark.lock"
_ASKED_EVERY_S = 0.1  # flock(2) cannot wait with a time limit; asked only while another run holds the lease
_READ_BYTES = 4096


class Holder(Record):
    """Who has the lease; written into the lock file for those who wait."""

    pid: int
    run_id: Name
    node: Name
    since: AwareDatetime

    def __str__(self) -> str:
        return f"run {self.run_id} (pid {self.pid}) since {self.since:%Y-%m-%d %H:%M:%S} UTC"


@contextmanager
def held(folder: Path, run_id: str, node: str, wait_s: float, say: Callable[[str], None]) -> Iterator[float]:
    """Hold the machine's lease. Yields the seconds waited for it. Tools that are started do not inherit it.

    Raises:
        LeaseTimeout: somebody else still held it after `wait_s`.
        LeaseUnusable: the lock file cannot be made or opened. There is no fall-back to another place: two
            benchmarks that hold different locks would measure each other.
    """
    path = folder / _FILE
    descriptor = _open(path)
    try:
        waited_s = _acquire(descriptor, path, node, wait_s, say)
        _write(descriptor, Holder(pid=os.getpid(), run_id=run_id, node=node, since=datetime.now(UTC)))
        try:
            yield waited_s
        finally:
            _write(descriptor, None)
    finally:
        os.close(descriptor)


def holder(path: Path) -> Holder | None:
    """Who says to hold the lease; None when the file does not tell. Only flock(2) tells whether it is held."""
    try:
        with path.open("rb") as file:
            return Holder.model_validate_json(file.read(_READ_BYTES))
    except (OSError, ValidationError):
        return None


def _acquire(descriptor: int, path: Path, node: str, wait_s: float, say: Callable[[str], None]) -> float:
    start = time.monotonic()
    said: str | None = None
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited_s = time.monotonic() - start
            now = holder(path)  # for a moment unknown, while the lease changes hands
            who = str(now) if now else said or "another run"
            if who != said:
                say(f"waiting for the lease of node {node}, held by {who}")
                said = who
            if waited_s >= wait_s:
                raise LeaseTimeout(str(path), who, waited_s) from None
            time.sleep(min(_ASKED_EVERY_S, wait_s - waited_s))
        else:
            return time.monotonic() - start if said else 0.0


def _open(path: Path) -> int:
    """The lock file, made if need be, for every user of the machine.

    An existing file is opened without O_CREAT: in a sticky, world-writable directory such as /run/lock the kernel
    refuses that to anyone but the file's owner, root included (fs.protected_regular, proc(5)).
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with suppress(FileExistsError):
            created = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o666)
            os.fchmod(created, 0o666)  # whatever the umask is
            return created
        try:
            descriptor = os.open(path, os.O_RDWR | flags)
        except PermissionError:
            descriptor = os.open(path, os.O_RDONLY | flags)  # enough to hold it, though not to say who does
    except OSError as e:
        raise LeaseUnusable(str(path), e.strerror or str(e)) from e
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise LeaseUnusable(str(path), "it is not a regular file")
    return descriptor


def _write(descriptor: int, who: Holder | None) -> None:
    with suppress(OSError):  # opened read-only, or a full disk: the lock holds all the same
        os.ftruncate(descriptor, 0)
        if who is not None:
            os.pwrite(descriptor, who.model_dump_json().encode(), 0)
