"""Collecting: what no version needs goes after its grace, by the store's clock; what cannot be read stops it."""

import os
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines import bulk, keys, storage
from pipelines.datasets import catalog, claims, collection, commit, gc, names, publications, publish, verify
from pipelines.datasets.collection import Collection, Kind
from pipelines.datasets.manifest import Body, Manifest, Packing, Provenance, Shard
from pipelines.datasets.meter import Meter
from pipelines.datasets.publications import Packed
from pipelines.errors import CorruptObject, StillCollecting, StoreRefused
from pipelines.settings import Settings
from pipelines.storage import Store
from tests.conftest import on
from tests.servers import S3

D = "d"
NOW = datetime(2026, 11, 21, 2, tzinfo=UTC)
NONE, WEEK = timedelta(0), timedelta(days=7)
PACKING = Packing(format="tar", shard_bytes=2**16)


def request(folder: Path, tag: str = "latest", files: int = 8, seed: int = 1) -> publications.Request:
    """Some files that become a few shards; those of an even number are the same for every seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        content = random.Random(number * 1000 + number % 2 * seed).randbytes(30_000)
        if not (path := folder / f"{number}.bin").exists():  # a new time would make it another file
            path.write_bytes(content)
    return publications.Request(source=str(folder), dataset=D, packing=PACKING, tag=tag, parent=None)


def published(settings: Settings, folder: Path, tag: str = "latest", seed: int = 1, files: int = 8) -> Manifest:
    store = storage.open_store(settings)
    return publish.publish(settings, store, request(folder, tag, files, seed), NOW, lambda _: None)


def collect(store: Store, grace: timedelta = NONE, dry_run: bool = False) -> Collection:
    return gc.collect(store, D, "collector", grace, dry_run, lambda _: None)


def require_whole(store: Store) -> None:
    """Every version that is in sight has every byte of its shards and its indexes."""
    for version in catalog.versions(store, D):
        found = catalog.load_version(store, D, version)
        assert verify.damaged(store, bulk.of(store), found, Meter(lambda _: None, 0, 0, "")) == []


def everything(store: Store) -> list[storage.Stored]:
    return store.objects_under("datasets")


def shards_in(store: Store) -> set[str]:
    return {key.rpartition("/")[2] for key in store.keys_under(names.shards_prefix(D))}


def shards_of(*manifests: Manifest) -> set[str]:
    return {shard.sha256 for each in manifests for shard in each.body.shards}


def make_older(store: Store, by: timedelta, *prefixes: str) -> None:
    """Shift the time at which objects below these prefixes were written into the past, or into the future."""
    for prefix in prefixes or ("datasets",):
        for key in store.keys_under(prefix) or filter(store.exists, [prefix]):
            then = (store.stat(key).modified_at - by).timestamp()
            os.utime(store.path(key), (then, then))


# --- what goes and what stays -------------------------------------------------------------------------------


def test_what_only_a_removed_version_has_goes_and_the_others_stay_whole(any_settings: Settings, tmp_path: Path) -> None:
    store = storage.open_store(any_settings)
    old = published(any_settings, tmp_path / "old", seed=1, files=16)
    new = published(any_settings, tmp_path / "new", seed=2, files=8)
    assert shards_of(old) - shards_of(new)
    catalog.remove(store, D, old.version)
    done = collect(store)
    assert (done.stopped, done.left) == ("", ())
    assert shards_in(store) == shards_of(new)
    assert store.keys_under(names.indexes_prefix(D)) == sorted(names.index_key(D, s.index) for s in new.body.shards)
    assert store.keys_under(names.packed_prefix(D)) == sorted({names.packed_key(D, g) for g in new.provenance.packed})
    assert store.keys_under(names.removed_prefix(D)) == []
    require_whole(store)
    assert published(any_settings, tmp_path / "old", seed=1, files=16).version == old.version
    require_whole(store)


def test_what_versions_share_stays(settings: Settings, store: Store, tmp_path: Path) -> None:
    old = published(settings, tmp_path / "source")
    (tmp_path / "source/9.bin").write_bytes(random.Random(9).randbytes(60_000))
    again = publications.Request(source=str(tmp_path / "source"), dataset=D, packing=PACKING)
    new = publish.publish(settings, store, again, NOW, lambda _: None)
    assert shards_of(old) & shards_of(new)
    catalog.remove(store, D, old.version)
    assert collect(store).stopped == ""
    assert shards_in(store) == shards_of(new)
    require_whole(store)


def test_a_dry_run_deletes_nothing_and_names_what_the_collection_then_deletes(
    any_settings: Settings, tmp_path: Path
) -> None:
    store = storage.open_store(any_settings)
    old = published(any_settings, tmp_path / "old", seed=1)
    published(any_settings, tmp_path / "new", seed=2)
    catalog.remove(store, D, old.version)
    before = everything(store)
    planned = collect(store, dry_run=True)
    assert everything(store) == before
    assert (planned.dry_run, planned.gone_objects) == (True, 0)
    assert {each.kind for each in planned.doomed} >= {Kind.REMOVED, Kind.NOTE, Kind.SHARD, Kind.INDEX}
    done = collect(store)
    assert [each.key for each in done.doomed] == [each.key for each in planned.doomed]
    assert done.gone_objects == len(done.doomed)
    assert done.gone_bytes == done.doomed_bytes == sum(each.size_bytes for each in planned.doomed)
    gone = {each.key for each in planned.doomed}
    assert [each.key for each in everything(store)] == [each.key for each in before if each.key not in gone]


def test_nothing_goes_before_its_grace_is_over_and_everything_after(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    old = published(settings, tmp_path / "old", seed=1)
    new = published(settings, tmp_path / "new", seed=2)
    make_older(store, timedelta(days=30))
    catalog.remove(store, D, old.version)
    make_older(store, timedelta(days=6), names.removed_prefix(D))
    assert {each.kind for each in collect(store, WEEK).doomed} == {Kind.PUBLICATION}
    assert shards_in(store) == shards_of(old, new)
    make_older(store, timedelta(days=2), names.removed_prefix(D))
    collect(store, WEEK)
    assert shards_in(store) == shards_of(new)


def test_a_version_that_is_removed_again_has_its_grace_anew(settings: Settings, store: Store, tmp_path: Path) -> None:
    old = published(settings, tmp_path / "old", seed=1)
    published(settings, tmp_path / "new", seed=2)
    store.create(names.removed_key(D, old.version), old.model_dump_json().encode())  # a publisher was killed over it
    make_older(store, timedelta(days=30))
    catalog.remove(store, D, old.version)
    collect(store, WEEK)
    assert shards_of(old) <= shards_in(store)
    assert store.exists(names.removed_key(D, old.version))


def test_leftovers_of_scrubs_probes_collectors_and_killed_writers_go_when_they_are_old(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    whole = published(settings, tmp_path / "source")
    collect(store)
    beside = ["datasets/d/quarantined/x.s", "probe/x", "datasets/d/collecting/x"]
    temporary = [Path(store.path(names.shards_prefix(D))) / ".tmp-x", Path(store.path("probe")) / ".tmp-x"]
    for when in ("old", "young"):
        for key in beside:
            store.create(f"{key}.{when}", b"x")
        for path in temporary:
            path.with_name(f"{path.name}.{when}").write_bytes(b"x")
    old = [*(Path(store.path(f"{key}.old")) for key in beside), *(p.with_name(f"{p.name}.old") for p in temporary)]
    for path in old:
        os.utime(path, (0, 0))
    done = collect(store, WEEK)
    root = Path(store.path("probe")).parent
    assert sorted(root / each.key for each in done.doomed) == sorted(old)  # of a temporary file the key is its path
    assert not any(path.exists() for path in old)
    assert all(path.with_name(path.name.replace("old", "young")).exists() for path in old)
    assert shards_in(store) == shards_of(whole)


@pytest.mark.integration
def test_parts_of_an_upload_that_a_killed_publisher_left_on_a_server_go_when_they_are_old(
    settings: Settings, ceph: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = storage.open_store(on(ceph, settings, monkeypatch))  # moto dates every upload 2010
    bucket, _, key = store.path(names.shard_key(D, "0" * 64)).partition("/")
    ask = store.filesystem.call_s3
    begun = ask("create_multipart_upload", Bucket=bucket, Key=key)
    part = {"Bucket": bucket, "Key": key, "UploadId": begun["UploadId"], "PartNumber": 1, "Body": bytes(5 * 2**20)}
    ask("upload_part", **part)
    assert collect(store, WEEK).doomed == ()
    time.sleep(1.1)  # servers date uploads to the second
    done = collect(store)
    assert [(each.kind, each.size_bytes) for each in done.doomed] == [(Kind.UPLOAD, 5 * 2**20)]
    assert store.uploads_under(names.prefix(D)) == []
    store.abort_upload(names.shard_key(D, "0" * 64), begun["UploadId"])


def test_what_is_no_shard_stays(settings: Settings, store: Store, tmp_path: Path) -> None:
    published(settings, tmp_path / "source")
    store.create(f"{names.shards_prefix(D)}/README.md", b"x")
    make_older(store, timedelta(days=30))
    collect(store)
    assert store.exists(f"{names.shards_prefix(D)}/README.md")


def test_a_dataset_that_is_not_there_has_nothing_to_collect(any_store: Store) -> None:
    done = collect(any_store)
    assert (done.doomed, done.kept, done.stopped) == ((), (), "")


@pytest.mark.parametrize("seed", range(40))
def test_a_plan_is_exactly_what_the_rules_say(store: Store, seed: int) -> None:
    chance = random.Random(seed)
    shards = [some_shard(chance, index) for index in (0, 0, 1, 2, 3, 4, 5, 6, 7)]  # two of them have one index
    keeping: set[str] = set()

    def put(key: str, data: bytes) -> bool:
        """Store it at one of several ages; whether that is within the grace."""
        is_young = chance.random() < 0.5
        store.replace(key, data)
        make_older(store, timedelta(days=chance.choice((1, 6) if is_young else (8, 400))), key)
        return is_young

    for shard in shards:
        if put(names.shard_key(D, shard.sha256), b"x"):
            keeping.add(names.shard_key(D, shard.sha256))
    for index in dict.fromkeys(shard.index for shard in shards):
        if put(names.index_key(D, index), b"x"):
            keeping.add(names.index_key(D, index))
    for where in (names.version_key, names.removed_key):
        some = chance.sample(shards, chance.randint(1, 3))
        group = keys.sha256(chance.randbytes(8))
        made = some_manifest(some, group)
        if put(where(D, made.version), made.model_dump_json().encode()) or where is names.version_key:
            keeping |= {where(D, made.version), *keys_of(some)}
            if chance.random() < 0.5:
                put(names.packed_key(D, group), _note(group, some))
                keeping.add(names.packed_key(D, group))
    noted, group = chance.sample(shards, 1), keys.sha256(b"note")
    if put(names.packed_key(D, group), _note(group, noted)):
        keeping |= {names.packed_key(D, group), *keys_of(noted)}

    planned = collection.plan(store, D, claims.store_time(store), WEEK)
    there = {each.key for each in everything(store)}
    assert {each.key for each in planned.doomed} == there - keeping


def some_shard(chance: random.Random, index: int) -> Shard:
    return Shard(
        sha256=keys.sha256(chance.randbytes(8)),
        size_bytes=1,
        xxh3="0" * 16,
        index=keys.sha256(f"index {index}".encode()),
        files=1,
        samples=1,
        content_bytes=1,
    )


def some_manifest(shards: list[Shard], group: str) -> Manifest:
    body = Body(dataset=D, packing=PACKING, shards=tuple(shards))
    provenance = Provenance(
        source="file:///source",
        listing="0" * 64,
        packed=(group,) * len(shards),
        parent=None,
        code_version="fleetmark 0",
        environment_id="env",
        hostname="host",
        published_at=NOW,
    )
    return Manifest(version=body.version, body=body, provenance=provenance)


def _note(group: str, shards: list[Shard]) -> bytes:
    import zstandard

    return zstandard.compress(Packed(group=group, shards=tuple(shards)).model_dump_json().encode())


def keys_of(shards: list[Shard]) -> set[str]:
    return {key for s in shards for key in (names.shard_key(D, s.sha256), names.index_key(D, s.index))}


# --- publications under way ---------------------------------------------------------------------------------


def test_while_a_publication_is_under_way_nothing_goes(any_settings: Settings, tmp_path: Path) -> None:
    store = storage.open_store(any_settings)
    old = published(any_settings, tmp_path / "old", seed=1)
    published(any_settings, tmp_path / "new", seed=2)
    catalog.remove(store, D, old.version)
    under_way = publish.plan(any_settings, store, request(tmp_path / "old", seed=1))
    before = everything(store)
    with pytest.raises(StillCollecting, match=f"publication {under_way.publication} is at work"):
        collect(store)
    assert everything(store) == before


def test_what_an_interrupted_publication_packed_stays_for_the_grace_and_it_goes_on(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    under_way = publish.plan(settings, store, request(tmp_path / "source"))
    meter = Meter(lambda _: None, 0, 0, "")
    publish.pack(settings, store, under_way, 0, meter)
    make_older(store, timedelta(days=30), names.shards_prefix(D), names.indexes_prefix(D), names.packed_prefix(D))
    make_older(store, claims.ABANDONED + timedelta(hours=1), names.publishers_prefix(D))  # only its flag is gone
    assert shards_in(store)
    collect(store, WEEK)
    made = commit.commit(settings, store, under_way, NOW)
    assert shards_in(store) == shards_of(made)
    require_whole(store)


def test_an_abandoned_publication_goes_wholly_and_the_same_can_be_published_again(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    wanted = request(tmp_path / "source")
    publish.pack(settings, store, publish.plan(settings, store, wanted), 0, Meter(lambda _: None, 0, 0, ""))
    make_older(store, timedelta(days=8))
    assert collect(store, WEEK).stopped == ""
    assert everything(store) == []
    publish.publish(settings, store, wanted, NOW, lambda _: None)
    require_whole(store)


def test_a_version_whose_publication_slept_until_its_shards_were_collected_is_never_published(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    under_way = publish.plan(settings, store, request(tmp_path / "source"))
    publish.pack(settings, store, under_way, 0, Meter(lambda _: None, 0, 0, ""))
    packed = list(publications.read_packed(store, under_way))
    make_older(store, timedelta(days=8))
    collect(store, WEEK)
    publications.write_packed(store, under_way, 0, packed[0])  # as if it had read them before
    with pytest.raises(CorruptObject, match="publish again"):
        commit.commit(settings, store, under_way, NOW)
    assert catalog.versions(store, D) == []


def test_a_version_whose_manifest_arrives_days_after_its_shards_were_collected_is_taken_back(
    settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way = publish.plan(settings, store, request(tmp_path / "source"))
    publish.pack(settings, store, under_way, 0, Meter(lambda _: None, 0, 0, ""))
    create = store.create

    def after_days(key: str, data: bytes) -> bool:
        if key.startswith(names.versions_prefix(D)):
            make_older(store, timedelta(days=8))
            assert collect(storage.open_store(settings), WEEK).gone_objects > 0
        return create(key, data)

    monkeypatch.setattr(store, "create", after_days)
    with pytest.raises(CorruptObject, match="publish again"):
        commit.commit(settings, store, under_way, NOW)
    assert catalog.versions(store, D) == []


def test_a_collector_gives_way_in_the_middle_and_the_next_goes_on(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    old = published(settings, tmp_path / "old", seed=1)
    new = published(settings, tmp_path / "new", seed=2)
    catalog.remove(store, D, old.version)
    before = everything(store)
    none = gc.collect(store, D, "collector", NONE, False, lambda _: None, at_most=timedelta(0))
    assert (none.gone_objects, none.stopped) == (0, "its time is over")
    assert len(none.left) == len(none.doomed) > 0
    assert everything(store) == before
    collect(store)
    assert shards_in(store) == shards_of(new)


# --- what cannot be read ------------------------------------------------------------------------------------


def _flip(data: bytes) -> bytes:
    return data[:40] + bytes([data[40] ^ 1]) + data[41:]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "one bit": _flip,
    "cut short": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "foreign": lambda _: b"{}",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("where", ["versions", "removed", "packed", "publishing"])
def test_what_cannot_be_read_stops_the_collection_and_nothing_goes(
    settings: Settings, store: Store, tmp_path: Path, where: str, damage: Callable[[bytes], bytes]
) -> None:
    for tag, seed in (("a", 1), ("b", 2), ("c", 3)):
        published(settings, tmp_path / tag, tag=tag, seed=seed)
    for tag in ("a", "b"):
        standing = catalog.tag_of(store, D, tag)
        catalog.move_tag(store, standing, None, NOW, by="test")
        catalog.remove(store, D, standing.version or "")
    publish.pack(
        settings, store, publish.plan(settings, store, request(tmp_path / "x", seed=4)), 0, Meter(print, 0, 0, "")
    )
    make_older(store, timedelta(days=3), names.publishers_prefix(D))
    victim = {
        "versions": store.keys_under(names.versions_prefix(D))[0],
        "removed": store.keys_under(names.removed_prefix(D))[0],
        "packed": next(iter(_notes_of_no_version(store))),
        "publishing": next(key for key in store.keys_under(names.publishing_prefix(D)) if "/packed/" in key),
    }[where]
    make_older(store, timedelta(days=30), names.shards_prefix(D))
    store.replace(victim, damage(store.read(victim)))
    before = everything(store)
    with pytest.raises(CorruptObject) as raised:
        collect(store, WEEK)
    assert raised.value.url == store.url(victim)
    assert everything(store) == before


def _notes_of_no_version(store: Store) -> set[str]:
    manifests = [catalog.load_version(store, D, version) for version in catalog.versions(store, D)]
    named = {names.packed_key(D, group) for each in manifests for group in each.provenance.packed}
    removed = [Manifest.model_validate_json(store.read(key)) for key in store.keys_under(names.removed_prefix(D))]
    named |= {names.packed_key(D, group) for each in removed for group in each.provenance.packed}
    return set(store.keys_under(names.packed_prefix(D))) - named


def test_a_manifest_under_another_versions_name_stops_the_collection(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    made = published(settings, tmp_path / "source")
    store.create(names.version_key(D, "0" * 32), made.model_dump_json().encode())
    with pytest.raises(CorruptObject, match=f"it is the manifest of {made.reference}"):
        collect(store)


def test_what_lies_among_the_versions_and_is_none_stops_the_collection(store: Store) -> None:
    store.create(f"{names.versions_prefix(D)}/notes.txt", b"hello")
    with pytest.raises(CorruptObject, match=r"notes\.txt"):
        collect(store)


def test_a_tag_on_a_version_that_is_not_there_stops_the_collection(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    made = published(settings, tmp_path / "source")
    make_older(store, timedelta(days=30))
    store.delete(names.version_key(D, made.version))
    before = everything(store)
    with pytest.raises(CorruptObject, match=f"{made.version}.* a tag stands on it and it is not there"):
        collect(store, WEEK)
    assert everything(store) == before


def test_a_folder_that_cannot_be_listed_stops_the_collection(settings: Settings, store: Store, tmp_path: Path) -> None:
    made = published(settings, tmp_path / "source")
    catalog.move_tag(store, catalog.tag_of(store, D, "latest"), None, NOW, by="test")
    make_older(store, timedelta(days=30))
    versions = Path(store.path(names.versions_prefix(D)))
    versions.rename(tmp_path / "aside")
    versions.symlink_to(versions.name)  # a loop: to list it is an error for root, too
    with pytest.raises(StoreRefused, match="versions"):
        collect(store, WEEK)
    assert shards_in(store) == shards_of(made)


# --- clocks -------------------------------------------------------------------------------------------------


def test_what_the_store_dates_into_the_future_stays(settings: Settings, store: Store, tmp_path: Path) -> None:
    made = published(settings, tmp_path / "source")
    standing = catalog.tag_of(store, D, "latest")
    catalog.move_tag(store, standing, None, NOW, by="test")
    catalog.remove(store, D, made.version)
    make_older(store, -timedelta(days=400))
    assert collect(store).doomed == ()
    assert shards_in(store) == shards_of(made)
