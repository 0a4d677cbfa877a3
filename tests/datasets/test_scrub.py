"""Scrubbing: every damage is found, put away, and mended from the other side; nothing wrong ever takes a place."""

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines import bulk, keys, storage
from pipelines.datasets import catalog, names, publish, scrub, stage, verify
from pipelines.datasets.cache import Cache
from pipelines.datasets.events import Finding, Scrub
from pipelines.datasets.manifest import Manifest, Packing
from pipelines.datasets.meter import Meter
from pipelines.datasets.pace import Pace
from pipelines.datasets.publications import Request
from pipelines.errors import KeyNotFound
from pipelines.settings import Settings
from pipelines.storage import Store
from tests import processes
from tests.datasets.test_gc import NOW, D

ID = "20261121T020000Z-1a2b3c"


def published(settings: Settings, folder: Path, form: str = "tar", zstd: int | None = None, files: int = 6) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        if not (path := folder / f"{number}.bin").exists():
            path.write_bytes(random.Random(number).randbytes(40_000))
    packing = Packing.model_validate({"format": form, "shard_bytes": 2**16, "zstd_level": zstd})
    request = Request(source=str(folder), dataset=D, packing=packing, parent=None)
    return publish.publish(settings, storage.open_store(settings), request, NOW, lambda _: None)


def scrubbed(settings: Settings, **how: object) -> Scrub:
    store = storage.open_store(settings)
    asked = {"scrub_id": ID, "say": lambda _: None, **how}
    return scrub.scrub_store(settings, store, D, **asked)  # type: ignore[arg-type]


def wrong(found: Scrub) -> dict[str, Finding]:
    """What is not intact, by its shard."""
    return {each.shard: each.finding for each in found.checks if each.finding is not Finding.INTACT}


def put(store: Store, key: str, data: bytes) -> None:
    """Damage an object as a disk or an administrator does: under its name."""
    store.replace(key, data)


def flipped(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]


def is_whole(store: Store, made: Manifest) -> bool:
    return verify.damaged(store, bulk.of(store), made, Meter(lambda _: None, 0, 0, "")) == []


# --- what is found ------------------------------------------------------------------------------------------


def test_a_store_without_damage_is_intact_and_stays_as_it_is(any_settings: Settings, tmp_path: Path) -> None:
    made = published(any_settings, tmp_path / "source")
    store = storage.open_store(any_settings)
    before = store.objects_under("datasets")
    found = scrubbed(any_settings)
    assert sorted(each.shard for each in found.checks) == sorted(shard.sha256 for shard in made.body.shards)
    assert {(each.finding, each.reason) for each in found.checks} == {(Finding.INTACT, "")}
    assert store.objects_under("datasets") == before


def test_a_bit_that_flipped_anywhere_in_a_shard_is_found_put_away_and_can_be_published_again(
    any_settings: Settings, tmp_path: Path
) -> None:
    made = published(any_settings, tmp_path / "source", files=3)
    store = storage.open_store(any_settings)
    chance = random.Random(7)
    for number, shard in enumerate(made.body.shards):
        key = names.shard_key(D, shard.sha256)
        damaged = flipped(store.read(key), chance)
        put(store, key, damaged)
        assert wrong(scrubbed(any_settings, scrub_id=f"{ID}-{number}")) == {shard.sha256: Finding.DAMAGED}
        assert store.read(names.quarantined_key(D, shard.sha256, f"{ID}-{number}")) == damaged
        assert not store.exists(key)
        assert wrong(scrubbed(any_settings, scrub_id=f"{ID}-again")) == {shard.sha256: Finding.MISSING}
        assert published(any_settings, tmp_path / "source", files=3).version == made.version
        assert is_whole(store, made)
    assert wrong(scrubbed(any_settings)) == {}


@pytest.mark.parametrize("seed", range(20))
def test_every_bit_that_flips_in_the_store_is_found(
    settings: Settings, store: Store, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    made = published(settings, tmp_path / "source", form=chance.choice(["tar", "blob"]), zstd=chance.choice([None, 3]))
    damaged = chance.sample(made.body.shards, 2)
    for shard in damaged:
        put(store, names.shard_key(D, shard.sha256), flipped(store.read(names.shard_key(D, shard.sha256)), chance))
    found = scrubbed(settings, full=chance.random() < 0.5)
    assert wrong(found) == {shard.sha256: Finding.DAMAGED for shard in damaged}


@pytest.mark.parametrize("length", [0, 1, -1, None])
def test_a_shard_of_another_size_is_found_even_when_it_is_not_in_the_sample(
    settings: Settings, store: Store, tmp_path: Path, length: int | None
) -> None:
    made = published(settings, tmp_path / "source")
    victim = made.body.shards[-1]
    data = store.read(names.shard_key(D, victim.sha256))
    put(store, names.shard_key(D, victim.sha256), data + b"x" if length is None else data[:length])
    found = next(found for seed in range(20) if len((found := scrubbed(settings, sample=0.01, seed=seed)).checks) > 1)
    assert wrong(found) == {victim.sha256: Finding.DAMAGED}


def test_a_missing_shard_is_found_even_when_it_is_not_in_the_sample(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    made = published(settings, tmp_path / "source")
    for shard in made.body.shards[:2]:
        store.delete(names.shard_key(D, shard.sha256))
    found = scrubbed(settings, sample=0.01, seed=3)
    assert wrong(found) == {shard.sha256: Finding.MISSING for shard in made.body.shards[:2]}


def test_a_sample_is_as_large_as_asked_and_the_same_for_the_same_seed(settings: Settings, tmp_path: Path) -> None:
    made = published(settings, tmp_path / "source", files=30)
    chosen = [{each.shard for each in scrubbed(settings, sample=0.3, seed=seed).checks} for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert {len(each) for each in chosen} == {round(0.3 * len(made.body.shards))}


def test_a_damaged_shard_that_no_version_names_is_put_away_before_a_publication_takes_it(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    made = published(settings, tmp_path / "source")
    standing = catalog.tag_of(store, D, "latest")
    catalog.move_tag(store, standing, None, NOW, by="test")
    store.delete(names.version_key(D, made.version))
    victim = made.body.shards[0]
    put(
        store,
        names.shard_key(D, victim.sha256),
        flipped(store.read(names.shard_key(D, victim.sha256)), random.Random(1)),
    )
    assert wrong(scrubbed(settings)) == {victim.sha256: Finding.DAMAGED}
    assert is_whole(store, published(settings, tmp_path / "source"))


def test_a_damaged_manifest_is_reported_and_stays(settings: Settings, store: Store, tmp_path: Path) -> None:
    made = published(settings, tmp_path / "source")
    key = names.version_key(D, made.version)
    damaged = store.read(key).replace(b'"files":', b'"filez":', 1)
    put(store, key, damaged)
    found = scrubbed(settings)
    assert [each.reason.partition(": ")[0] for each in found.checks if each.finding is Finding.DAMAGED] == [
        f"manifest {key}"
    ]
    assert store.read(key) == damaged


def test_a_disk_that_cannot_give_a_shard_back_is_a_finding_and_the_others_are_checked(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    made = published(settings, tmp_path / "source")
    victim = made.body.shards[0]
    path = Path(store.path(names.shard_key(D, victim.sha256)))
    path.unlink()
    path.mkdir()  # what is to be read is a folder: as near to a broken disk as a test comes
    found = scrubbed(settings)
    assert wrong(found) == {victim.sha256: Finding.DAMAGED}
    assert ["not repaired" in each.reason for each in found.checks if each.finding is Finding.DAMAGED] == [True]
    assert len(found.checks) == len(made.body.shards)


# --- indexes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zstd", [None, 3])
@pytest.mark.parametrize("damage", ["flipped", "missing", "empty"])
def test_the_index_of_a_tar_shard_is_made_again_from_the_shard(
    settings: Settings, store: Store, tmp_path: Path, zstd: int | None, damage: str
) -> None:
    long_name = tmp_path / "source" / ("long" * 30) / ("name" * 30 + "é.bin")
    long_name.parent.mkdir(parents=True)
    long_name.write_bytes(b"x" * 10)
    (tmp_path / "source" / "empty.bin").touch()
    made = published(settings, tmp_path / "source", zstd=zstd)
    before = {shard.index: store.read(names.index_key(D, shard.index)) for shard in made.body.shards}
    for index, data in before.items():
        key = names.index_key(D, index)
        if damage == "missing":
            store.delete(key)
        else:
            put(store, key, b"" if damage == "empty" else flipped(data, random.Random(3)))
    found = scrubbed(settings)
    assert wrong(found) == {shard.sha256: Finding.REPAIRED for shard in made.body.shards}
    assert {index: store.read(names.index_key(D, index)) for index in before} == before
    assert wrong(scrubbed(settings, scrub_id=f"{ID}-2")) == {}


def test_an_index_that_is_not_the_one_the_manifest_names_is_never_put_there(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    made = published(settings, tmp_path / "source")
    others = tuple(shard.model_copy(update={"index": keys.sha256(b"another")}) for shard in made.body.shards)
    body = made.body.model_copy(update={"shards": others})
    strange = Manifest(version=body.version, body=body, provenance=made.provenance)
    store.create(names.version_key(D, strange.version), strange.model_dump_json().encode())
    store.delete(names.version_key(D, made.version))
    assert wrong(scrubbed(settings)) == {shard.sha256: Finding.MISSING for shard in others}
    assert not store.exists(names.index_key(D, keys.sha256(b"another")))


def test_an_index_that_cannot_be_made_again_is_reported_and_a_publication_puts_it_back(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    made = published(settings, tmp_path / "source", form="blob")
    victim = made.body.shards[0]
    key = names.index_key(D, victim.index)
    damaged = flipped(store.read(key), random.Random(3))
    put(store, key, damaged)
    assert wrong(scrubbed(settings)) == {victim.sha256: Finding.DAMAGED}
    assert store.read(names.quarantined_key(D, victim.index, ID)) == damaged
    published(settings, tmp_path / "source", form="blob")
    assert is_whole(store, made)


# --- between store and cache --------------------------------------------------------------------------------


def staged(settings: Settings, made: Manifest) -> Cache:
    """This node's cache, with every shard of a version."""
    store = storage.open_store(settings)
    done = stage.stage(settings, store, made, made.body.shards, staging_id=ID, say=lambda _: None)
    assert {each.reason for each in done.transfers} == {""}
    return Cache.of(settings)


def cache_scrubbed(settings: Settings, **how: object) -> Scrub:
    store = storage.open_store(settings)
    asked = {"node": "node-1", "scrub_id": ID, "say": lambda _: None, **how}
    return scrub.scrub_cache(settings, store, Cache.of(settings), **asked)  # type: ignore[arg-type]


def damage(cache: Cache, sha256: str, data: bytes) -> None:
    """Change a cached shard as a disk does: in place, with no permission asked."""
    path = cache.path(sha256)
    path.chmod(0o644)
    path.write_bytes(data)


def test_damage_in_the_store_is_mended_from_the_cache_in_one_step(any_settings: Settings, tmp_path: Path) -> None:
    made = published(any_settings, tmp_path / "source")
    store, cache = storage.open_store(any_settings), staged(any_settings, made)
    chance = random.Random(11)
    flip, cut, missing = made.body.shards[:3]
    bad = {flip.sha256: flipped(store.read(names.shard_key(D, flip.sha256)), chance), cut.sha256: b""}
    for sha256, data in bad.items():
        put(store, names.shard_key(D, sha256), data)
    store.delete(names.shard_key(D, missing.sha256))
    with watching(store, [names.shard_key(D, sha256) for sha256 in bad]) as seen:
        found = scrubbed(any_settings, cache=cache)
    assert wrong(found) == {each.sha256: Finding.REPAIRED for each in (flip, cut, missing)}
    assert is_whole(store, made)
    for sha256, data in bad.items():
        assert store.read(names.quarantined_key(D, sha256, ID)) == data
        good = Path(cache.path(sha256)).read_bytes()
        assert seen[names.shard_key(D, sha256)] <= {data, good}
    assert wrong(scrubbed(any_settings, scrub_id=f"{ID}-2", cache=cache)) == {}


@contextmanager
def watching(store: Store, watched: list[str]) -> Iterator[dict[str, set[bytes | None]]]:
    """What a reader of these objects sees, all the time; None where one is not there."""
    seen: dict[str, set[bytes | None]] = {key: set() for key in watched}
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for key in watched:
                try:
                    seen[key].add(store.read(key))
                except KeyNotFound:
                    seen[key].add(None)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        yield seen
    finally:
        over.set()
        reader.join()


def test_a_reader_of_a_stored_object_that_is_replaced_sees_the_old_or_the_new(store: Store, tmp_path: Path) -> None:
    large = bulk.of(store)
    bodies = {b"old" * 1000, b"new" * 1000}
    for number, body in enumerate(bodies):
        (tmp_path / str(number)).write_bytes(body)
    large.replace("a/b", str(tmp_path / "0"))
    with watching(store, ["a/b"]) as seen:
        for turn in range(400):
            (tmp_path / "link").unlink(missing_ok=True)
            (tmp_path / "link").write_bytes((tmp_path / str(turn % 2)).read_bytes())
            large.replace("a/b", str(tmp_path / "link"))
    assert seen["a/b"] == bodies
    assert [path.name for path in Path(store.path("a/b")).parent.iterdir()] == ["b"]


def test_damage_in_the_cache_is_put_away_and_fetched_again(any_settings: Settings, tmp_path: Path) -> None:
    made = published(any_settings, tmp_path / "source")
    cache = staged(any_settings, made)
    chance = random.Random(12)
    good = {shard.sha256: cache.path(shard.sha256).read_bytes() for shard in made.body.shards}
    for shard in made.body.shards[:2]:
        damage(cache, shard.sha256, flipped(good[shard.sha256], chance))
    damage(cache, made.body.shards[2].sha256, b"short")
    assert wrong(cache_scrubbed(any_settings)) == {shard.sha256: Finding.REPAIRED for shard in made.body.shards[:3]}
    assert {sha256: cache.path(sha256).read_bytes() for sha256 in good} == good
    assert wrong(cache_scrubbed(any_settings)) == {}


@pytest.mark.parametrize("seed", range(12))
def test_flips_anywhere_on_either_side_are_all_found_and_mended_from_the_other(
    settings: Settings, store: Store, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    made = published(settings, tmp_path / "source", form=chance.choice(["tar", "blob"]), files=12)
    cache = staged(settings, made)
    shards = list(made.body.shards)
    chance.shuffle(shards)
    in_store, in_cache = shards[:3], shards[3:5]
    for shard in in_store:
        put(store, names.shard_key(D, shard.sha256), flipped(cache.path(shard.sha256).read_bytes(), chance))
    for shard in in_cache:
        damage(cache, shard.sha256, flipped(cache.path(shard.sha256).read_bytes(), chance))
    assert wrong(scrubbed(settings, cache=cache)) == {shard.sha256: Finding.REPAIRED for shard in in_store}
    assert is_whole(store, made)
    full = chance.random() < 0.5
    assert wrong(cache_scrubbed(settings, full=full)) == {shard.sha256: Finding.REPAIRED for shard in in_cache}
    assert all(cache.verify(shard) for shard in made.body.shards)


@pytest.mark.parametrize("other", ["flipped", "short", "another shard", "empty"])
def test_a_copy_that_is_damaged_too_never_takes_the_place(
    settings: Settings, store: Store, tmp_path: Path, other: str
) -> None:
    made = published(settings, tmp_path / "source")
    cache = staged(settings, made)
    victim, bystander = made.body.shards[0], made.body.shards[1]
    good = cache.path(victim.sha256).read_bytes()
    copies = {
        "flipped": flipped(good, random.Random(2)),
        "short": good[:-1],
        "another shard": cache.path(bystander.sha256).read_bytes(),
        "empty": b"",
    }
    damage(cache, victim.sha256, copies[other])
    put(store, names.shard_key(D, victim.sha256), flipped(good, random.Random(1)))
    found = scrubbed(settings, cache=cache)
    assert wrong(found) == {victim.sha256: Finding.DAMAGED}
    assert not store.exists(names.shard_key(D, victim.sha256))
    assert cache.open(victim) is None
    assert wrong(cache_scrubbed(settings)) == {}


def test_a_shard_that_is_damaged_on_both_sides_leaves_the_cache_too(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    made = published(settings, tmp_path / "source")
    cache = staged(settings, made)
    victim = made.body.shards[0]
    good = cache.path(victim.sha256).read_bytes()
    damage(cache, victim.sha256, flipped(good, random.Random(2)))
    put(store, names.shard_key(D, victim.sha256), flipped(good, random.Random(1)))
    found = cache_scrubbed(settings)
    assert wrong(found) == {victim.sha256: Finding.DAMAGED}
    assert cache.open(victim) is None


def test_what_is_cached_of_a_version_that_is_gone_is_compared_with_its_name(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    made = published(settings, tmp_path / "source")
    cache = staged(settings, made)
    for key in store.keys_under("datasets"):
        store.delete(key)
    (cache.root / "notes" / made.body.shards[1].sha256).unlink()
    victim = made.body.shards[0]
    damage(cache, victim.sha256, flipped(cache.path(victim.sha256).read_bytes(), random.Random(2)))
    found = cache_scrubbed(settings)
    assert wrong(found) == {victim.sha256: Finding.DAMAGED}
    assert len(found.checks) == len(made.body.shards)


def test_a_shard_whose_note_is_lost_is_known_from_the_store(settings: Settings, tmp_path: Path) -> None:
    made = published(settings, tmp_path / "source")
    cache = staged(settings, made)
    victim = made.body.shards[0]
    (cache.root / "notes" / victim.sha256).unlink()
    damage(cache, victim.sha256, flipped(cache.path(victim.sha256).read_bytes(), random.Random(2)))
    assert wrong(cache_scrubbed(settings)) == {victim.sha256: Finding.REPAIRED}


def test_reading_the_cache_here_is_no_use_of_it(settings: Settings, tmp_path: Path) -> None:
    cache = staged(settings, published(settings, tmp_path / "source"))
    for number, each in enumerate(cache.present()):
        os.utime(cache.root / "notes" / each.sha256, (number, number))
    before = cache.present()
    cache_scrubbed(settings)
    assert cache.present() == before


@pytest.mark.integration
def test_a_scrub_killed_at_any_point_leaves_what_the_next_one_mends(settings: Settings, tmp_path: Path) -> None:
    store = storage.open_store(settings)
    made = published(settings, tmp_path / "source", files=16)
    cache = staged(settings, made)
    good = {shard.sha256: cache.path(shard.sha256).read_bytes() for shard in made.body.shards}
    span_s, in_the_middle = 0.0, 0
    for number, part in enumerate([1.0, *processes.moments(seed=8, count=25, span_s=1.0)]):
        chance = random.Random(number)
        for sha256, data in good.items():
            put(store, names.shard_key(D, sha256), flipped(data, chance))
        if number == 0:
            span_s = processes.duration_s(_scrub, settings)
        else:
            processes.kill_after(part * span_s, _scrub, settings)
        there = {sha256: store.read(names.shard_key(D, sha256)) for sha256 in good}  # each has something all the time
        mended = sum(there[sha256] == data for sha256, data in good.items())
        in_the_middle += 0 < mended < len(good)
        _scrub(settings)
        assert is_whole(store, made)
    assert in_the_middle > 0, "no scrub was killed between its repairs"


def _scrub(settings: Settings) -> None:
    scrubbed(settings, cache=Cache.of(settings))


# --- pace, records ------------------------------------------------------------------------------------------


def test_a_scrub_reads_no_faster_than_it_may(settings: Settings, tmp_path: Path) -> None:
    made = published(settings, tmp_path / "source", files=30)
    size_bytes = sum(shard.size_bytes for shard in made.body.shards)
    began = time.monotonic()
    scrubbed(settings, bytes_per_s=size_bytes / 0.5)
    assert time.monotonic() - began >= 0.5


def test_time_that_nobody_used_is_not_saved_up() -> None:
    pace = Pace(1_000_000)
    pace.take(50_000)
    time.sleep(0.2)
    began = time.monotonic()
    pace.take(100_000)
    assert time.monotonic() - began >= 0.09


def test_what_a_scrub_found_is_kept_once(settings: Settings, store: Store, tmp_path: Path) -> None:
    published(settings, tmp_path / "source")
    first = scrubbed(settings)
    scrub.record(store, first)
    scrub.record(store, scrubbed(settings))
    (key,) = store.keys_under(names.scrub_prefix(ID))
    assert Scrub.model_validate_json(store.read(key)) == first


def test_scrubs_of_several_datasets_are_kept_side_by_side(store: Store) -> None:
    scrub.record(store, Scrub(scrub_id=ID, place="store", checks=()))
    scrub.record(store, Scrub(scrub_id=ID, place="node-1", checks=()))
    assert len(store.keys_under(names.scrub_prefix(ID))) == 2
