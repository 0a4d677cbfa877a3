"""A node's cache of shards: shared by processes and users, within its budget at all times, nothing in it unverified.

    shards/<sha256>    complete and verified; a reader holds a shared lock on the file, and so it stays
    notes/<sha256>     what the shard is; its modification time is when it was last used
    partial/<sha256>   a download, of its full size from the start; whoever fetches it holds its lock
    pins/<name>        what is never evicted
    damaged/<sha256>   put away: never read again
    files/             files of versions, put together for a job, see `materialise`
    lock               held for the moment in which room is made, or something is moved

Locks are flock(2)'s: they end with their process, however it ends. Everything below the root has the permissions that
the root was given, so that the users who may write to it share it.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Self

from pydantic import ValidationError

from pipelines.datasets import locks
from pipelines.datasets.manifest import Manifest, Shard, digest
from pipelines.datasets.stage_plan import Cached, Room, evict
from pipelines.errors import CacheFull, CacheUnusable
from pipelines.records import Record
from pipelines.settings import Settings

FOLDERS = ("shards", "notes", "partial", "pins", "damaged", "files")
_ABANDONED_S = 24 * 3600.0  # a download that nobody has gone on with for so long
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Note(Record):
    """What a cached shard is."""

    dataset: str
    shard: Shard


class Pin(Record):
    """A version that is kept, and the name under which somebody asked for that."""

    reference: str
    version: str
    shards: tuple[str, ...]


class Cache:
    """Every method may raise CacheUnusable: the directory, or something in it, cannot be read or written."""

    def __init__(self, root: Path, budget_bytes: int, floor_bytes: int) -> None:
        self.root = root
        self._budget_bytes = budget_bytes
        self._floor_bytes = floor_bytes
        with self._usable():
            root.mkdir(parents=True, exist_ok=True)
            self._mode = root.stat().st_mode & 0o7777
            for name in FOLDERS:
                with suppress(FileExistsError):
                    (root / name).mkdir()
                    (root / name).chmod(self._mode)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(settings.cache_root, settings.cache_bytes, settings.cache_floor_bytes)

    def open(self, shard: Shard) -> IO[bytes] | None:
        """The file of a complete shard, which is not evicted while it is open; None when it is not here."""
        with self._usable():
            descriptor = locks.open_locked(self.path(shard.sha256), fcntl.LOCK_SH)
            if descriptor is None:
                return None
            with suppress(OSError):  # another user's note, on a cache that is shared for reading only
                os.utime(self.root / "notes" / shard.sha256)
            return os.fdopen(descriptor, "rb")

    def path(self, sha256: str) -> Path:
        return self.root / "shards" / sha256

    def verify(self, shard: Shard) -> bool | None:
        """Whether the shard's bytes on the disk are those of its manifest; None when it is not here."""
        opened = self.open(shard)
        if opened is None:
            return None
        with opened, self._usable():
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what memory has says nothing of the disk
            if os.fstat(opened.fileno()).st_size != shard.size_bytes:
                return False
            try:
                return all(digest(opened.read(length)) == expected for _, length, expected in shard.blocks)
            except OSError:  # the disk does not give it back
                return False

    def present(self) -> list[Cached]:
        """Every complete shard, by its hash."""
        with self._usable():
            pinned = {sha256 for pin in self.pins() for sha256 in pin.shards}
            return [self._cached(path, path.name in pinned) for path in sorted(self._files("shards"))]

    def note(self, sha256: str) -> Note | None:
        """What a shard is; None when its note is gone or damaged."""
        try:
            return Note.model_validate_json((self.root / "notes" / sha256).read_bytes())
        except (OSError, ValidationError):
            return None

    def room(self) -> Room:
        """The budget, what is held of it, and the disk's own space."""
        with self._usable():
            disk = os.statvfs(self.root)
            held = sum(_size(path) for name in ("shards", "partial", "damaged") for path in self._files(name))
            held += sum(_taken(folder) for folder in self.files())
            return Room(
                path=str(self.root),
                budget_bytes=self._budget_bytes,
                held_bytes=held,
                free_bytes=disk.f_bavail * disk.f_frsize,
                floor_bytes=self._floor_bytes,
            )

    def make_room(self, needed_bytes: int, wanted: frozenset[str] = frozenset()) -> tuple[str, ...]:
        """Evict so that `needed_bytes` more fit; returns what went. The caller holds the lock (`locked`).

        Raises:
            CacheFull: what is pinned, in use or wanted leaves no room.
        """
        room = self.room()
        if room.lacking(needed_bytes) <= 0:
            return ()
        going = evict(self.present(), room, needed_bytes, wanted)
        for sha256 in going:
            self._drop(sha256)
        return going

    def evict(self, shards: Iterable[str]) -> tuple[str, ...]:
        """Evict these shards, but for those that are pinned or in use; returns what went."""
        asked = frozenset(shards)
        with self.locked():
            going = [each for each in self.present() if each.sha256 in asked and not each.is_pinned]
            return tuple(each.sha256 for each in going if self._drop(each.sha256))

    def quarantine(self, sha256: str) -> None:
        """Move a damaged shard out of sight. Who has it open keeps it; nobody gets it any more."""
        with self.locked(), suppress(FileNotFoundError):
            self.path(sha256).replace(self.root / "damaged" / sha256)
            (self.root / "notes" / sha256).unlink(missing_ok=True)

    def pin(self, reference: str, manifest: Manifest) -> None:
        """Keep the version's shards, those to come too, until `unpin`; a pin of the same name is replaced."""
        shards = tuple(shard.sha256 for shard in manifest.body.shards)
        body = Pin(reference=reference, version=manifest.version, shards=shards).model_dump_json().encode()
        self._write(self.root / "pins" / reference, body)

    def unpin(self, reference: str) -> bool:
        """Whether there was such a pin."""
        with self._usable():
            try:
                (self.root / "pins" / reference).unlink()
            except FileNotFoundError:
                return False
            return True

    def pins(self) -> list[Pin]:
        with self._usable():
            return [Pin.model_validate_json(path.read_bytes()) for path in sorted(self._files("pins"))]

    def gc(self) -> tuple[str, ...]:
        """Remove what nobody will use again: abandoned downloads, damaged files, notes without a shard. What went."""
        with self.locked():
            old = [path for path in self._files("partial") if time.time() - path.stat().st_mtime > _ABANDONED_S]
            gone = [path for path in old if locks.unlink_unused(path)]
            orphans = [path for path in self._files("notes") if not self.path(path.name).exists()]
            for path in (*self._files("damaged"), *orphans):
                path.unlink()
                gone.append(path)
        return tuple(f"{path.parent.name}/{path.name}" for path in gone)

    def files(self) -> list[Path]:
        """The folders with files of versions that somebody works with, and those that killed processes left."""
        with self._usable():
            return self._files("files")

    def files_folder(self, name: str, size_bytes: int) -> Path:
        """Where such a folder goes: its name says how much space it takes."""
        return self.root / "files" / f"{name}.{size_bytes}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The cache's own lock, for a moment."""
        with self._usable():
            descriptor = locks.open_shared(self.root / "lock", self._mode & 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)

    @contextmanager
    def receiving(self, shard: Shard, wanted: frozenset[str], say: Callable[[str], None]) -> Iterator[int | None]:
        """The right to fetch a shard: its partial file, open for writing, its space taken. `publish` makes it complete.

        Yields None where another process has brought it in meanwhile. What was written stays for another attempt.

        Raises:
            CacheFull: there is no room for it.
        """
        path = self.root / "partial" / shard.sha256
        with self._usable():
            descriptor = self._claimed(path, shard, say)
        if descriptor is None:
            yield None
            return
        try:
            with self.locked():
                lacking = shard.size_bytes - os.fstat(descriptor).st_size
                if lacking > 0:
                    self.make_room(lacking, wanted)
                    os.posix_fallocate(descriptor, 0, shard.size_bytes)
            yield descriptor
        except CacheFull:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def publish(self, dataset: str, shard: Shard, descriptor: int) -> None:
        """Make a verified partial file, which `receiving` gave, a complete shard."""
        with self.locked():
            os.fchmod(descriptor, 0o444 & (self._mode | 0o400))
            self._write(
                self.root / "notes" / shard.sha256, Note(dataset=dataset, shard=shard).model_dump_json().encode()
            )
            (self.root / "partial" / shard.sha256).replace(self.path(shard.sha256))
            _sync(self.root / "shards")

    def discard(self, shard: Shard) -> None:
        """Remove a partial file whose lock the caller holds."""
        with self._usable():
            (self.root / "partial" / shard.sha256).unlink(missing_ok=True)

    def _claimed(self, path: Path, shard: Shard, say: Callable[[str], None]) -> int | None:
        """The locked partial file; None when the shard is complete by the time we have the lock."""
        while not self.path(shard.sha256).exists():
            waiting = partial(say, f"shard {shard.sha256[:12]}: another process is fetching it; waiting")
            if (descriptor := locks.wait_for(path, self._mode & 0o666, waiting)) is not None:
                return descriptor
        return None

    def _cached(self, path: Path, is_pinned: bool) -> Cached:
        note = self.note(path.name)
        try:
            used_at = (self.root / "notes" / path.name).stat().st_mtime
        except FileNotFoundError:
            used_at = 0.0
        return Cached(
            sha256=path.name,
            dataset=note.dataset if note else "",
            size_bytes=_size(path),
            used_at=datetime.fromtimestamp(used_at, UTC),
            is_pinned=is_pinned,
            is_in_use=self._is_in_use(path),
        )

    def _is_in_use(self, path: Path) -> bool:
        descriptor = locks.open_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if descriptor is None:
            return path.exists()
        os.close(descriptor)
        return False

    def _drop(self, sha256: str) -> bool:
        """Remove a shard unless somebody reads it."""
        gone = locks.unlink_unused(self.path(sha256))
        if gone:
            (self.root / "notes" / sha256).unlink(missing_ok=True)
        return gone

    def _write(self, path: Path, body: bytes) -> None:
        """A small file in one step."""
        with self._usable():
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_bytes(body)
            temporary.chmod(self._mode & 0o666)
            temporary.replace(path)

    def _files(self, name: str) -> list[Path]:
        """The files of a folder; those that begin with a dot are being written."""
        return [path for path in (self.root / name).iterdir() if not path.name.startswith(".")]

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise CacheUnusable(e.filename or str(self.root), e.strerror or str(e)) from e


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _taken(folder: Path) -> int:
    """The space that a folder of files was given."""
    size = folder.name.rpartition(".")[2]
    return int(size) if size.isdecimal() else 0


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, _DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
