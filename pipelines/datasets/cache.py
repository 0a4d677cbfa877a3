"""A node's cache of shards: shared by processes and users, within its budget at all times, nothing in it unverified.

    shards/<sha256>    complete and verified; a reader holds a shared lock on the file, and so it stays
    notes/<sha256>     what the shard is; its modification time is when it was last used
    partial/<sha256>   a download, see `incoming`
    pins/<name>        what is never evicted
    damaged/<sha256>   put away: never read again
    files/             files of versions, put together for a job, see `materialise`
    lock               held for the moment in which room is made, or something is moved

Locks are flock(2)'s: they end with their process, however it ends. Everything below the root has the permissions that
the root was given, so that the users who may write to it share it.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Self

from pydantic import ValidationError

from pipelines.datasets import cachespace, sharedfiles
from pipelines.datasets.manifest import Manifest, Shard, digest
from pipelines.datasets.stage_plan import Cached, Room, evict
from pipelines.errors import CacheFull, CacheUnusable
from pipelines.records import Record
from pipelines.settings import Settings

FOLDERS = ("shards", "notes", "partial", "pins", "damaged", "files")
_ABANDONED_S = 24 * 3600.0  # a download that nobody has gone on with for so long


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
        with self.usable():
            root.mkdir(parents=True, exist_ok=True)
            mode = root.stat().st_mode & 0o7777
            for name in FOLDERS:
                with suppress(FileExistsError):
                    (root / name).mkdir()
                    (root / name).chmod(mode)
                if (root / name).is_symlink():  # whoever shares the cache would have us write and remove elsewhere
                    raise CacheUnusable(str(root), f"{name} in it is a link")
            self.file_mode = mode & 0o666
            if not (root / "lock").exists():
                os.close(sharedfiles.opened(root / "lock", self.file_mode))

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(settings.cache_root, settings.cache_bytes, settings.cache_floor_bytes)

    def open(self, shard: Shard) -> IO[bytes] | None:
        """The file of a complete shard, which is not evicted while it is open; None when it is not here."""
        with self.usable():
            descriptor = sharedfiles.locked(self.path(shard.sha256), fcntl.LOCK_SH)
            if descriptor is None:
                return None
            with suppress(OSError):  # another user's note, on a cache that is shared for reading only
                os.utime(self.root / "notes" / shard.sha256)
            return os.fdopen(descriptor, "rb")

    def path(self, sha256: str) -> Path:
        return self.root / "shards" / sha256

    def verify(self, shard: Shard) -> bool | None:
        """Whether the shard's bytes on the disk are those of its manifest; None when it is not here."""
        return self._verified(shard, lambda _: None)

    def checked(self, shard: Shard) -> bool | None:
        """As `verify`; and what is damaged is put away, unless another process has replaced it meanwhile."""
        return self._verified(shard, lambda opened: self.quarantine(shard.sha256, opened))

    def present(self) -> list[Cached]:
        """Every complete shard, by its hash."""
        with self.locked():
            return self._present()

    def note(self, sha256: str) -> Note | None:
        """What a shard is; None when its note is gone or damaged."""
        try:
            return Note.model_validate_json((self.root / "notes" / sha256).read_bytes())
        except (OSError, ValidationError):
            return None

    def room(self) -> Room:
        """The budget, what is held of it, and the disk's own space but for what was promised and is not yet written."""
        with self.usable():
            folders = self.files()
            held = sum(
                cachespace.file_bytes(path) for name in ("shards", "partial", "damaged") for path in self._files(name)
            )
            promised = sum(map(cachespace.promised_bytes, folders))
            disk = os.statvfs(self.root)  # last: what is written meanwhile counts twice then, and never not at all
            return Room(
                path=str(self.root),
                budget_bytes=self._budget_bytes,
                held_bytes=held + sum(map(cachespace.taken_bytes, folders)),
                free_bytes=max(0, disk.f_bavail * disk.f_frsize - promised),
                floor_bytes=self._floor_bytes,
            )

    def make_room(self, needed_bytes: int, wanted: frozenset[str] = frozenset()) -> tuple[str, ...]:
        """Make `needed_bytes` more fit; returns which shards went. The caller holds the lock (`locked`).

        What killed processes left, damaged files and downloads that nobody is at go before any shard.

        Raises:
            CacheFull: what is pinned, in use or wanted leaves no room.
        """
        room, gone, in_use = self.room(), [], set[str]()
        if room.lacking(needed_bytes) > 0:
            for size_bytes in self._leftovers(wanted):
                room = room.without(size_bytes)
                if room.lacking(needed_bytes) <= 0:
                    break
        while room.lacking(needed_bytes) > 0:
            for each in self._least_wanted(room, needed_bytes, wanted, in_use):
                size_bytes = cachespace.file_bytes(self.path(each))
                if self._drop(each):
                    room = room.without(size_bytes)
                    gone.append(each)
                else:
                    in_use.add(each)
        return tuple(gone)

    def evict(self, shards: Iterable[str]) -> tuple[str, ...]:
        """Evict these shards, but for those that are pinned or in use; returns what went."""
        asked = frozenset(shards)
        with self.locked():
            going = [each for each in self._listed(frozenset()) if each.sha256 in asked and not each.is_pinned]
            return tuple(each.sha256 for each in going if self._drop(each.sha256))

    def quarantine(self, sha256: str, opened: IO[bytes] | None = None) -> None:
        """Move a damaged shard, if it still is the file that is open, out of sight: nobody gets it any more."""
        path = self.path(sha256)
        with self.locked(), suppress(FileNotFoundError):
            if opened is None or sharedfiles.is_same(path, opened.fileno()):
                path.replace(self.root / "damaged" / sha256)
                (self.root / "notes" / sha256).unlink(missing_ok=True)

    def pin(self, reference: str, manifest: Manifest) -> None:
        """Keep the version's shards, those to come too, until `unpin`; a pin of the same name is replaced."""
        shards = tuple(shard.sha256 for shard in manifest.body.shards)
        body = Pin(reference=reference, version=manifest.version, shards=shards).model_dump_json().encode()
        with self.usable():
            sharedfiles.written(self.root / "pins" / reference, body, self.file_mode)

    def unpin(self, reference: str) -> bool:
        """Whether there was such a pin."""
        with self.usable():
            try:
                (self.root / "pins" / reference).unlink()
            except FileNotFoundError:
                return False
            return True

    def pins(self) -> list[Pin]:
        with self.usable():
            return [pin for path in sorted(self._files("pins")) if (pin := _pin(path)) is not None]

    def gc(self) -> tuple[str, ...]:
        """Remove what nobody will use again: abandoned downloads, damaged files, notes without a shard. What went."""
        with self.locked():
            abandoned = [path for path in self._files("partial") if cachespace.age_s(path) > _ABANDONED_S]
            gone = [path for path in abandoned if sharedfiles.removed(path)]
            going = self._files("damaged")
            going += [path for path in self._files("notes") if not self.path(path.name).exists()]
            # what a killed process was writing
            hidden = [path for name in ("notes", "pins") for path in (self.root / name).glob(".*")]
            going += [path for path in hidden if cachespace.age_s(path) > _ABANDONED_S]
            for path in going:
                path.unlink(missing_ok=True)
            return tuple(f"{path.parent.name}/{path.name}" for path in [*gone, *going])

    def files(self) -> list[Path]:
        """The folders with files of versions that somebody works with, and those that killed processes left."""
        with self.usable():
            return self._files("files")

    def files_folder(self, name: str, size_bytes: int, is_new: bool) -> Path:
        """Where such a folder goes, and what it is called before and after it was filled."""
        return self.root / "files" / cachespace.folder_name(name, size_bytes, is_new)

    def reclaim(self) -> list[Path]:
        """Remove the folders that killed processes left: nobody holds their lock. Which they were."""
        how = fcntl.LOCK_EX | fcntl.LOCK_NB
        with self.locked():  # in which they are made and locked
            locks = {folder: sharedfiles.locked(folder, how) for folder in self.files()}
        left = {folder: descriptor for folder, descriptor in locks.items() if descriptor is not None}
        for folder, descriptor in left.items():
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)
        return list(left)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The cache's own lock, for a moment."""
        with self.usable():
            try:
                descriptor = sharedfiles.opened(self.root / "lock", self.file_mode)
            except PermissionError:  # a cache that is shared for reading only
                descriptor = os.open(self.root / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)

    def _verified(self, shard: Shard, put_away: Callable[[IO[bytes]], None]) -> bool | None:
        opened = self.open(shard)
        if opened is None:
            return None
        with opened:
            is_right = _has(opened, shard)
            if not is_right:
                put_away(opened)
        return is_right

    def _leftovers(self, wanted: frozenset[str]) -> Iterator[int]:
        """Remove, one after the other, what nobody will use, or need go on with; the space that each took."""
        for path in self._files("damaged"):
            size_bytes = cachespace.file_bytes(path)
            if sharedfiles.removed(path):
                yield size_bytes
        for folder in self.files():
            descriptor = sharedfiles.locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if descriptor is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)
                yield cachespace.taken_bytes(folder)
        for path in sorted(self._files("partial"), key=cachespace.age_s, reverse=True):
            size_bytes = cachespace.file_bytes(path)
            if path.name not in wanted and sharedfiles.removed(path):
                yield size_bytes

    def _least_wanted(self, room: Room, needed_bytes: int, wanted: frozenset[str], in_use: set[str]) -> tuple[str, ...]:
        """What is to go, as far as is known; only who tries knows what is in use. Raises: CacheFull."""
        try:
            return evict(self._listed(in_use), room, needed_bytes, wanted)
        except CacheFull:
            return evict(self._present(), room, needed_bytes, wanted)  # which knows all that is in use, and says it

    def _present(self) -> list[Cached]:
        return [
            each.model_copy(
                update={
                    "dataset": note.dataset if (note := self.note(each.sha256)) else "",
                    "is_in_use": sharedfiles.is_in_use(self.path(each.sha256)),
                }
            )
            for each in self._listed(frozenset())
        ]

    def _listed(self, in_use: Iterable[str]) -> list[Cached]:
        """Every complete shard, as far as names and times tell: of thousands, in milliseconds."""
        pinned = {sha256 for pin in self.pins() for sha256 in pin.shards}
        return [
            Cached(
                sha256=path.name,
                dataset="",
                size_bytes=cachespace.file_bytes(path),
                used_at=datetime.fromtimestamp(cachespace.modified_at(self.root / "notes" / path.name), UTC),
                is_pinned=path.name in pinned,
                is_in_use=path.name in in_use,
            )
            for path in sorted(self._files("shards"))
        ]

    def _drop(self, sha256: str) -> bool:
        """Remove a shard unless somebody reads it."""
        gone = sharedfiles.removed(self.path(sha256))
        if gone:
            (self.root / "notes" / sha256).unlink(missing_ok=True)
        return gone

    def _files(self, name: str) -> list[Path]:
        """The files of a folder; those that begin with a dot are being written."""
        return [path for path in (self.root / name).iterdir() if not path.name.startswith(".")]

    @contextmanager
    def usable(self) -> Iterator[None]:
        """What the system refuses within the block, as CacheUnusable."""
        try:
            yield
        except OSError as e:
            raise CacheUnusable(e.filename or str(self.root), e.strerror or str(e)) from e


def _has(opened: IO[bytes], shard: Shard) -> bool:
    """Whether the disk gives the shard's bytes, and no others."""
    try:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what memory has says nothing of the disk
        if os.fstat(opened.fileno()).st_size != shard.size_bytes:
            return False
        return all(digest(opened.read(length)) == expected for _, length, expected in shard.blocks)
    except OSError:
        return False


def _pin(path: Path) -> Pin | None:
    """A pin; None when it was taken away meanwhile. One that cannot be read is no reason to evict what it kept."""
    try:
        return Pin.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as e:
        raise CacheUnusable(str(path), "it is no pin; remove it, or pin the version again") from e
