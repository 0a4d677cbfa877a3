"""A folder that a version is downloaded into: files appear in it whole, and nothing is written outside of it."""

import fcntl
import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pipelines.datasets.meter import Meter
from pipelines.errors import DownloadRefused

WORK = ".fleetmark-download"
"""Folder below the target for files under way. An interrupted download leaves it, and the next one goes on with it."""

_FLUSHED_BYTES = 2**20
"""Smaller files are flushed to the disk together, at the end: one by one, a million of them take ten minutes."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Target:
    """Paths are relative and checked (`manifest.checked_path`). Links below the folder are not followed, not one.

    Safe to use from several threads. Another process that downloads into the same folder waits at `with`.
    """

    def __init__(self, path: Path, say: Callable[[str], None], overwrite: bool) -> None:
        self.path = path
        self._say = say
        self._overwrite = overwrite
        self._root = self._work = -1
        self._has_unflushed = False

    def __enter__(self) -> Self:
        with self.explained(""):
            self.path.mkdir(parents=True, exist_ok=True)
            self._root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with self.explained(WORK):
                self._work = self._locked_work()
        except BaseException:
            os.close(self._root)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
            else:
                with suppress(OSError):  # it is not empty: the next attempt goes on with what it has
                    os.rmdir(WORK, dir_fd=self._root)
        finally:
            os.close(self._work)  # and with it the lock
            os.close(self._root)

    def _finish(self) -> None:
        with self.explained(WORK):
            shutil.rmtree(WORK, dir_fd=self._root)
            if self._has_unflushed:
                os.sync()

    @contextmanager
    def explained(self, path: str) -> Iterator[None]:
        """What the system refuses within the block, as DownloadRefused."""
        try:
            yield
        except OSError as e:
            raise DownloadRefused(str(self.path / path), e.strerror or str(e)) from e

    def names(self) -> list[str]:
        return os.listdir(self._root)  # noqa: PTH208 - of the folder that is locked, whatever its path leads to now

    @contextmanager
    def existing(self, path: str) -> Iterator[int | None]:
        """A descriptor of the file that is there, to read; None where there is nothing.

        Raises:
            DownloadRefused: it is no file, or the way to it leads through something that is no folder.
        """
        *folders, name = path.split("/")
        with self.explained(path):
            try:
                with self._folder(path, folders, is_made=False) as folder:
                    # without O_NONBLOCK a FIFO would keep us waiting for a writer
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                    descriptor = os.open(name, flags, dir_fd=folder)
            except FileNotFoundError:
                descriptor = None
        try:
            if descriptor is not None and not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DownloadRefused(f"{self.path}/{path}", "something is there that is no file")
            yield descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def partial(self, path: str) -> int:
        """A descriptor, to be closed, of the file that is to become `path`, as an earlier attempt left it.

        Raises:
            DownloadRefused: there is a file, and it is not to be overwritten.
        """
        with self.existing(path) as there:
            if there is not None and not self._overwrite:
                raise DownloadRefused(f"{self.path}/{path}", "another file is there; move it away, or overwrite it")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with self.explained(path):
            return os.open(_partial_name(path), flags, 0o666, dir_fd=self._work)

    def publish(self, path: str, descriptor: int, size_bytes: int) -> None:
        """Put a file that is whole in its place, in one atomic step. What is there is replaced. Raises: `existing`."""
        *folders, name = path.split("/")
        with self.explained(path):
            os.ftruncate(descriptor, size_bytes)
            if size_bytes < _FLUSHED_BYTES:
                self._has_unflushed = True
            else:
                os.fdatasync(descriptor)
            with self._folder(path, folders, is_made=True) as folder:
                os.replace(_partial_name(path), name, src_dir_fd=self._work, dst_dir_fd=folder)

    @contextmanager
    def _folder(self, path: str, folders: list[str], is_made: bool) -> Iterator[int]:
        descriptor = os.dup(self._root)
        try:
            for place, name in enumerate(folders):
                try:
                    inner = _made(name, descriptor) if is_made else os.open(name, _FOLDER, dir_fd=descriptor)
                except NotADirectoryError as e:
                    problem = f"{'/'.join(folders[: place + 1])!r} there is no folder, but a file or a link"
                    raise DownloadRefused(f"{self.path}/{path}", problem) from e
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def _locked_work(self) -> int:
        """The folder of files under way, which nobody else is in."""
        while True:
            descriptor = _made(WORK, self._root)
            try:
                self._lock(descriptor)
                with suppress(FileNotFoundError):  # whom we waited for has removed it
                    if os.path.samestat(os.stat(WORK, dir_fd=self._root), os.fstat(descriptor)):
                        return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._say(f"another download into {self.path} is at work; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # NFS locks no folders
            return


def _made(name: str, folder: int) -> int:
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=folder)
    return os.open(name, _FOLDER, dir_fd=folder)


def _partial_name(path: str) -> str:
    """Of one length whatever the path, so that no path is too long for it."""
    return hashlib.sha256(path.encode()).hexdigest()[:32]


def written(descriptor: int, data: memoryview, at: int) -> None:
    """All of `data` into the file, from there on."""
    while data:
        count = os.pwrite(descriptor, data, at)
        data, at = data[count:], at + count


class Tally:
    """A meter that also knows what was there already."""

    def __init__(self, say: Callable[[str], None], size_bytes: int, count: int, noun: str) -> None:
        self.present_bytes = 0
        self._meter = Meter(say, size_bytes, count, noun)
        self._lock = threading.Lock()

    def add(self, size_bytes: int, count: int, present: bool = False) -> None:
        self._meter.add(size_bytes, count, spared=present)
        with self._lock:
            self.present_bytes += size_bytes if present else 0

    def line(self) -> str:
        return self._meter.line()
