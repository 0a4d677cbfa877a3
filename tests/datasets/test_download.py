"""Downloading a version: its shards for other readers, its files bit-exact, resumed, and nothing outside the folder."""

import io
import os
import random
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest
import webdataset
import zstandard

from pipelines import storage
from pipelines.datasets import catalog, names
from pipelines.datasets.download import Form, download
from pipelines.datasets.formats.tar import sample_key
from pipelines.datasets.manifest import BLOCK_BYTES, Entry, Format, Manifest, Packing, write_index
from pipelines.datasets.target import WORK
from pipelines.errors import DamagedShard, DownloadRefused, KeyNotFound
from pipelines.settings import Settings
from pipelines.storage import Store
from tests import processes
from tests.conftest import on
from tests.datasets import flaky, trees
from tests.datasets.test_reader import publish, staged
from tests.datasets.trees import published, request, tree, write
from tests.servers import S3

FILES = {
    **tree(60),
    "large": random.Random(9).randbytes(3 * trees.SHARD_BYTES + 7),
    "as large as a range": bytes(trees.SHARD_BYTES),
    "empty": b"",
    "deep/er/and/er/file": b"x",
}
packings = pytest.mark.parametrize(
    ("form", "level"), [("tar", None), ("tar", 3), ("blob", None), ("blob", 3)], ids=lambda value: str(value or "plain")
)


def files_of(settings: Settings, folder: Path, form: Format = "tar", level: int | None = None) -> Manifest:
    """A version of FILES."""
    return published(settings, request(write(folder / "source", FILES), trees.packing_of(form, level)))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fetched(store: Store, made: Manifest, target: Path, form: Form = "files", **how: Any) -> int:
    """Downloads; how many bytes were not there before."""
    done = download(store, made, target, form, say=lambda _: None, **how)
    return done.size_bytes - done.present_bytes


# --- what comes out -----------------------------------------------------------------------------------------


@packings
def test_the_original_files_come_back_bit_exact_and_are_not_fetched_twice(
    any_settings: Settings, tmp_path: Path, form: Format, level: int | None
) -> None:
    made = files_of(any_settings, tmp_path, form, level)
    store = storage.open_store(any_settings)
    said: list[str] = []
    done = download(store, made, tmp_path / "target", "files", said.append)
    assert content(tmp_path / "target") == FILES
    assert (done.files, done.size_bytes, done.present_bytes) == (len(FILES), made.content_bytes, 0)
    assert f"{made.files} of {made.files}" in said[-1]
    for shard in made.body.shards:
        store.delete(names.shard_key(made.dataset, shard.sha256))
    assert fetched(store, made, tmp_path / "target") == 0


@packings
def test_shards_come_as_they_are_stored_and_are_not_fetched_twice(
    any_settings: Settings, tmp_path: Path, form: Format, level: int | None
) -> None:
    made = files_of(any_settings, tmp_path, form, level)
    store = storage.open_store(any_settings)
    download(store, made, tmp_path / "target", "shards", say=print)
    ending = form + (".zst" if level else "")
    assert content(tmp_path / "target") == {
        f"photos-{number:06d}.{ending}": store.read(names.shard_key("photos", shard.sha256))
        for number, shard in enumerate(made.body.shards)
    }
    for shard in made.body.shards:
        store.delete(names.shard_key("photos", shard.sha256))
    assert fetched(store, made, tmp_path / "target", "shards") == 0


@pytest.mark.parametrize("level", [None, 3], ids=["plain", "zstd"])
def test_any_tar_lists_the_files_of_downloaded_shards(
    settings: Settings, store: Store, tmp_path: Path, level: int | None
) -> None:
    download(store, files_of(settings, tmp_path, "tar", level), tmp_path / "target", "shards", say=print)
    found: dict[str, bytes] = {}
    for path in sorted((tmp_path / "target").iterdir()):
        data = path.read_bytes()
        plain = zstandard.ZstdDecompressor().decompressobj().decompress(data) if level else data
        with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
            found |= {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert found == FILES


def test_webdataset_iterates_downloaded_shards(settings: Settings, store: Store, tmp_path: Path) -> None:
    files = tree(80)
    made = published(settings, request(write(tmp_path / "source", files)))
    download(store, made, tmp_path / "target", "shards", say=print)
    last = len(made.body.shards) - 1
    urls = f"{tmp_path}/target/photos-{{000000..{last:06d}}}.tar"
    found = {each["__key__"]: each for each in webdataset.WebDataset(urls, shardshuffle=False)}
    assert {f"{key}.{name}": each[name] for key, each in found.items() for name in ("jpg", "cls")} == files
    assert found.keys() == {sample_key(path) for path in files}


def test_hugging_face_datasets_reads_a_downloaded_folder(settings: Settings, store: Store, tmp_path: Path) -> None:
    made = publish(settings, tmp_path, "parquet", None)
    download(store, made, tmp_path / "target", "shards", say=print)
    count = len(made.body.shards)
    assert sorted(content(tmp_path / "target")) == [f"data-{n:05d}-of-{count:05d}.parquet" for n in range(count)]
    theirs = datasets.load_dataset(str(tmp_path / "target"), split="train", cache_dir=str(tmp_path / "hf"))
    rows = pyarrow.parquet.read_table(tmp_path / "source").to_pylist()
    assert theirs.to_list() == rows
    assert pyarrow.parquet.read_table(tmp_path / "target").to_pylist() == rows


def test_rows_have_no_files_to_download(settings: Settings, store: Store, tmp_path: Path) -> None:
    made = publish(settings, tmp_path, "parquet", None)
    with pytest.raises(DownloadRefused, match="rows"):
        download(store, made, tmp_path / "target", "files", say=print)
    assert not (tmp_path / "target").exists()


# --- what is there already ----------------------------------------------------------------------------------


@packings
@pytest.mark.parametrize("wanted", ["files", "shards"])
def test_a_file_with_other_bytes_is_an_error_that_names_it_unless_it_may_be_overwritten(
    settings: Settings, store: Store, tmp_path: Path, form: Format, level: int | None, wanted: Form
) -> None:
    made = files_of(settings, tmp_path, form, level)
    target = tmp_path / "target"
    download(store, made, target, wanted, say=print)
    right = content(target)
    for path in sorted(right)[::9]:
        for wrong in (right[path][:-1] + b"?", right[path] + b"?", b""):
            if wrong == right[path]:
                continue
            (target / path).write_bytes(wrong)
            with pytest.raises(DownloadRefused, match="another file is there") as e:
                download(store, made, target, wanted, say=print)
            assert e.value.path == str(target / path)
            assert content(target) == {**right, path: wrong}
        (target / path).write_bytes(right[path])
    for path in sorted(right)[::9]:
        (target / path).write_bytes(right[path][1:] + b"?")
    download(store, made, target, wanted, say=print, overwrite=True)
    assert content(target) == right


def test_shards_of_another_version_are_not_left_beside(settings: Settings, store: Store, tmp_path: Path) -> None:
    made = files_of(settings, tmp_path)
    (tmp_path / "target").mkdir()
    (tmp_path / "target/photos-000099.tar").write_bytes(b"of a larger version")
    with pytest.raises(DownloadRefused, match=r"photos-000099\.tar.*would be read with them"):
        download(store, made, tmp_path / "target", "shards", say=print, overwrite=True)
    download(store, made, tmp_path / "target", "files", say=print)


# --- outside of the folder ----------------------------------------------------------------------------------


@packings
def test_nothing_is_written_through_a_link(
    settings: Settings, store: Store, tmp_path: Path, form: Format, level: int | None
) -> None:
    made = files_of(settings, tmp_path, form, level)
    outside, target = tmp_path / "outside", tmp_path / "target"
    write(outside, {"er/and/er/file": b"theirs", "large": b"theirs"})
    before = content(outside)
    for name, leads_to in {
        "deep": outside,
        "large": outside / "large",
        WORK: outside,
        "empty": tmp_path / "no",
    }.items():
        target.mkdir()
        (target / name).symlink_to(leads_to)
        with pytest.raises(DownloadRefused, match=f"target/{name}"):
            download(store, made, target, "files", say=print, overwrite=name == "deep")
        assert content(outside) == before
        assert not (tmp_path / "no").exists()
        (target / name).unlink()
        for path in sorted(target.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        target.rmdir()


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "a//x", "."])
def test_an_index_that_leads_out_of_the_folder_is_refused(
    settings: Settings, store: Store, tmp_path: Path, path: str
) -> None:
    made = published(settings, request(write(tmp_path / "source", {"x": b"1"})))
    (shard,) = made.body.shards
    (entry,) = catalog.index_of(store, "photos", shard)
    evil = Entry(**{**entry.model_dump(), "path": path})
    sha256, data = write_index([evil])
    store.create(names.index_key("photos", sha256), data)
    body = made.body.model_copy(update={"shards": (shard.model_copy(update={"index": sha256}),)})
    forged = made.model_copy(update={"body": body, "version": body.version})
    with pytest.raises(Exception, match="does not stay below its folder"):
        download(store, forged, tmp_path / "target", "files", say=print)
    assert content(tmp_path / "target") == {}


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "fifo"])
def test_what_is_there_and_is_no_file_is_named(
    settings: Settings, store: Store, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    made = files_of(settings, tmp_path)
    (tmp_path / "target").mkdir()
    make(tmp_path / "target/large")
    with pytest.raises(DownloadRefused, match="target/large: something is there that is no file"):
        download(store, made, tmp_path / "target", "files", say=print, overwrite=True)


# --- damage, interruptions ----------------------------------------------------------------------------------


@packings
@pytest.mark.parametrize("wanted", ["files", "shards"])
def test_a_bit_that_flipped_in_the_store_never_reaches_the_folder(
    settings: Settings, store: Store, tmp_path: Path, form: Format, level: int | None, wanted: Form
) -> None:
    made = files_of(settings, tmp_path, form, level)
    download(store, made, tmp_path / "right", wanted, say=print)
    right = content(tmp_path / "right")
    chance = random.Random(4)
    for attempt in range(10):
        shard = chance.choice(made.body.shards)
        path = Path(store.path(names.shard_key("photos", shard.sha256)))
        whole = path.read_bytes()
        place = chance.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :])
        target = tmp_path / f"target{attempt}"
        with pytest.raises(DamagedShard, match=shard.sha256[:12]):
            download(store, made, target, wanted, say=print)
        there = {path: data for path, data in content(target).items() if not path.startswith(WORK)}
        assert there.items() <= right.items()
        path.write_bytes(whole)
        download(store, made, target, wanted, say=print)
        assert content(target) == right


def test_what_is_missing_in_the_store_is_named_and_what_came_before_is_kept(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    made = files_of(settings, tmp_path, "blob")
    key = names.shard_key("photos", made.body.shards[-1].sha256)
    kept = store.read(key)
    store.delete(key)
    with pytest.raises(KeyNotFound, match=made.body.shards[-1].sha256):
        download(store, made, tmp_path / "target", "files", say=print)
    store.create(key, kept)
    assert 0 < fetched(store, made, tmp_path / "target") <= len(kept)
    assert content(tmp_path / "target") == FILES


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, dict[str, bytes], list[Manifest]]:
    """A file of several ranges, and of several blocks in each: as tar, as blob, as compressed blob."""
    folder = tmp_path_factory.mktemp("large")
    settings = Settings(home=folder)
    files = {"model.bin": random.Random(2).randbytes(4 * BLOCK_BYTES + 12345), "small": b"1"}
    write(folder / "source", files)
    packings: list[tuple[Format, int | None]] = [("tar", None), ("blob", None), ("blob", 1)]
    return (
        settings,
        files,
        [
            published(
                settings,
                request(
                    folder / "source",
                    Packing(format=form, shard_bytes=2 * BLOCK_BYTES, zstd_level=level),
                    dataset=f"large{number}",
                ),
            )
            for number, (form, level) in enumerate(packings)
        ],
    )


@pytest.mark.integration
@pytest.mark.parametrize(("number", "wanted"), [(0, "files"), (1, "files"), (2, "files"), (1, "shards")])
def test_killed_at_any_moment_nothing_half_made_is_seen_and_the_next_download_goes_on(
    large: tuple[Settings, dict[str, bytes], list[Manifest]], tmp_path: Path, number: int, wanted: Form
) -> None:
    settings, files, versions = large
    made = versions[number]
    span_s = processes.duration_s(_downloaded, settings, made, tmp_path / "timed", wanted)
    right = content(tmp_path / "timed")
    if wanted == "files":
        assert right == files
    for place, delay_s in enumerate(processes.moments(number, 6, span_s)):
        target = tmp_path / str(place)
        processes.kill_after(delay_s, _downloaded, settings, made, target, wanted)
        there = content(target) if target.exists() else {}
        assert {path: data for path, data in there.items() if not path.startswith(WORK)}.items() <= right.items()
        _downloaded(settings, made, target, wanted)
        assert content(target) == right
        assert not (target / WORK).exists()


def _downloaded(settings: Settings, made: Manifest, target: Path, wanted: Form) -> None:
    download(storage.open_store(settings), made, target, wanted, say=lambda _: None)


def test_blocks_and_ranges_that_an_earlier_attempt_has_left_are_not_fetched_again(
    large: tuple[Settings, dict[str, bytes], list[Manifest]], tmp_path: Path
) -> None:
    settings, files, versions = large
    store = storage.open_store(settings)
    wanted: Form
    for made, wanted, left in ((versions[0], "shards", 1), (versions[1], "files", 2)):
        target = tmp_path / wanted
        shard = made.body.shards[0 if wanted == "shards" else 1]
        path = Path(store.path(names.shard_key(made.dataset, shard.sha256)))
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(DamagedShard):
            download(store, made, target, wanted, say=print)
        path.write_bytes(whole)
        assert fetched(store, made, target, wanted) <= left * BLOCK_BYTES + 12345 + 4096
    assert content(tmp_path / "files") == files


def test_two_downloads_into_one_folder_come_one_after_the_other(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    made = files_of(settings, tmp_path)
    processes.at_once(_downloaded, [(settings, made, tmp_path / "target", "files")] * 4)
    assert content(tmp_path / "target") == FILES


def test_what_the_cache_has_does_not_come_from_the_store_and_its_damage_does_not_reach_the_folder(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    made = files_of(settings, tmp_path, "blob")
    cache = staged(settings, made)
    damaged, *others = made.body.shards
    for shard in others:
        store.delete(names.shard_key("photos", shard.sha256))
    cache.path(damaged.sha256).write_bytes(bytes(damaged.size_bytes))
    download(store, made, tmp_path / "target", "files", say=print, cache=cache)
    assert content(tmp_path / "target") == FILES
    assert cache.open(damaged) is None
    assert [each.is_in_use for each in cache.present()] == [False] * len({shard.sha256 for shard in others})


def test_nothing_stays_open_after_a_download_that_failed(settings: Settings, store: Store, tmp_path: Path) -> None:
    made = files_of(settings, tmp_path, "blob")
    store.delete(names.shard_key("photos", made.body.shards[3].sha256))
    threads, before = threading.active_count(), {path.name for path in Path("/proc/self/fd").iterdir()}
    with pytest.raises(KeyNotFound):
        download(store, made, tmp_path / "target", "files", say=print)
    assert {path.name for path in Path("/proc/self/fd").iterdir()} <= before
    assert threading.active_count() == threads


@pytest.mark.integration
def test_a_network_that_cuts_connections_gives_every_byte(
    moto: S3, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = on(moto, settings, monkeypatch).model_copy(update={"store_retry_s": 60.0})
    made = files_of(direct, tmp_path)
    with flaky.cutting(moto, seed=5, cuts=20) as proxy:
        store = storage.open_store(direct.model_copy(update={"s3_endpoint": proxy.endpoint}))
        download(store, made, tmp_path / "target", "files", say=print)
    assert content(tmp_path / "target") == FILES
