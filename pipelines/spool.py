"""The spool: what a node has for the object store while that is away, kept on the node's disk and sent later.

A file is one object: its SHA-256, then its bytes. It appears under its name in one step, flushed to the disk, so that
what a killed process was writing is never sent. Spools of different stores are kept apart.
"""

import fcntl
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path

from pipelines import keys, late
from pipelines.errors import BadKey, SpoolFull, SpoolUnusable, StoreUnreachable
from pipelines.records import Record
from pipelines.settings import Settings
from pipelines.storage import Store

_SLASH = ","  # in names of files; no key has one
_UNFINISHED = ".tmp-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIGEST_BYTES = 64  # hex digits
_ASKED_AGAIN_AFTER_S = 30.0  # the store, between two jobs

Say = Callable[[str], None]


class Spooled(Record):
    """An object that waits to be sent."""

    key: str
    size_bytes: int
    is_intact: bool  # a file that is not what was written is kept, and not sent


class Spool:
    """A directory of objects for one store, for one user. Any number of his processes may use it at once.

    Every method may raise SpoolUnusable. Nothing in it is followed that is a link, and a folder that somebody else
    owns or may write to is refused: what lies there is sent with this node's credentials, as evidence.
    """

    def __init__(self, root: Path, store_url: str, budget_bytes: int) -> None:
        self.path = root / keys.content_id(store_url)
        self._budget_bytes = budget_bytes

    @classmethod
    def of(cls, settings: Settings, store: Store) -> "Spool":
        """This node's spool for the store."""
        return cls(settings.home / f"spool-{os.geteuid()}", store.base_url, settings.spool_bytes)

    def put(self, key: str, data: bytes) -> bool:
        """Keep an object until it is sent; never overwrite. False: one of that key is there.

        Raises:
            SpoolFull: it does not fit beside what is there.
        """
        name = _name_of(keys.checked(key))
        body = keys.sha256(data).encode() + data
        with self._locked() as folder:
            held_bytes = 0
            for present in _names_in(folder):
                if present.startswith(_UNFINISHED):  # its process was killed: we have the lock
                    os.unlink(present, dir_fd=folder)
                elif present == name:
                    return False
                else:
                    with suppress(FileNotFoundError):  # it was sent meanwhile
                        held_bytes += os.stat(present, dir_fd=folder, follow_symlinks=False).st_size
            if held_bytes + len(body) > self._budget_bytes:
                raise SpoolFull(str(self.path), len(body), held_bytes, self._budget_bytes)
            _write(folder, name, body)
        return True

    def waiting(self) -> list[str]:
        """The keys of what is there, sorted."""
        if not self.path.exists():
            return []
        with self._opened() as folder:
            return sorted(key for name in _names_in(folder) if (key := _key_of(name)))

    def read(self, key: str) -> bytes | None:
        """The object's bytes; None when there is none, or when it is not what was written."""
        with self._opened() as folder:
            try:
                descriptor = os.open(_name_of(key), _FILE, dir_fd=folder)
            except FileNotFoundError:
                return None
            with os.fdopen(descriptor, "rb") as file:
                body = file.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        data = body[_DIGEST_BYTES:]
        return data if body[:_DIGEST_BYTES] == keys.sha256(data).encode() else None

    def ls(self) -> tuple[Spooled, ...]:
        """What waits to be sent."""
        found = ((key, self.read(key)) for key in self.waiting())
        return tuple(Spooled(key=key, size_bytes=len(data or b""), is_intact=data is not None) for key, data in found)

    def send(self, store: Store, say: Say) -> tuple[str, ...]:
        """Write what is there to the store, create-only, and forget what has arrived. Returns the keys of that.

        Of each raw output word is left, for its run may have been parsed without it, see `late`.

        Raises:
            StoreUnreachable, StoreRefused: what was not sent is kept.
        """
        sent = []
        for key in self.waiting():
            data = self.read(key)
            if data is None:
                if key in self.waiting():  # else another process has sent it
                    say(f"{self.path}: {key} is damaged; it is kept there and not sent")
                continue
            store.create(key, data)
            if keys.is_raw(key):
                late.tell(store, key)
            with self._opened() as folder, suppress(FileNotFoundError):
                os.unlink(_name_of(key), dir_fd=folder)
            sent.append(key)
        if sent:
            say(f"sent to the object store from {self.path}: {len(sent)} objects")
        return tuple(sent)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            above = os.open(self.path.parent, _FOLDER)
            try:
                _check(self.path.parent, above)
                with suppress(FileExistsError):
                    os.mkdir(self.path.name, 0o700, dir_fd=above)
                    os.fsync(above)
                folder = os.open(self.path.name, _FOLDER, dir_fd=above)
            finally:
                os.close(above)
            try:
                _check(self.path, folder)
                yield folder
            finally:
                os.close(folder)
        except OSError as e:
            raise SpoolUnusable(str(self.path), e.strerror or str(e)) from e

    @contextmanager
    def _locked(self) -> Iterator[int]:
        with self._opened() as folder:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield folder


class Delivery:
    """The store as a node's jobs see it: what it does not take is spooled, and sent when it is back.

    While it is away it is asked again every half minute, once, so that jobs do not wait for it.
    """

    def __init__(self, store: Store, spool: Spool, say: Say) -> None:
        self._store = store
        self._spool = spool
        self._say = say
        self._away_since: float | None = None  # monotonic; the last time it was asked in vain

    def create(self, key: str, data: bytes) -> None:
        """Write a new object, to the store or else to the spool.

        Raises:
            StoreRefused: the store answers, and says no.
            SpoolFull, SpoolUnusable: the store is away, and there is no other place for it. It is lost.
        """
        away_s = None if self._away_since is None else time.monotonic() - self._away_since
        if away_s is not None and away_s < _ASKED_AGAIN_AFTER_S:
            self._spool.put(key, data)
            return
        store = self._store if away_s is None else asking_for(self._store, 0.0)
        try:
            if away_s is not None:
                self._spool.send(store, self._say)
            store.create(key, data)
            self._away_since = None
        except StoreUnreachable as e:
            self._away_since = time.monotonic()
            self._spool.put(key, data)
            self._say(f"{e}; {key} is kept in {self._spool.path} and sent later")

    def finish(self, wait_s: float) -> None:
        """Send what is spooled, and wait that long for a store that is away.

        Raises:
            StoreUnreachable: it is still away. What is spooled is kept.
        """
        waiting = len(self._spool.waiting())
        if not waiting:
            return
        self._say(f"{waiting} objects are in {self._spool.path}; trying for {wait_s:.0f} s to send them")
        self._spool.send(asking_for(self._store, wait_s), self._say)


def asking_for(store: Store, retry_s: float) -> Store:
    """The same store, over the same connections, with another patience."""
    other = copy(store)
    other.retry_s = retry_s
    return other


def _names_in(folder: int) -> list[str]:
    return os.listdir(folder)


def _name_of(key: str) -> str:
    return key.replace("/", _SLASH)


def _key_of(name: str) -> str | None:
    try:
        return keys.checked(name.replace(_SLASH, "/"))
    except BadKey:  # unfinished, or not ours
        return None


def _check(path: Path, folder: int) -> None:
    """Raises: SpoolUnusable: another user could put something into it."""
    status = os.fstat(folder)
    if status.st_uid != os.geteuid():
        raise SpoolUnusable(str(path), f"it belongs to user {status.st_uid}, and this is user {os.geteuid()}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SpoolUnusable(str(path), f"others may write to it (mode {stat.S_IMODE(status.st_mode):o})")


def _write(folder: int, name: str, body: bytes) -> None:
    """Write beside it, flush, put it in place, flush that."""
    temporary = f"{_UNFINISHED}{uuid.uuid4().hex}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(descriptor)
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.unlink(temporary, dir_fd=folder)
    os.fsync(folder)
