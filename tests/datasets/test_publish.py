"""Publishing: the same version wherever and however it is packed, nothing read twice, seen whole or not at all."""

import os
import random
from datetime import UTC, datetime
from pathlib import Path

import pytest
import webdataset

from pipelines import storage
from pipelines.datasets import catalog, commit, names, publish
from pipelines.datasets.manifest import Format
from pipelines.datasets.meter import Meter
from pipelines.datasets.publications import Publication
from pipelines.errors import NotPacked, SourceChanged, SourceRefused, TagMoved, Unknown, UnsafeStore
from pipelines.settings import Settings
from pipelines.storage import Store
from tests import processes
from tests.conftest import on
from tests.datasets import trees
from tests.datasets.trees import BLOB, NOW, SHARD_BYTES, TAR, extracted, opened, published, request, stored, tree, write
from tests.servers import S3

every_format = pytest.mark.parametrize("form", ["tar", "blob"])
with_and_without_zstd = pytest.mark.parametrize("level", [None, 3], ids=["plain", "zstd"])


def silent() -> Meter:
    return Meter(lambda _: None, 1, 1, "shards")


# --- every byte once ----------------------------------------------------------------------------------------

ODD = {
    "a": b"no extension",
    "empty": b"",
    "folder.with.dots/many.dots.in.the.name.tar.gz": b"dots",
    ".hidden/.file": b"hidden",
    "with space/and  two": b"spaces",
    "ünïcode/数据.json": "数据".encode(),
    f"{'long' * 20}/{'name' * 40}.bin": b"longer than ustar can say",
    f"{'é' * 60}.bin": b"120 bytes, 64 characters",
    "quote'\"\\back\nnewline\ttab": b"characters that shells and JSON read as more than a name",
    "large.bin": random.Random(5).randbytes(3 * SHARD_BYTES + 11),
}


@every_format
@with_and_without_zstd
def test_what_lies_in_a_version_is_what_lay_in_the_source_every_byte_once(
    any_settings: Settings, tmp_path: Path, form: Format, level: int | None
) -> None:
    files = {**tree(60), **ODD}
    made = published(any_settings, request(write(tmp_path / "source", files), trees.packing_of(form, level)))
    store = storage.open_store(any_settings)
    assert extracted(store, made) == files
    assert made.content_bytes == sum(map(len, files.values()))
    assert len(made.body.shards) > 3


@every_format
@with_and_without_zstd
def test_the_index_says_where_each_file_lies_and_what_its_hash_is(
    settings: Settings, store: Store, tmp_path: Path, form: Format, level: int | None
) -> None:
    from pipelines.datasets.manifest import digest

    files = {**tree(60), **ODD}
    made = published(settings, request(write(tmp_path / "source", files), trees.packing_of(form, level)))
    found: dict[str, int] = {}
    for number, shard in enumerate(made.body.shards):
        index, data = catalog.index_of(store, "photos", shard), trees.shard_bytes(store, made, number)
        assert (len(index), sum(entry.length for entry in index)) == (shard.files, shard.content_bytes)
        for entry in index:
            part = data[entry.offset : entry.offset + entry.length]
            assert part == files[entry.path][entry.at : entry.at + entry.length]
            assert entry.xxh3 == digest(part)
            found[entry.path] = found.get(entry.path, 0) + entry.length
    assert found == {path: len(content) for path, content in files.items()}


def test_webdataset_reads_every_sample_whole(settings: Settings, store: Store, tmp_path: Path) -> None:
    files = tree(200)
    made = published(settings, request(write(tmp_path / "source", files)))
    urls = [store.path(names.shard_key("photos", shard.sha256)) for shard in made.body.shards]
    samples = {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False)}
    assert len(samples) == made.samples == 100
    for path, content in files.items():
        key, _, extension = path.partition(".")
        assert samples[key][extension] == content


@every_format
def test_empty_files_alone_are_a_version_too(settings: Settings, store: Store, tmp_path: Path, form: Format) -> None:
    files = {"a": b"", "b/c": b""}
    made = published(settings, request(write(tmp_path / "source", files), trees.packing_of(form)))
    assert extracted(store, made) == files


# --- the same version ---------------------------------------------------------------------------------------


@every_format
@with_and_without_zstd
def test_the_same_source_is_the_same_version_in_any_store_from_any_folder_at_any_time(
    any_settings: Settings, settings: Settings, tmp_path: Path, form: Format, level: int | None
) -> None:
    files, how = tree(200), trees.packing_of(form, level)
    here = published(any_settings, request(write(tmp_path / "here", files), how))
    elsewhere = settings.model_copy(update={"home": tmp_path / "another home"})
    shuffled = dict(random.Random(6).sample(list(files.items()), len(files)))
    later = datetime(2031, 1, 1, tzinfo=UTC)
    there = published(elsewhere, request(write(tmp_path / "there", shuffled), how), later)
    assert there.body == here.body
    assert there.version == here.version
    assert there.provenance != here.provenance


def test_how_many_workers_pack_in_which_order_does_not_matter(settings: Settings, tmp_path: Path) -> None:
    source = write(tmp_path / "source", tree(2400))
    expected = published(settings.model_copy(update={"home": tmp_path / "one"}), request(source))
    store = storage.open_store(settings)
    planned = publish.plan(settings, store, request(source))
    assert planned.chunks >= 3
    chunks = list(range(planned.chunks))
    random.Random(7).shuffle(chunks)
    work = [(settings, planned, [*chunks[n:], *chunks[:n]], cores) for n, cores in ((0, 1), (1, 2))]
    processes.at_once(_pack_all, work)  # each of them packs all, beginning with another chunk
    assert commit.commit(settings, store, planned, NOW).body == expected.body


def _pack_all(settings: Settings, planned: Publication, chunks: list[int], cores: int) -> None:
    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:cores])
    for number in chunks:
        publish.pack(settings, storage.open_store(settings), planned, number, silent())


def test_another_packing_is_another_version(settings: Settings, tmp_path: Path) -> None:
    source = write(tmp_path / "source", tree(100))
    ways = [TAR, BLOB, trees.packing_of("tar", 3), trees.packing_of("tar", 4)]
    ways.append(TAR.model_copy(update={"shard_bytes": 2 * SHARD_BYTES}))
    assert len({published(settings, request(source, how)).version for how in ways}) == len(ways)


# --- the next version ---------------------------------------------------------------------------------------


def folders(source: Path) -> list[Path]:
    return [source, *(path for path in source.rglob("*") if path.is_dir())]


def test_the_same_source_once_more_reads_and_writes_nothing(settings: Settings, tmp_path: Path) -> None:
    source = write(tmp_path / "source", tree(200))
    made = published(settings, request(source))
    before = stored(settings)
    with opened(*folders(source)) as seen:
        again = published(settings, request(source))
    assert seen == []
    assert again == made
    assert {path: data for path, data in stored(settings).items() if "/publishing/" not in path} == {
        path: data for path, data in before.items() if "/publishing/" not in path
    }
    with opened(*folders(source)) as seen:
        published(settings, request(source, parent=None, dataset="others"))
    assert len(seen) == 200, "the test has proved nothing: it does not see who opens a file"


@every_format
def test_a_hundredth_more_files_upload_at_most_a_twentieth_of_the_bytes(
    settings: Settings, tmp_path: Path, form: Format
) -> None:
    files = tree(2400, size_bytes=4000)
    new = {path: data for path, data in files.items() if int(path[2:7]) % 202 == 100}
    assert 0.008 < sum(map(len, new.values())) / sum(map(len, files.values())) < 0.012
    source = write(tmp_path / "source", {path: files[path] for path in files.keys() - new.keys()})
    first = published(settings, request(source, trees.packing_of(form)))
    assert len(first.body.shards) >= 60
    write(source, new)
    with opened(*folders(source)) as seen:
        second = published(settings, request(source, trees.packing_of(form)))
    store = storage.open_store(settings)
    difference = catalog.difference(store, first, second)
    assert difference.new_bytes <= 0.05 * first.stored_bytes
    assert set(difference.added) == set(new)
    assert extracted(store, second) == files
    assert len(seen) <= 0.05 * len(files)
    assert second.provenance.parent == first.version


@every_format
@pytest.mark.parametrize("change", ["deleted", "changed"])
def test_one_file_that_changes_changes_one_shard(settings: Settings, tmp_path: Path, form: Format, change: str) -> None:
    source = write(tmp_path / "source", tree(600))
    first = published(settings, request(source, trees.packing_of(form)))
    file = source / "2/00300.jpg" if (source / "2/00300.jpg").exists() else next(source.rglob("00300.jpg"))
    if change == "deleted":
        file.unlink()
    else:
        file.write_bytes(b"\0" * file.stat().st_size)
    second = published(settings, request(source, trees.packing_of(form)))
    before, after = ({shard.sha256 for shard in made.body.shards} for made in (first, second))
    assert (len(before - after), len(after - before)) == (1, 1)


def test_a_file_that_grows_at_its_end_changes_its_last_shard_alone(settings: Settings, tmp_path: Path) -> None:
    weights = random.Random(8).randbytes(10 * SHARD_BYTES + 100)
    source = write(tmp_path / "source", {"model.bin": weights})
    first = published(settings, request(source, BLOB))
    (source / "model.bin").write_bytes(weights + b"more")
    second = published(settings, request(source, BLOB))
    assert len(first.body.shards) == len(second.body.shards) == 10
    assert second.body.shards[:-1] == first.body.shards[:-1]
    assert second.body.shards[-1] != first.body.shards[-1]


def test_equal_shards_are_stored_once(settings: Settings, tmp_path: Path) -> None:
    source = write(tmp_path / "source", dict.fromkeys("abcd", b"same" * (SHARD_BYTES // 4)))
    made = published(settings, request(source, BLOB))
    assert len(made.body.shards) == 4
    assert len(stored(settings, "shards/*")) == 1
    assert made.stored_bytes == SHARD_BYTES


def test_a_version_without_a_parent_is_packed_as_if_it_were_the_first(settings: Settings, tmp_path: Path) -> None:
    files = tree(600)
    source = write(tmp_path / "source", dict(list(files.items())[:300]))
    published(settings, request(source))
    write(source, files)
    alone = published(settings.model_copy(update={"home": tmp_path / "alone"}), request(source))
    assert published(settings, request(source)).version != alone.version
    assert published(settings, request(source, parent=None)).version == alone.version


def test_a_parent_may_be_named(settings: Settings, tmp_path: Path) -> None:
    source = write(tmp_path / "source", tree(100))
    first = published(settings, request(source, tag="first"))
    write(source, tree(400, seed=2))
    assert published(settings, request(source, parent="first")).provenance.parent == first.version
    assert published(settings, request(source, parent=first.version[:8])).provenance.parent == first.version
    with pytest.raises(Unknown, match="other"):
        published(settings, request(source, parent="other"))


def test_a_shard_that_the_store_lost_is_packed_again(settings: Settings, store: Store, tmp_path: Path) -> None:
    files = tree(200)
    source = write(tmp_path / "source", files)
    made = published(settings, request(source))
    lost = sorted(stored(settings, "shards/*"))
    (settings.home / "store" / lost[0]).unlink()
    (settings.home / "store" / lost[1]).write_bytes(b"cut short")
    assert published(settings, request(source)) == made
    assert extracted(store, made) == files


def test_a_preview_tells_what_would_be_packed_and_touches_nothing(settings: Settings, tmp_path: Path) -> None:
    source = write(tmp_path / "source", tree(600))
    store = storage.open_store(settings)
    first = publish.preview(settings, store, request(source))
    assert (first.files, first.packed_before, first.packed_before_bytes) == (600, 0, 0)
    assert stored(settings) == {}
    made = published(settings, request(source))
    next(source.rglob("00300.jpg")).unlink()
    then = publish.preview(settings, store, request(source))
    assert (then.files, then.packed_before) == (599, then.groups - 1)
    assert first.groups == len(made.body.shards)


# --- seen whole or not at all -------------------------------------------------------------------------------


def test_nothing_is_in_sight_until_everything_is_committed(any_settings: Settings, tmp_path: Path) -> None:
    store = storage.open_store(any_settings)
    source = write(tmp_path / "source", tree(800))
    planned = publish.plan(any_settings, store, request(source))
    for number in range(planned.chunks):
        with pytest.raises(NotPacked, match=f"{planned.chunks - number} of {planned.chunks} chunks are not packed yet"):
            commit.commit(any_settings, store, planned, NOW)
        assert catalog.datasets(store) == []
        assert catalog.tag_of(store, "photos", "latest").version is None
        publish.pack(any_settings, store, planned, number, silent())
    made = commit.commit(any_settings, store, planned, NOW)
    assert catalog.load(store, "photos") == made
    assert catalog.datasets(store) == ["photos"]


def test_a_commit_repeated_gives_the_same_and_leaves_nothing(any_settings: Settings, tmp_path: Path) -> None:
    store = storage.open_store(any_settings)
    planned = publish.plan(any_settings, store, request(write(tmp_path / "source", tree(100))))
    publish.pack(any_settings, store, planned, 0, silent())
    made = commit.commit(any_settings, store, planned, NOW)
    later = datetime(2026, 12, 1, tzinfo=UTC)
    assert [commit.commit(any_settings, store, planned, later) for _ in range(2)] == [made, made]
    left = store.keys_under(names.publishing_prefix("photos"))
    assert {key.rpartition("/")[2] for key in left} == {"plan.json", "version"}
    assert store.keys_under(names.publishers_prefix("photos")) == []
    assert len(list(catalog.history(store, "photos", "latest"))) == 1


def test_a_pack_repeated_after_the_commit_does_no_harm(settings: Settings, store: Store, tmp_path: Path) -> None:
    planned = publish.plan(settings, store, request(write(tmp_path / "source", tree(100))))
    publish.pack(settings, store, planned, 0, silent())
    made = commit.commit(settings, store, planned, NOW)
    publish.pack(settings, store, planned, 0, silent())
    assert commit.commit(settings, store, planned, NOW) == made


def test_two_publishers_of_the_same_give_one_version(any_settings: Settings, tmp_path: Path) -> None:
    source = write(tmp_path / "source", tree(160))
    for dataset in ("one", "two", "three"):
        wanted = request(source, dataset=dataset)
        made = processes.at_once(published, [(any_settings, wanted)] * 3)
        assert len({each.version for each in made}) == 1
        store = storage.open_store(any_settings)
        assert catalog.versions(store, wanted.dataset) == [made[0].version]
        assert len(list(catalog.history(store, wanted.dataset, "latest"))) == 1
        assert store.keys_under(names.publishers_prefix(wanted.dataset)) == []


def test_of_two_publishers_with_other_content_one_has_the_tag_and_both_are_versions(
    any_settings: Settings, tmp_path: Path
) -> None:
    store = storage.open_store(any_settings)
    planned = [
        publish.plan(any_settings, store, request(write(tmp_path / name, {name: name.encode()}))) for name in "ab"
    ]
    for each in planned:
        publish.pack(any_settings, store, each, 0, silent())
    answers = processes.at_once(_committed, [(any_settings, each) for each in planned])
    (won,) = [version for version, refusal in answers if not refusal]
    (lost,) = [refusal for _, refusal in answers if refusal]
    assert len(catalog.versions(store, "photos")) == 2
    assert catalog.load(store, "photos").version == won
    assert f"tag photos@latest was moved meanwhile: expected it at nothing, found it at {won}" in lost


def _committed(settings: Settings, planned: Publication) -> tuple[str, str]:
    """The version, or why there is none."""
    try:
        return commit.commit(settings, storage.open_store(settings), planned, NOW).version, ""
    except TagMoved as e:
        return "", str(e)


def test_readers_see_all_of_a_version_or_none_of_it_while_it_is_published(settings: Settings, tmp_path: Path) -> None:
    sources = [write(tmp_path / name, tree(300, seed=seed)) for seed, name in enumerate("abc")]
    answers = processes.at_once(_publish_or_read, [(settings, sources), (settings, []), (settings, [])])
    assert answers[0] == 3
    assert min(answers[1:]) >= 3, "a reader saw no version"


def _publish_or_read(settings: Settings, sources: list[Path]) -> int:
    """Publish each source in turn, or read the tag over and over until the third version stands; how many were seen."""
    store = storage.open_store(settings)
    for source in sources:
        published(settings, request(source))
    if sources:
        return len(sources)
    reads = 0
    while len(list(catalog.history(store, "photos", "latest"))) < 3:
        try:
            made = catalog.load(store, "photos")
        except Unknown:
            continue
        assert len(extracted(store, made)) == 300
        reads += 1
    return reads + 3 if reads else 0


# --- refused ------------------------------------------------------------------------------------------------


def test_an_empty_source_is_refused_and_nothing_is_written(settings: Settings, store: Store, tmp_path: Path) -> None:
    (tmp_path / "source/folder").mkdir(parents=True)
    with pytest.raises(SourceRefused, match="there is no file to publish"):
        published(settings, request(tmp_path / "source"))
    assert stored(settings) == {}


@pytest.mark.integration
def test_a_store_that_lets_several_writers_win_is_refused(
    settings: Settings, rclone: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unsafe = on(rclone, settings, monkeypatch).model_copy(update={"store_retry_s": 20.0})
    with pytest.raises(UnsafeStore):
        published(unsafe, request(write(tmp_path / "source", tree(10))))
    assert storage.open_store(unsafe).keys_under("datasets") == []


# --- what is said -------------------------------------------------------------------------------------------


def test_progress_tells_bytes_shards_and_what_was_spared(settings: Settings, tmp_path: Path) -> None:
    lines: list[str] = []
    wanted = request(write(tmp_path / "source", tree(200)))
    store = storage.open_store(settings)
    made = publish.publish(settings, store, wanted, NOW, lines.append)
    shards = len(made.body.shards)
    assert lines[0].endswith(f"200 files, {made.content_bytes} B, {shards} groups")
    assert f"{shards} of {shards} shards" in lines[-1]


def test_a_manifest_says_where_it_came_from(settings: Settings, store: Store, tmp_path: Path) -> None:
    source = write(tmp_path / "source", tree(20))
    made = published(settings, request(source, note="as the camera wrote it"))
    assert (made.provenance.source, made.provenance.note) == (str(source), "as the camera wrote it")
    assert made.provenance.published_at == NOW
    assert store.exists(f"environments/{made.provenance.environment_id}.json")
    assert "zstd" in made.provenance.code_version
    (move,) = catalog.history(store, "photos", "latest")
    assert (move.version, move.by) == (made.version, f"publish {source}")


def test_over_a_parent_whose_index_is_lost_the_same_version_is_published_and_the_index_is_back(
    settings: Settings, tmp_path: Path
) -> None:
    source = write(tmp_path / "source", tree(200))
    made = published(settings, request(source))
    store = storage.open_store(settings)
    lost = names.index_key("photos", made.body.shards[0].index)
    store.delete(lost)
    again = published(settings, request(source))
    assert (again.version, store.exists(lost)) == (made.version, True)
    assert extracted(store, again) == tree(200)


def test_a_publication_that_failed_for_good_does_not_hold_the_collector_up(settings: Settings, tmp_path: Path) -> None:
    store, source = storage.open_store(settings), write(tmp_path / "source", tree(8))
    planned = publish.plan(settings, store, request(source))
    next(source.rglob("*.jpg")).write_bytes(b"other")
    with pytest.raises(SourceChanged):
        publish.pack(settings, store, planned, 0, silent())
    assert store.keys_under(names.publishers_prefix("photos")) == []
