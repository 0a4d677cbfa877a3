"""Scrubbing: what is stored and what is cached is read again and compared with the manifests; damage is put away, and
repaired where there is a good copy. A copy is good when its sha256 is the shard's name, and nothing else takes its
place.
"""

import errno
import hashlib
import io
import os
import random
import re
import tarfile
import threading
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import xxhash
import zstandard

from pipelines import bulk, keys
from pipelines.bulk import Bulk
from pipelines.datasets import manifest, names, pack
from pipelines.datasets.events import Check, Finding, Scrub
from pipelines.datasets.manifest import BLOCK_BYTES, BLOCK_DIGITS, Entry, Packing, Shard
from pipelines.datasets.meter import Meter
from pipelines.datasets.newfile import NewFile, new_file
from pipelines.errors import CorruptObject, KeyNotFound, StoreRefused
from pipelines.settings import Settings
from pipelines.storage import Store

STORE = "store"
"""The place of a scrub of the store; that of a cache is its node's name."""

_AT_ONCE = 4
_WORK = "scrubbing"  # folder below FLEETMARK_HOME
_BUFFER_BYTES = 2**20
_DISK_ERRORS = {errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EISDIR}  # the bytes are lost; else we may not read them

if TYPE_CHECKING:
    from pipelines.datasets.cache import Cache

_SHA256 = re.compile(r"^[0-9a-f]{64}$")
Say = Callable[[str], None]


class Pace:
    """Lets so many bytes pass in a second, by the monotonic clock, over all threads; None: as many as there are."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = time.monotonic()
        self._lock = threading.Lock()

    def take(self, size_bytes: int) -> None:
        """Wait until these bytes may be read. Time that nobody used is not saved up."""
        if self._bytes_per_s is None:
            return
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + size_bytes / self._bytes_per_s
            free_at = self._free_at
        time.sleep(max(0.0, free_at - time.monotonic()))


class Known(NamedTuple):
    """A shard that manifests name."""

    shard: Shard
    packing: Packing
    named_by: list[str]  # keys of manifests


def scrub_store(
    settings: Settings,
    store: Store,
    dataset: str,
    *,
    sample: float | None = None,
    seed: int | str = 0,
    bytes_per_s: float | None = None,
    scrub_id: str,
    cache: "Cache | None" = None,
    full: bool = False,
    say: Say,
) -> Scrub:
    """Read a dataset's manifests, and its shards with their indexes, or a sample of them, again.

    That a shard is there in its size is looked at for all of them. `full` compares sha256, too. Shards that no version
    names are read as well: the next publication would take them as they are. A damaged manifest is reported and stays.

    Raises:
        StoreUnreachable, StoreRefused: nothing can be said about what could not be read for that reason.
    """
    known, checks = _known(store, dataset)
    stored = {
        each.key.rpartition("/")[2]: each.size_bytes for each in store.objects_under(names.shards_prefix(dataset))
    }
    put_away = {key.rpartition("/")[2] for key in store.keys_under(names.quarantined_prefix(dataset))}
    wanted = sorted(known.keys() | {name for name in stored if _SHA256.match(name)})
    wrong = {sha256 for sha256, each in known.items() if stored.get(sha256) != each.shard.size_bytes}
    chosen = sorted(wrong | set(_sampled(wanted, sample, seed)))
    work = settings.home / _WORK
    work.mkdir(parents=True, exist_ok=True)
    place = _Stored(store, bulk.of(store), dataset, work, scrub_id, Pace(bytes_per_s), cache, full, say)
    place.put_away.update(name.partition(".")[0] for name in put_away if name.endswith(f".{scrub_id}"))
    meter = Meter(say, sum(stored.get(sha256, 0) for sha256 in chosen), len(chosen), "shards")

    def check(sha256: str) -> list[Check]:
        found = place.check(known[sha256]) if sha256 in known else place.check_unnamed(sha256)
        meter.add(stored.get(sha256, 0))
        return found

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        checks += [each for found in pool.map(check, chosen) for each in found]
    say(meter.line())
    return Scrub(scrub_id=scrub_id, place=STORE, checks=tuple(checks))


def record(store: Store, scrub: Scrub) -> None:
    """Keep what a scrub found, once: a repeated one finds what the first one has repaired already."""
    datasets = sorted({check.dataset for check in scrub.checks})
    name = f"{STORE}.{'.'.join(datasets)}" if scrub.place == STORE else scrub.place  # one scrub, several datasets
    store.create(names.scrub_key(scrub.scrub_id, name), scrub.model_dump_json().encode())


@dataclass
class _Stored:
    """A scrub of one dataset in the store."""

    store: Store
    large: Bulk
    dataset: str
    work: Path
    scrub_id: str
    pace: Pace
    cache: "Cache | None"
    is_full: bool
    say: Say
    put_away: set[str] = field(default_factory=set)  # by an earlier attempt at this scrub, which was interrupted

    def check(self, known: Known) -> list[Check]:
        """Of a shard that a version names, and of its index where that is not intact."""
        shard, timed = known.shard, _Timed(self.dataset, known.shard)
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
            timed = _Timed(self.dataset, _unknown(sha256, max(1, size_bytes)))
            self.pace.take(size_bytes)
            if self._sha256(key, size_bytes) == sha256:
                return [timed.check(Finding.INTACT)]
            self._put_away(key, sha256)
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
            if wrong and not self._is_good_after_all(key, shard):
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
        except StoreRefused as e:
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

    def _is_good_after_all(self, key: str, shard: Shard) -> bool:
        """Whether a second reading says so: the network, or memory, may be what is damaged."""
        with suppress(StoreRefused):
            return self._sha256(key, shard.size_bytes + 1) == shard.sha256
        return False

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
        with new_file(self.large.folder_for(key) or self.work) as file:
            problem = self._from_cache(shard, file)
            if is_there and not self._put_away(key, shard.sha256):
                return Finding.INTACT, ""
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
        """Keep the bytes of a damaged shard out of the way. False: they are good as they arrive here."""
        away = names.quarantined_key(self.dataset, sha256, self.scrub_id)
        if self.store.is_local:
            self.large.folder_for(away)
            self.large.adopt(away, self.store.path(key))  # a second name for the same file
            return True
        with new_file(self.work) as copy:
            for data in self._blocks(key, self.large.size(key) or 0):
                copy.write(data)
            if copy.finish().sha256 == sha256:
                return False
            self.large.adopt(away, copy.path)
        return True

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
        made = self._rebuilt(shard, packing) if is_whole else None
        if made is None:
            if data is not None:
                self.store.delete(key)
            return finding, f"{wrong}; it cannot be made from a shard of format {packing.format}, or from this one"
        self.store.replace(key, made)
        return Finding.REPAIRED, f"{wrong}; made again from its shard"

    def _rebuilt(self, shard: Shard, packing: Packing) -> bytes | None:
        """The index of a tar shard, if what lies in it gives the very one that the manifest names."""
        if packing.format != "tar":
            return None
        raw: IO[bytes] = io.BufferedReader(_Reader(self.large, names.shard_key(self.dataset, shard.sha256), shard))
        if packing.zstd_level is not None:
            raw = zstandard.ZstdDecompressor().stream_reader(raw)
        try:
            sha256, made = manifest.write_index(_entries(raw))
        except (tarfile.TarError, zstandard.ZstdError):
            return None
        return made if sha256 == shard.index else None


class _Timed:
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


class _Reader(io.RawIOBase):
    """A stored shard from its beginning to its end, in requests of a block."""

    def __init__(self, large: Bulk, key: str, shard: Shard) -> None:
        self._blocks = (large.range(key, start, length) for start, length, _ in shard.blocks)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, space: memoryview) -> int:  # type: ignore[override]
        if not self._left:
            self._left = next(self._blocks, None) or memoryview(b"")
        count = min(len(space), len(self._left))
        space[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def _entries(raw: IO[bytes]) -> list[Entry]:
    """What lies where in a tar archive."""
    found = []
    with tarfile.open(fileobj=raw, mode="r|") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None:
                raise tarfile.TarError(f"{member.name} is no file")
            digest = xxhash.xxh3_64()
            while data := content.read(_BUFFER_BYTES):
                digest.update(data)
            entry = Entry(path=member.name, offset=member.offset_data, length=member.size, xxh3=digest.hexdigest())
            found.append(entry)
    return found


def _known(store: Store, dataset: str) -> tuple[dict[str, Known], list[Check]]:
    """Every shard that a manifest names, of versions removed lately, too; and a check for each damaged manifest."""
    known: dict[str, Known] = {}
    damaged = []
    for key in [*store.keys_under(names.versions_prefix(dataset)), *store.keys_under(names.removed_prefix(dataset))]:
        try:
            data = store.read(key)
        except KeyNotFound:
            continue
        timed = _Timed(dataset, _unknown(keys.sha256(data), max(1, len(data))))
        try:
            found = manifest.read_manifest(data, store.url(key))
            if (found.dataset, found.version) != (dataset, key.rpartition("/")[2].removesuffix(".json")):
                raise CorruptObject(store.url(key), f"it is the manifest of {found.reference}")
        except CorruptObject as e:
            damaged.append(timed.check(Finding.DAMAGED, f"manifest {key}: {e.problem}"))
            continue
        for shard in found.body.shards:
            known.setdefault(shard.sha256, Known(shard, found.body.packing, [])).named_by.append(key)
    return known, damaged


def _unknown(sha256: str, size_bytes: int) -> Shard:
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


def _sampled(names_of: Collection[str], sample: float | None, seed: int | str) -> list[str]:
    """So large a part of them, one at least, the same for the same seed."""
    everything = sorted(names_of)
    if sample is None or not everything:
        return everything
    count = min(len(everything), max(1, round(sample * len(everything))))
    return random.Random(seed).sample(everything, count)  # noqa: S311 - no secret


def _is_lost(e: StoreRefused) -> bool:
    """Whether a disk cannot give the bytes back, rather than that we may not have them."""
    return isinstance(e.__cause__, OSError) and e.__cause__.errno in _DISK_ERRORS
