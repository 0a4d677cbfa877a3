"""Scrubbing: every damage is found, put away, and mended from the other side; nothing wrong ever takes a place."""

import os
import random
import time
from pathlib import Path

import pytest

from pipelines import bulk, storage
from pipelines.datasets import catalog, names, publish, scrub, verify
from pipelines.datasets.events import Finding, Scrub
from pipelines.datasets.manifest import Manifest, Packing
from pipelines.datasets.meter import Meter
from pipelines.datasets.publications import Request
from pipelines.datasets.scrub import Pace
from pipelines.settings import Settings
from pipelines.storage import Store
from tests.datasets.test_gc import NOW, D

ID = "20261121T020000Z-1a2b3c"


def published(settings: Settings, folder: Path, form: str = "tar", zstd: int | None = None, files: int = 6) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        if not (path := folder / f"{number}.bin").exists():
            path.write_bytes(random.Random(number).randbytes(40_000))
    packing = Packing.model_validate({"format": form, "shard_bytes": 2**16, "zstd_level": zstd})
    request = Request(source=str(folder), dataset=D, packing=packing)
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
    made = published(any_settings, tmp_path / "source")
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
        assert published(any_settings, tmp_path / "source").version == made.version
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


@pytest.mark.parametrize("size", [0, 1, -1, 10**6])
def test_a_shard_of_another_size_is_found_even_when_it_is_not_in_the_sample(
    any_settings: Settings, tmp_path: Path, size: int
) -> None:
    made = published(any_settings, tmp_path / "source")
    store = storage.open_store(any_settings)
    victim = made.body.shards[-1]
    data = store.read(names.shard_key(D, victim.sha256)) + bytes(10**6)
    put(store, names.shard_key(D, victim.sha256), data[: victim.size_bytes + size] if size != 1 else data[:1])
    if size == 0:
        put(store, names.shard_key(D, victim.sha256), b"")
    for seed in range(20):
        found = scrubbed(any_settings, sample=0.01, seed=seed)
        if len(found.checks) > 1:
            break
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
    assert wrong(found) == {victim.sha256: Finding.MISSING} or wrong(found) == {victim.sha256: Finding.DAMAGED}
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


# --- pace, records ------------------------------------------------------------------------------------------


def test_a_scrub_reads_no_faster_than_it_may(settings: Settings, tmp_path: Path) -> None:
    made = published(settings, tmp_path / "source", files=30)
    size_bytes = sum(shard.size_bytes for shard in made.body.shards)
    began = time.monotonic()
    scrubbed(settings, bytes_per_s=size_bytes / 0.5)
    assert 0.5 <= time.monotonic() - began < 5.0


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
    assert os.sep
