"""The datasets of a store: how a version is found, and how a tag moves when several move it at once."""

from datetime import timedelta
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.datasets import catalog, names
from pipelines.datasets.catalog import Tag
from pipelines.datasets.manifest import Manifest
from pipelines.errors import BadReference, CorruptObject, TagMoved, Unknown, VersionInUse
from pipelines.settings import Settings
from pipelines.storage import Store
from tests import processes
from tests.datasets.trees import NOW, published, request, tree, write

A, B, C = "a" * 32, "b" * 32, "c" * 32


def move(store: Store, version: str | None, tag: str = "latest") -> Tag:
    return catalog.move_tag(store, catalog.tag_of(store, "photos", tag), version, NOW, "test")


# --- finding ------------------------------------------------------------------------------------------------


@pytest.fixture
def made(any_settings: Settings, tmp_path: Path) -> list[Manifest]:
    """Two versions of `photos`, the second one `latest`, the first one `old`; and one of `others`."""
    source = write(tmp_path / "source", tree(20))
    first = published(any_settings, request(source))
    move(storage.open_store(any_settings), first.version, "old")
    write(source, {"more": b"1"})
    return [first, published(any_settings, request(source)), published(any_settings, request(source, dataset="others"))]


def test_a_version_is_found_by_name_by_tag_by_id_and_by_its_first_digits(
    any_store: Store, made: list[Manifest]
) -> None:
    first, second, other = made
    assert catalog.datasets(any_store) == ["others", "photos"]
    assert sorted(catalog.versions(any_store, "photos")) == sorted([first.version, second.version])
    for text, expected in {
        "photos": second,
        "photos@latest": second,
        "photos@old": first,
        f"photos@{first.version}": first,
        f"photos@{second.version[:6]}": second,
        "others": other,
    }.items():
        assert catalog.load(any_store, text) == expected


def test_what_is_not_there_is_said_with_what_is(any_store: Store, made: list[Manifest]) -> None:
    first, second, _ = made
    with pytest.raises(Unknown) as raised:
        catalog.load(any_store, "nope")
    assert str(raised.value) == "unknown dataset 'nope'; known: others, photos"
    with pytest.raises(Unknown) as raised:
        catalog.load(any_store, "photos@prod")
    known = ", ".join(sorted([first.version, second.version]))
    assert str(raised.value) == f"unknown tag or version of photos 'prod'; known: latest, old, {known}"
    with pytest.raises(Unknown, match="unknown version of photos"):
        catalog.load_version(any_store, "photos", A)


def test_digits_that_several_versions_begin_with_name_none(store: Store) -> None:
    for version in ("123456" + "a" * 26, "123456" + "b" * 26):
        store.create(names.version_key("photos", version), b"")
    with pytest.raises(BadReference, match="2 versions begin with these digits"):
        catalog.load(store, "photos@123456")


def test_a_tag_that_looks_like_an_id_is_a_tag(settings: Settings, store: Store, tmp_path: Path) -> None:
    first = published(settings, request(write(tmp_path / "s", tree(4))))
    second = published(settings, request(write(tmp_path / "s", tree(8, seed=2))))
    move(store, second.version, first.version[:8])
    assert catalog.load(store, f"photos@{first.version[:8]}") == second


def test_a_manifest_under_another_ones_id_is_damaged(settings: Settings, store: Store, tmp_path: Path) -> None:
    made = published(settings, request(write(tmp_path / "s", tree(4))))
    data = store.read(names.version_key("photos", made.version))
    store.create(names.version_key("photos", A), data)
    store.create(names.version_key("others", made.version), data)
    for dataset, version in (("photos", A), ("others", made.version)):
        with pytest.raises(CorruptObject, match=f"it is the manifest of photos@{made.version}"):
            catalog.load_version(store, dataset, version)


# --- tags ---------------------------------------------------------------------------------------------------


def test_a_tag_moves_and_remembers(any_store: Store) -> None:
    assert catalog.tag_of(any_store, "photos", "latest") == Tag(dataset="photos", tag="latest")
    for version in (A, B, None, A):
        assert move(any_store, version).version == version
        assert catalog.tag_of(any_store, "photos", "latest").version == version
    assert [each.version for each in catalog.history(any_store, "photos", "latest")] == [A, B, None, A]
    move(any_store, B, "prod")
    assert [(tag.tag, tag.number, tag.version) for tag in catalog.tags(any_store, "photos")] == [
        ("latest", 4, A), ("prod", 1, B),
    ]  # fmt: skip


def test_a_tag_moved_to_where_it_stands_has_no_new_entry(any_store: Store) -> None:
    move(any_store, A)
    assert move(any_store, A).number == 1


def test_a_tag_that_somebody_moved_is_not_moved_over_them_even_if_it_came_back(any_store: Store) -> None:
    seen = move(any_store, A)
    move(any_store, B)
    with pytest.raises(TagMoved, match=f"expected it at {A}, found it at {B}"):
        catalog.move_tag(any_store, seen, C, NOW, "test")
    move(any_store, A)
    with pytest.raises(TagMoved):
        catalog.move_tag(any_store, seen, C, NOW, "test")
    assert catalog.move_tag(any_store, seen, A, NOW, "test").version == A


def test_a_move_whose_answer_was_lost_is_repeated_without_harm(any_store: Store) -> None:
    seen = catalog.tag_of(any_store, "photos", "latest")
    for later in (timedelta(0), timedelta(0), timedelta(seconds=5)):
        assert catalog.move_tag(any_store, seen, A, NOW + later, "test").number == 1
    assert len(list(catalog.history(any_store, "photos", "latest"))) == 1


def test_of_eight_processes_that_move_a_tag_from_the_same_place_one_does(any_settings: Settings) -> None:
    store = storage.open_store(any_settings)
    move(store, A, "raced-0")
    seen = [catalog.tag_of(store, "photos", f"raced-{number}") for number in range(3)]
    answers = processes.at_once(_move, [(any_settings, seen, f"{racer}" * 32) for racer in range(8)])
    for tag, *moved in zip(seen, *answers, strict=True):
        (won,) = [version for version in moved if version]
        now = catalog.tag_of(store, "photos", tag.tag)
        assert (now.version, now.number) == (won, tag.number + 1)


def _move(settings: Settings, seen: list[Tag], version: str) -> list[str | None]:
    """For each tag the version, if it was moved to it."""
    moved: list[str | None] = []
    for tag in seen:
        try:
            moved.append(catalog.move_tag(storage.open_store(settings), tag, version, NOW, "race").version)
        except TagMoved:
            moved.append(None)
    return moved


def test_of_eight_processes_that_move_a_tag_to_the_same_version_all_succeed_with_one_entry(
    any_settings: Settings,
) -> None:
    seen = Tag(dataset="photos", tag="raced")
    assert processes.at_once(_move, [(any_settings, [seen], A)] * 8) == [[A]] * 8
    assert len(list(catalog.history(storage.open_store(any_settings), "photos", "raced"))) == 1


def test_a_damaged_entry_of_a_tag_is_named(store: Store) -> None:
    key = names.tag_key("photos", "latest", 1)
    store.create(key, b'{"version": "nonsense"}')
    with pytest.raises(CorruptObject) as raised:
        catalog.load(store, "photos")
    assert str(raised.value) == f"object {store.url(key)} is damaged: it is not a move of a tag"


# --- removing -----------------------------------------------------------------------------------------------


def test_a_version_is_removed_once_no_tag_stands_on_it_and_published_again_it_is_back(
    any_settings: Settings, tmp_path: Path
) -> None:
    store = storage.open_store(any_settings)
    source = write(tmp_path / "source", tree(20))
    made = published(any_settings, request(source))
    with pytest.raises(VersionInUse, match="is tagged latest"):
        catalog.remove(store, "photos", made.version)
    move(store, None)
    catalog.remove(store, "photos", made.version)
    assert (catalog.versions(store, "photos"), catalog.datasets(store)) == ([], [])
    assert store.exists(names.removed_key("photos", made.version))
    with pytest.raises(Unknown):
        catalog.remove(store, "photos", made.version)
    again = published(any_settings, request(source))
    assert again.version == made.version
    assert catalog.load(store, "photos") == again
    assert not store.exists(names.removed_key("photos", made.version))


# --- differences --------------------------------------------------------------------------------------------


def test_a_difference_names_what_came_what_went_and_what_changed(any_settings: Settings, tmp_path: Path) -> None:
    store = storage.open_store(any_settings)
    source = write(tmp_path / "source", tree(60))
    before = published(any_settings, request(source))
    next(source.rglob("00010.jpg")).unlink()
    write(source, {"new.bin": b"1"})
    changed = next(source.rglob("00020.cls"))
    changed.write_bytes(b"other")
    after = published(any_settings, request(source))
    found = catalog.difference(store, before, after)
    assert [Path(path).name for path in found.removed] == ["00010.jpg"]
    assert (found.added, found.changed) == (("new.bin",), (str(changed.relative_to(source)),))
    known = {shard.sha256 for shard in before.body.shards}
    new = [shard for shard in after.body.shards if shard.sha256 not in known]
    assert (found.new_shards, found.new_bytes) == (len(new), sum(shard.size_bytes for shard in new))
    assert catalog.difference(store, after, after).model_dump(exclude={"new_shards", "new_bytes"}) == {
        "added": (), "removed": (), "changed": (),
    }  # fmt: skip
