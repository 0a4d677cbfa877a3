"""Scrubbing: what is stored and what is cached is read again, and compared with the manifests.

Damage is put away and repaired where there is a good copy: a stored shard from this node's cache, a cached shard from
the store, the index of a tar shard from the shard.
"""

import hashlib
import os
import random
import re
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from pipelines import bulk, keys
from pipelines.datasets import catalog, manifest, names, stage
from pipelines.datasets.cache import Cache
from pipelines.datasets.events import Check, Finding, Scrub
from pipelines.datasets.manifest import Shard
from pipelines.datasets.mend import Known, Mender, Timed, unknown
from pipelines.datasets.meter import Meter
from pipelines.datasets.pace import Pace
from pipelines.datasets.stage_plan import Cached
from pipelines.errors import CorruptObject, KeyNotFound
from pipelines.settings import Settings
from pipelines.storage import Store

STORE = "store"
"""The place of a scrub of the store; that of a cache is its node's name."""

_AT_ONCE = 4
_BUFFER_BYTES = 2**20
_WORK = "scrubbing"  # folder below FLEETMARK_HOME
_SHA256 = re.compile(r"^[0-9a-f]{64}$")

Say = Callable[[str], None]


def scrub_store(
    settings: Settings,
    store: Store,
    dataset: str,
    *,
    sample: float | None = None,
    seed: int | str = 0,
    bytes_per_s: float | None = None,
    scrub_id: str,
    cache: Cache | None = None,
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
    place = Mender(store, bulk.of(store), dataset, work, scrub_id, Pace(bytes_per_s), cache, full, say)
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


def scrub_cache(
    settings: Settings,
    store: Store,
    cache: Cache,
    *,
    node: str,
    sample: float | None = None,
    seed: int | str = 0,
    bytes_per_s: float | None = None,
    scrub_id: str,
    full: bool = False,
    say: Say,
) -> Scrub:
    """Read the shards in this node's cache, the one of `settings`, or a sample of them, again.

    A damaged one is put away and fetched again. Reading here is no use: what is evicted next stays the same.

    Raises:
        WrongNode: this machine is another node.
        CacheUnusable: the cache's directory cannot be read or written.
        StoreUnreachable, StoreRefused: the manifests cannot be read.
    """
    settings.require_node(node)
    present = {each.sha256: each for each in cache.present()}
    chosen = [present[sha256] for sha256 in sorted(_sampled(present, sample, seed))]
    datasets = {each.dataset for each in chosen}
    place = _Cache(settings, store, cache, Pace(bytes_per_s), scrub_id, full, say)
    for dataset in sorted(catalog.datasets(store) if "" in datasets else datasets):  # "": the cache has lost its note
        for sha256, known in _known(store, dataset)[0].items():
            place.known.setdefault(sha256, (dataset, known))
    meter = Meter(say, sum(each.size_bytes for each in chosen), len(chosen), "shards")

    def check(cached: Cached) -> Check | None:
        found = place.check(cached)
        meter.add(cached.size_bytes)
        return found

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        checks = tuple(each for each in pool.map(check, chosen) if each is not None)
    say(meter.line())
    return Scrub(scrub_id=scrub_id, place=node, checks=checks)


def record(store: Store, scrub: Scrub) -> None:
    """Keep what a scrub found, once: a repeated one finds what the first one has repaired already."""
    datasets = sorted({check.dataset for check in scrub.checks})
    name = f"{STORE}.{'.'.join(datasets)}" if scrub.place == STORE else scrub.place  # one scrub, several datasets
    store.create(names.scrub_key(scrub.scrub_id, name), scrub.model_dump_json().encode())


@dataclass
class _Cache:
    """A scrub of this node's cache."""

    settings: Settings
    store: Store
    cache: Cache
    pace: Pace
    scrub_id: str
    is_full: bool
    say: Say
    known: dict[str, tuple[str, Known]] = field(default_factory=dict)  # a shard's dataset, and what manifests say

    def check(self, cached: Cached) -> Check | None:
        """Of one cached shard; None where it was evicted meanwhile."""
        dataset, known = self.known.get(cached.sha256, (cached.dataset or "unknown", None))
        shard = known.shard if known else unknown(cached.sha256, max(1, cached.size_bytes))
        timed = Timed(dataset, shard)
        self.pace.take(cached.size_bytes)
        is_right = self.cache.verify(shard) if known else True
        if is_right and (self.is_full or known is None):
            is_right = self._has_its_name(shard)
        self._leave_unused(cached)
        if is_right is None:
            return None
        if is_right:
            return timed.check(Finding.INTACT)
        self.say(f"shard {shard.sha256} is damaged in the cache {self.cache.root}")
        self.cache.quarantine(shard.sha256)
        problem = self._fetch(known) if known else "no version names it"
        if problem:
            return timed.check(Finding.DAMAGED, f"it was put away; {problem}")
        return timed.check(Finding.REPAIRED, "it was put away, and fetched again from the store")

    def _has_its_name(self, shard: Shard) -> bool | None:
        """Whether the sha256 of a shard of which no manifest says more is its name; None when it is not there."""
        opened = self.cache.open(shard)
        if opened is None:
            return None
        with opened:
            sha256 = hashlib.sha256()
            while data := opened.read(_BUFFER_BYTES):
                sha256.update(data)
            return sha256.hexdigest() == shard.sha256

    def _leave_unused(self, cached: Cached) -> None:
        then = cached.used_at.timestamp()
        with suppress(OSError):
            os.utime(self.cache.root / "notes" / cached.sha256, (then, then))

    def _fetch(self, known: Known) -> str:
        """Why a shard could not be fetched again; empty when it is there and right."""
        for key in known.named_by:
            try:
                found = manifest.read_manifest(self.store.read(key), self.store.url(key))
            except (KeyNotFound, CorruptObject):
                continue
            done = stage.stage(
                self.settings, self.store, found, [known.shard], staging_id=self.scrub_id, say=self.say
            ).transfers[0]
            return done.reason or ("" if self.cache.verify(known.shard) else "what was fetched is damaged, too")
        return "no version names it any more"


def _known(store: Store, dataset: str) -> tuple[dict[str, Known], list[Check]]:
    """Every shard that a manifest names, of versions removed lately, too; and a check for each damaged manifest."""
    known: dict[str, Known] = {}
    damaged = []
    for key in [*store.keys_under(names.versions_prefix(dataset)), *store.keys_under(names.removed_prefix(dataset))]:
        try:
            data = store.read(key)
        except KeyNotFound:
            continue
        timed = Timed(dataset, unknown(keys.sha256(data), max(1, len(data))))
        try:
            version = key.rpartition("/")[2].removesuffix(".json")
            found = manifest.read_version(data, store.url(key), dataset, version)
        except CorruptObject as e:
            damaged.append(timed.check(Finding.DAMAGED, f"manifest {key}: {e.problem}"))
            continue
        for shard in found.body.shards:
            known.setdefault(shard.sha256, Known(shard, found.body.packing, [])).named_by.append(key)
    return known, damaged


def _sampled(names_of: Collection[str], sample: float | None, seed: int | str) -> list[str]:
    """So large a part of them, one at least, the same for the same seed."""
    everything = sorted(names_of)
    if sample is None or not everything:
        return everything
    count = min(len(everything), max(1, round(sample * len(everything))))
    return random.Random(seed).sample(everything, count)  # noqa: S311 - no secret
