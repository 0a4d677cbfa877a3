"""What of a dataset nobody needs: decided from listings and manifests, touching nothing.

What names a shard keeps it: a version, a version removed less than the grace ago, a publication that is not abandoned,
a note of what was packed lately. Ages are by the store's own clock. What cannot be read names nobody knows what, so it
stops the collection.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from pydantic import AwareDatetime, NonNegativeFloat, NonNegativeInt, ValidationError

from pipelines.datasets import catalog, claims, names, publications
from pipelines.datasets.manifest import Manifest, Shard, read_version
from pipelines.datasets.publications import Packed, PackedChunk
from pipelines.errors import CorruptObject, KeyNotFound
from pipelines.records import Name, Record
from pipelines.storage import Store, Stored

_AT_ONCE = 16
_MANIFESTS_AT_ONCE = 4  # one of 10,000 shards takes 25 MB
_SHA256 = re.compile(r"^[0-9a-f]{64}$")

T = TypeVar("T")
R = TypeVar("R", bound=Record)


class Kind(StrEnum):
    """What is collected, in the order in which it is deleted: what names a shard goes before the shard, and a shard
    before its index, so that whoever finds a shard finds its index.
    """

    PUBLICATION = "leftovers of publications"
    NOTE = "notes of what was packed"
    REMOVED = "removed versions"
    SHARD = "shards"
    INDEX = "indexes"
    QUARANTINED = "damaged shards put away"
    PROBE = "leftovers of probes"
    COLLECTOR = "flags of collectors"
    TEMPORARY = "temporary files"
    UPLOAD = "uploads that were never completed"


class Doomed(NamedTuple):
    """An object that is to go."""

    kind: Kind
    key: str  # of a temporary file its path; of an upload `key?upload_id`
    size_bytes: int
    modified_at: datetime


class Kept(NamedTuple):
    """How much stays, and why."""

    reason: str
    objects: int
    size_bytes: int


class Collection(Record):
    """What a collection would delete, what it keeps, and what it has deleted: the first `gone_objects` of `doomed`."""

    schema_version: Literal[1] = 1
    dataset: Name
    at: AwareDatetime  # by the store's clock
    grace_s: NonNegativeFloat
    dry_run: bool = True
    versions: tuple[str, ...]
    doomed: tuple[Doomed, ...]
    doomed_bytes: NonNegativeInt
    kept: tuple[Kept, ...]
    gone_objects: NonNegativeInt = 0
    gone_bytes: NonNegativeInt = 0
    stopped: str = ""  # why something is left; empty when nothing is

    @property
    def left(self) -> tuple[Doomed, ...]:
        return self.doomed[self.gone_objects :]


def plan(store: Store, dataset: str, now: datetime, grace: timedelta) -> Collection:
    """Decide what goes, from what is in the store at this moment; touches nothing. `now` is by the store's clock.

    Raises:
        CorruptObject: a manifest, a note or a part of a publication cannot be read; nothing can be said then.
    """
    deciding = _Deciding(store, dataset, now, grace)
    versions, removed = _manifests(deciding)
    _publications(deciding)
    _notes(deciding)
    deciding.doom(Kind.REMOVED, removed)
    _contents(deciding)
    _beside(deciding)
    doomed = tuple(sorted(deciding.doomed, key=lambda each: _ORDER[each.kind]))
    return Collection(
        dataset=dataset,
        at=now,
        grace_s=grace.total_seconds(),
        versions=versions,
        doomed=doomed,
        doomed_bytes=sum(each.size_bytes for each in doomed),
        kept=tuple(Kept(why, count, deciding.kept_bytes[why]) for why, count in deciding.kept.items()),
    )


_ORDER = {kind: number for number, kind in enumerate(Kind)}


@dataclass
class _Deciding:
    """A plan in the making."""

    store: Store
    dataset: str
    now: datetime
    grace: timedelta
    doomed: list[Doomed] = field(default_factory=list)
    kept: Counter[str] = field(default_factory=Counter)
    kept_bytes: Counter[str] = field(default_factory=Counter)
    named: dict[str, str] = field(default_factory=dict)  # sha256 of a shard or an index: who names it
    groups: set[str] = field(default_factory=set)  # that some manifest was packed from

    def is_old(self, stored: Stored) -> bool:
        return self.now - stored.modified_at >= self.grace

    def name(self, shards: Iterable[Shard], why: str) -> None:
        for shard in shards:
            self.named.setdefault(shard.sha256, why)
            self.named.setdefault(shard.index, why)

    def doom(self, kind: Kind, objects: Iterable[Stored]) -> None:
        self.doomed.extend(Doomed(kind, *each) for each in objects)

    def keep(self, why: str, stored: Stored) -> None:
        self.kept[why] += 1
        self.kept_bytes[why] += stored.size_bytes


def _manifests(deciding: _Deciding) -> tuple[tuple[str, ...], list[Stored]]:
    """Note what versions name, and versions removed of late. Gives the versions, and what is left of the others.

    A version on its way out is in `removed/` before it leaves `versions/`: in this order it is seen in one of them.
    """
    store, dataset = deciding.store, deciding.dataset
    tagged = _tagged(store, dataset)
    versions = store.keys_under(names.versions_prefix(dataset))
    if missing := [key for key in tagged if key not in set(versions)]:
        raise CorruptObject(store.url(missing[0]), "a tag stands on it and it is not there, so no listing is believed")
    removed = store.objects_under(names.removed_prefix(dataset))
    recent = [each.key for each in removed if not deciding.is_old(each)]
    for keys, why in ((versions, "named by a version"), (recent, "named by a version removed within the grace")):
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for portion in portions(keys, _MANIFESTS_AT_ONCE):
                for found in pool.map(lambda key: _manifest(store, dataset, key), portion):
                    deciding.name(found.body.shards, why)
                    deciding.groups.update(found.provenance.packed)
    return tuple(versions), [each for each in removed if deciding.is_old(each)]


def _tagged(store: Store, dataset: str) -> list[str]:
    """The keys of the versions that tags stand on, which nobody can have removed."""
    try:
        versions = [tag.version for tag in catalog.tags(store, dataset)]
    except ValidationError as e:
        raise CorruptObject(store.url(names.tags_prefix(dataset)), str(e)) from e
    return [names.version_key(dataset, version) for version in versions if version is not None]


def _manifest(store: Store, dataset: str, key: str) -> Manifest:
    """The manifest at a key of `versions/` or `removed/`, or where it has been moved since that was listed."""
    version = key.rpartition("/")[2].removesuffix(".json")
    try:
        data = store.read(key)
    except KeyNotFound:
        is_removed = key == names.removed_key(dataset, version)
        data = store.read((names.version_key if is_removed else names.removed_key)(dataset, version))
    return read_version(data, store.url(key), dataset, version)


def _publications(deciding: _Deciding) -> None:
    """Doom the leftovers of those that are abandoned or finished; note what the others have packed."""
    store, prefix = deciding.store, names.publishing_prefix(deciding.dataset)
    flags = {flag.key.rpartition("/")[2]: flag for flag in claims.publications(store, deciding.dataset)}
    parts: dict[str, list[Stored]] = {publication: [] for publication in flags}
    for each in store.objects_under(prefix):
        parts.setdefault(each.key.removeprefix(f"{prefix}/").partition("/")[0], []).append(each)
    packed: list[str] = []
    for publication, objects in parts.items():
        flag = flags.get(publication)
        is_under_way = flag is not None and deciding.now - flag.modified_at < claims.ABANDONED
        whole = [*([flag] if flag else []), *objects]
        if not is_under_way and all(map(deciding.is_old, whole)):
            deciding.doom(Kind.PUBLICATION, whole)
            continue
        for each in whole:
            deciding.keep("of a publication within the grace", each)
        packed += [each.key for each in objects if each.key.split("/")[-2] == "packed"]
    for chunk in _records(store, packed, PackedChunk):
        for group in chunk.groups:
            deciding.name(group.shards, "named by a publication within the grace")


def _notes(deciding: _Deciding) -> None:
    """Doom old notes that no manifest was made from; note what young ones name."""
    young = []
    for each in deciding.store.objects_under(names.packed_prefix(deciding.dataset)):
        if each.key.rpartition("/")[2].removesuffix(".json.zst") in deciding.groups:
            deciding.keep("notes of what a version was packed from", each)
        elif deciding.is_old(each):
            deciding.doom(Kind.NOTE, [each])
        else:
            deciding.keep("notes within the grace", each)
            young.append(each.key)
    for packed in _records(deciding.store, young, Packed):
        deciding.name(packed.shards, "named by a note within the grace")


def _contents(deciding: _Deciding) -> None:
    """Doom shards and indexes that nothing names. What has another name than a hash is not ours, and stays."""
    dataset = deciding.dataset
    folders = ((Kind.SHARD, names.shards_prefix(dataset), ""), (Kind.INDEX, names.indexes_prefix(dataset), ".json.zst"))
    for kind, prefix, suffix in folders:
        for each in deciding.store.objects_under(prefix):
            sha256 = each.key.rpartition("/")[2].removesuffix(suffix)
            why = deciding.named.get(sha256) if _SHA256.match(sha256) else "not a shard or an index"
            if why is None and deciding.is_old(each):
                deciding.doom(kind, [each])
            else:
                deciding.keep(f"{kind} {why or 'within the grace'}", each)


def _beside(deciding: _Deciding) -> None:
    """Doom old objects that only a scrub, a probe, a collector or a writer that was killed has left."""
    store, dataset = deciding.store, deciding.dataset
    for kind, prefix in ((Kind.QUARANTINED, names.quarantined_prefix(dataset)), (Kind.PROBE, "probe")):
        deciding.doom(kind, filter(deciding.is_old, store.objects_under(prefix)))
    for flag in store.objects_under(names.collecting_prefix(dataset)):
        if deciding.now - flag.modified_at >= claims.ABANDONED:
            deciding.doom(Kind.COLLECTOR, [flag])
    if store.is_local:
        deciding.doom(Kind.TEMPORARY, filter(deciding.is_old, _temporary(store, dataset)))
    uploads = store.uploads_under(names.prefix(dataset))
    parts = (Stored(f"{each.key}?{each.upload_id}", each.size_bytes, each.begun_at) for each in uploads)
    deciding.doom(Kind.UPLOAD, filter(deciding.is_old, parts))


def _temporary(store: Store, dataset: str) -> Iterator[Stored]:
    """Files that a writer was killed over, as no listing shows them."""
    root = Path(store.path(names.prefix(dataset)))
    for path in [*root.rglob(".tmp-*"), *Path(store.path("probe")).glob(".tmp-*")]:
        with suppress(FileNotFoundError):
            stat = path.stat()
            yield Stored(str(path), stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))


def _records(store: Store, keys: Sequence[str], record: type[R]) -> Iterator[R]:
    """The records at these keys, but for those that are gone since they were listed. Raises: CorruptObject."""

    def read(key: str) -> R | None:
        try:
            return publications.read(store, key, record)
        except KeyNotFound:
            return None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for portion in portions(keys, _AT_ONCE):
            yield from filter(None, pool.map(read, portion))


def portions(all_of: Sequence[T], count: int) -> Iterator[Sequence[T]]:
    """All of them, so many at a time."""
    for start in range(0, len(all_of), count):
        yield all_of[start : start + count]
