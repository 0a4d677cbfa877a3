"""A dataset's shards in the store, compared with what manifests say of them: damage is put away, and mended where this
node's cache has a good copy. A copy is good when its sha256 is the shard's name; nothing else takes its place.
"""

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pipelines.bulk import Bulk
from pipelines.datasets import manifest, names, pack
from pipelines.datasets.cache import Cache
from pipelines.datasets.events import Check, Finding
from pipelines.datasets.manifest import BLOCK_BYTES, BLOCK_DIGITS, Packing, Shard
from pipelines.datasets.newfile import NewFile, new_file
from pipelines.datasets.pace import Pace
from pipelines.datasets.reindex import index_again
from pipelines.errors import CorruptObject, KeyNotFound, StoreRefused
from pipelines.storage import Store

_BUFFER_BYTES = 2**20
_DISK_ERRORS = {errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EISDIR}  # the bytes are lost; else we may not read them


class Known(NamedTuple):
    """A shard that manifests name."""

    shard: Shard
    packing: Packing
    named_by: list[str]  # keys of manifests


@dataclass
class Mender:
    """A scrub of one dataset in the store."""

    store: Store
    large: Bulk
    dataset: str
    work: Path
    scrub_id: str
    pace: Pace
    cache: Cache | None
    is_full: bool
    say: Callable[[str], None]
    put_away: set[str] = field(default_factory=set)  # by an earlier attempt at this scrub, which was interrupted

    def check(self, known: Known) -> list[Check]:
        """Of a shard that a version names, and of its index where that is not intact."""
        shard, timed = known.shard, Timed(self.dataset, known.shard)
        finding, reason = self._shard(known)
        if finding is None:
            return []
        checks = [timed.check(finding, reason)]
        is_whole = finding in {Finding.INTACT, Finding.REPAIRED}
        finding, reason = self._index(shard, known.packing, is_whole)
        if finding is Finding.MISSING and not any(map(self.store.exists, known.named_by)):
            return []  # collected meanwhile
        if finding is not Finding.INTACT:
            checks.append(timed.check(finding, f"its index {names.index_key(self.dataset, shard.index)}: {reason}"))
        return checks

    def check_unnamed(self, sha256: str) -> list[Check]:
        """Of a shard that no version names: it has nothing but its name to be compared with."""
        key = names.shard_key(self.dataset, sha256)
        timed = None
        try:
            size_bytes = self.large.size(key)
            if size_bytes is None:
                return []
            timed = Timed(self.dataset, unknown(sha256, max(1, size_bytes)))
            self.pace.take(size_bytes)
            if self._sha256(key, size_bytes) == sha256:
                return [timed.check(Finding.INTACT)]
            if not self._put_away(key, sha256):
                return [timed.check(Finding.INTACT)]
        except KeyNotFound:  # it was collected meanwhile
            return []
        except StoreRefused as e:
            if timed is None or not _is_lost(e):
                raise
            return [timed.check(Finding.DAMAGED, f"no version names it; {e}")]
        self.store.delete(key)
        return [timed.check(Finding.DAMAGED, "no version names it; put away")]

    def _shard(self, known: Known) -> tuple[Finding | None, str]:
        """What it is like; no finding where it was collected since its manifest was read."""
        shard = known.shard
        key = names.shard_key(self.dataset, shard.sha256)
        finding, wrong = Finding.INTACT, ""
        try:
            wrong = self._compare(key, shard)
            if wrong:
                finding = Finding.DAMAGED
        except KeyNotFound:
            if not any(map(self.store.exists, known.named_by)):
                return None, ""
            finding, wrong = Finding.MISSING, "it is not there"
        if finding is Finding.INTACT:
            if shard.sha256 in self.put_away:
                return Finding.REPAIRED, "put away and repaired by an earlier attempt at this scrub"
            return finding, ""
        self.say(f"shard {self.store.url(key)}: {wrong}")
        try:
            return self._mend(key, shard, finding, wrong)
        except (StoreRefused, KeyNotFound) as e:
            return finding, f"{wrong}; not repaired: {e}"

    def _compare(self, key: str, shard: Shard) -> str:
        """What is wrong with a stored shard; empty when nothing is. Raises: KeyNotFound."""
        size_bytes = self.large.size(key)
        if size_bytes is None:
            raise KeyNotFound(self.store.url(key))
        if size_bytes != shard.size_bytes:
            return f"expected {shard.size_bytes} B, found {size_bytes} B"
        self._forget(key)
        sha256 = hashlib.sha256()
        for start, length, expected in shard.blocks:
            self.pace.take(length)
            try:
                data = self.large.range(key, start, length)
            except StoreRefused as e:
                if _is_lost(e):
                    return str(e)
                raise
            if data is None or len(data) != length:
                return f"block at {start}: expected {length} B, found {len(data or b'')} B"
            if (got := manifest.digest(data)) != expected:
                return f"block at {start}: expected xxh3 {expected}, got {got}"
            if self.is_full:
                sha256.update(data)
        if self.is_full and sha256.hexdigest() != shard.sha256:
            return f"expected sha256 {shard.sha256}, got {sha256.hexdigest()}"
        return ""

    def _sha256(self, key: str, size_bytes: int) -> str:
        self._forget(key)
        sha256 = hashlib.sha256()
        for data in self._blocks(key, size_bytes):
            sha256.update(data)
        return sha256.hexdigest()

    def _blocks(self, key: str, size_bytes: int) -> Iterable[memoryview]:
        for start in range(0, min(size_bytes, self.large.size(key) or 0), BLOCK_BYTES):
            data = self.large.range(key, start, min(BLOCK_BYTES, size_bytes - start))
            if data is None:
                raise KeyNotFound(self.store.url(key))
            yield data

    def _forget(self, key: str) -> None:
        """Have a local file read from its disk: what the page cache has of it says nothing about that."""
        if self.store.is_local:
            with suppress(OSError), Path(self.store.path(key)).open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _mend(self, key: str, shard: Shard, finding: Finding, wrong: str) -> tuple[Finding, str]:
        """Put a damaged shard away, and a good copy in its place in one step; without one, nothing."""
        is_there = finding is Finding.DAMAGED
        if is_there and not self._put_away(key, shard.sha256):
            self.say(f"shard {self.store.url(key)}: it is right when it is read again; look at this machine's memory")
            return Finding.INTACT, ""
        with new_file(self.large.folder_for(key) or self.work) as file:
            problem = self._from_cache(shard, file)
            if problem:
                if is_there:
                    self.store.delete(key)
                return finding, f"{wrong}; {problem}"
            self.large.replace(key, file.path)
        try:
            pack.verify(self.large, self.dataset, shard)
        except (CorruptObject, KeyNotFound) as e:
            return Finding.DAMAGED, f"{wrong}; a good copy was put in its place and reads back wrong: {e}"
        return Finding.REPAIRED, f"{wrong}; repaired from this node's cache"

    def _from_cache(self, shard: Shard, into: NewFile) -> str:
        """Copy a shard; why that is not possible, empty when `into` is the shard."""
        opened = self.cache.open(shard) if self.cache is not None else None
        if self.cache is None or opened is None:
            return "there is no copy in this node's cache"
        with opened:
            while data := opened.read(_BUFFER_BYTES):
                into.write(data)
        written = into.finish()
        if (written.sha256, written.size_bytes, written.xxh3) == (shard.sha256, shard.size_bytes, shard.xxh3):
            return ""
        self.cache.quarantine(shard.sha256)
        return f"the copy in this node's cache is damaged, too: its sha256 is {written.sha256}"

    def _put_away(self, key: str, sha256: str) -> bool:
        """Keep the bytes of a damaged shard out of the way. False: they are good, now that they are read again."""
        away = names.quarantined_key(self.dataset, sha256, self.scrub_id)
        size_bytes = self.large.size(key) or 0
        if not self.store.is_local:
            with new_file(self.work) as copy:
                for data in self._blocks(key, size_bytes):
                    copy.write(data)
                is_damaged = copy.finish().sha256 != sha256
                if is_damaged:
                    self.large.adopt(away, copy.path)
            return is_damaged
        self.large.folder_for(away)
        self.large.adopt(away, self.store.path(key))  # a second name for this very file
        try:
            is_damaged = self._sha256(away, size_bytes) != sha256
        except StoreRefused as e:
            is_damaged = _is_lost(e)
        if not is_damaged:
            self.store.delete(away)
        return is_damaged

    def _index(self, shard: Shard, packing: Packing, is_whole: bool) -> tuple[Finding, str]:
        key = names.index_key(self.dataset, shard.index)
        data = None
        try:
            data = self.store.read(key)
            manifest.read_index(data, shard.index, self.store.url(key))
        except KeyNotFound:
            finding, wrong = Finding.MISSING, "it is not there"
        except CorruptObject as e:
            finding, wrong = Finding.DAMAGED, e.problem
        else:
            return Finding.INTACT, ""
        self.say(f"index {self.store.url(key)}: {wrong}")
        if data is not None:
            self.store.create(names.quarantined_key(self.dataset, shard.index, self.scrub_id), data)
        made = (
            index_again(self.large, names.shard_key(self.dataset, shard.sha256), shard, packing) if is_whole else None
        )
        if made is None:
            if data is not None:
                self.store.delete(key)
            return finding, f"{wrong}; it cannot be made from a shard of format {packing.format}, or from this one"
        self.store.replace(key, made)
        return Finding.REPAIRED, f"{wrong}; made again from its shard"


class Timed:
    """The check of one shard, from now on."""

    def __init__(self, dataset: str, shard: Shard) -> None:
        self._dataset = dataset
        self._shard = shard
        self._began = time.monotonic()
        self._at = datetime.now(UTC)

    def check(self, finding: Finding, reason: str = "") -> Check:
        return Check(
            dataset=self._dataset,
            shard=self._shard.sha256,
            size_bytes=self._shard.size_bytes,
            finding=finding,
            reason=reason,
            duration_s=time.monotonic() - self._began,
            checked_at=self._at,
        )


def unknown(sha256: str, size_bytes: int) -> Shard:
    """A shard, or another object, of which no more is known than this."""
    blocks = -(-size_bytes // BLOCK_BYTES)
    return Shard(
        sha256=sha256,
        size_bytes=size_bytes,
        xxh3="0" * (BLOCK_DIGITS * blocks),
        index="0" * 64,
        files=1,
        samples=0,
        content_bytes=0,
    )


def _is_lost(e: StoreRefused) -> bool:
    """Whether a disk cannot give the bytes back, rather than that we may not have them."""
    return isinstance(e.__cause__, OSError) and e.__cause__.errno in _DISK_ERRORS
