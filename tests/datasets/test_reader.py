"""Reading a version: every sample once, in an order that a seed decides, resumed at the sample, never a wrong byte."""

import json
import os
import random
import threading
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet
import pytest
import webdataset
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from pipelines import storage
from pipelines.datasets import catalog, download, names, stage
from pipelines.datasets.cache import Cache
from pipelines.datasets.events import Arrival
from pipelines.datasets.formats.tar import sample_key
from pipelines.datasets.manifest import Format, Manifest, Packing
from pipelines.datasets.reader import open_version
from pipelines.datasets.samples import Sample
from pipelines.errors import AmbiguousSample, CorruptObject, DamagedShard, KeyNotFound, WrongState
from pipelines.settings import Settings
from pipelines.storage import Store
from tests import processes
from tests.conftest import on
from tests.datasets import flaky, trees
from tests.datasets.trees import published, request, tree, write
from tests.servers import S3

FORMATS: list[tuple[Format, int | None]] = [("tar", None), ("tar", 3), ("blob", None), ("blob", 3), ("parquet", None)]
every_format = pytest.mark.parametrize(("form", "level"), FORMATS, ids=lambda value: str(value or "plain"))
ROWS = 20_000


def source(folder: Path, form: Format, count: int = 120) -> Path:
    if form != "parquet":
        return write(folder, tree(count))
    folder.mkdir(parents=True)
    chance = random.Random(3)
    table = pa.table({"n": range(ROWS), "text": [chance.randbytes(12).hex() for _ in range(ROWS)]})
    for part in range(4):
        pa.parquet.write_table(
            table.slice(part * ROWS // 4, ROWS // 4), folder / f"{part}.parquet", row_group_size=1000
        )
    return folder


def publish(settings: Settings, folder: Path, form: Format, level: int | None, count: int = 120) -> Manifest:
    wanted = request(source(folder / "source", form, count), trees.packing_of(form, level), dataset=form)
    return published(settings, wanted)


def read(settings: Settings, reference: str, epoch: int = 0, **how: Any) -> list[Sample]:
    with open_version(settings, reference, **how) as data:
        return list(data.epoch(epoch))


def keys(samples: list[Sample]) -> list[Any]:
    """What tells samples apart."""
    return [sample["n"] if "n" in sample else (sample["__key__"], sample.get("__at__")) for sample in samples]


# --- what a sample is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [None, 3], ids=["plain", "zstd"])
def test_samples_of_tar_are_the_source_files_by_key_and_ending(
    any_settings: Settings, tmp_path: Path, level: int | None
) -> None:
    files = {**tree(60), "a.tar.gz": b"1", "a.json": b"", "b/no ending": b"2", ".hidden": b"3", "b/c.d/e.F": b"4"}
    published(any_settings, request(write(tmp_path / "source", files), trees.packing_of("tar", level)))
    right: dict[str, Sample] = {}
    for path, data in files.items():
        key = sample_key(path)
        right.setdefault(key, {"__key__": key})[path.removeprefix(key).removeprefix(".")] = data
    for seed in (None, 5):
        found = read(any_settings, "photos", shuffle_seed=seed)
        assert sorted(found, key=lambda each: each["__key__"]) == [right[key] for key in sorted(right)]
    assert next(each for each in found if each["__key__"] == "a") == {"__key__": "a", "tar.gz": b"1", "json": b""}


@pytest.mark.parametrize("level", [None, 3], ids=["plain", "zstd"])
def test_samples_of_blob_are_the_ranges_of_the_source_files(
    any_settings: Settings, tmp_path: Path, level: int | None
) -> None:
    files = {**tree(40), "large": random.Random(9).randbytes(3 * trees.SHARD_BYTES + 7), "empty": b""}
    published(any_settings, request(write(tmp_path / "source", files), trees.packing_of("blob", level)))
    for seed in (None, 5):
        found: dict[str, dict[int, bytes]] = {}
        for sample in read(any_settings, "photos", shuffle_seed=seed):
            data = sample["data"]
            assert found.setdefault(sample["__key__"], {}).setdefault(sample["__at__"], data) is data
        assert {path: b"".join(parts[at] for at in sorted(parts)) for path, parts in found.items()} == files
    assert sorted(found["large"]) == [0, trees.SHARD_BYTES, 2 * trees.SHARD_BYTES, 3 * trees.SHARD_BYTES]


def test_samples_of_parquet_are_its_rows(any_settings: Settings, tmp_path: Path) -> None:
    publish(any_settings, tmp_path, "parquet", None)
    rows = pa.parquet.read_table(tmp_path / "source").to_pylist()
    assert read(any_settings, "parquet") == rows
    shuffled = read(any_settings, "parquet", shuffle_seed=5)
    assert shuffled != rows
    assert sorted(shuffled, key=lambda row: row["n"]) == rows


def test_webdataset_reads_the_same_samples_in_the_same_order(settings: Settings, store: Store, tmp_path: Path) -> None:
    made = publish(settings, tmp_path, "tar", None)
    download.download(store, made, tmp_path / "shards", "shards", say=print)
    tars = sorted(map(str, (tmp_path / "shards").iterdir()))
    theirs = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
    assert [
        {name: each[name] for name in each if name not in {"__url__", "__local_path__"}} for each in theirs
    ] == read(settings, "tar")
    assert len(theirs) == made.samples


def test_files_that_a_sample_cannot_tell_apart_are_an_error_and_not_one_of_them(
    settings: Settings, tmp_path: Path
) -> None:
    for number, files in enumerate(({"a": b"1", "a.": b"2"}, {"a.__key__": b"1"})):
        published(settings, request(write(tmp_path / str(number), files), dataset=f"odd{number}"))
        with pytest.raises(AmbiguousSample):
            read(settings, f"odd{number}")


# --- order --------------------------------------------------------------------------------------------------


class Published(NamedTuple):
    settings: Settings
    versions: list[Manifest]


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Versions of one sample to some hundreds, in one shard to twenty."""
    folder = tmp_path_factory.mktemp("sizes")
    settings = Settings(home=folder)
    made = []
    for place, count in enumerate((1, 2, 7, 40, 133, 400)):
        form, level = FORMATS[place % 4]
        wanted = request(
            write(folder / str(count), tree(2 * count)), trees.packing_of(form, level), dataset=f"n{count}"
        )
        made.append(published(settings, wanted))
    return Published(settings, made)


@examples(max_examples=50, deadline=None)
@given(
    number=st.integers(0, 5),
    seed=st.none() | st.integers(0, 3),
    epoch=st.integers(0, 2),
    window=st.integers(1, 30),
    world=st.integers(1, 5),
    workers=st.integers(1, 4),
)
def test_all_slices_together_are_the_epoch_every_sample_once(
    sizes: Published, number: int, seed: int | None, epoch: int, window: int, world: int, workers: int
) -> None:
    made = sizes.versions[number]
    order: dict[str, Any] = {"shuffle_seed": seed, "window": window, "epoch": epoch}
    whole = keys(read(sizes.settings, made.reference, **order))
    slices = [
        keys(read(sizes.settings, made.reference, **order, rank=rank, world=world, worker=worker, workers=workers))
        for rank in range(world)
        for worker in range(workers)
    ]
    assert list(chain.from_iterable(slices)) == whole
    assert len(whole) == len(set(whole)) == made.samples
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


@pytest.mark.parametrize(("form", "level"), [FORMATS[0], FORMATS[4]])
def test_seed_epoch_and_window_decide_the_order_on_any_machine(
    settings: Settings, tmp_path: Path, form: Format, level: int | None
) -> None:
    publish(settings, tmp_path, form, level)
    orders = [
        {"shuffle_seed": 1},
        {"shuffle_seed": 2},
        {"shuffle_seed": 1, "epoch": 1},
        {"shuffle_seed": 1, "window": 2},
    ]
    here = [keys(read(settings, form, **how)) for how in orders]
    assert len({tuple(each) for each in here}) == 4
    elsewhere = processes.at_once(_keys, [(settings, form, how) for how in orders])
    assert elsewhere == here


def _keys(settings: Settings, reference: str, how: dict[str, Any]) -> list[Any]:
    return keys(read(settings, reference, **how))


def test_without_a_seed_samples_come_as_they_lie_in_the_version(settings: Settings, tmp_path: Path) -> None:
    made = publish(settings, tmp_path, "tar", None)
    store = storage.open_store(settings)
    entries = [entry.path for shard in made.body.shards for entry in catalog.index_of(store, "tar", shard)]
    found = [sample["__key__"] for sample in read(settings, "tar")]
    assert found == list(dict.fromkeys(sample_key(path) for path in entries))
    assert found == [sample["__key__"] for sample in read(settings, "tar", epoch=3)]


def test_a_window_mixes_as_many_shards_as_it_has_and_no_more(settings: Settings, tmp_path: Path) -> None:
    made = publish(settings, tmp_path, "tar", None, count=400)
    store = storage.open_store(settings)
    shard_of = {
        sample_key(entry.path): number
        for number, shard in enumerate(made.body.shards)
        for entry in catalog.index_of(store, "tar", shard)
    }
    for window in (1, 3):
        with open_version(settings, "tar", shuffle_seed=4, window=window) as data:
            of = [shard_of[sample["__key__"]] for sample in data.epoch(0)]
        place, windows = 0, []
        while place < len(of):
            its_shards: set[int] = set()
            while place < len(of) and (of[place] in its_shards or len(its_shards) < window):
                its_shards.add(of[place])
                place += 1
            windows.append(its_shards)
        assert sum(map(len, windows)) == len(made.body.shards), "a shard came up in two windows"
        changes = sum(before != after for before, after in pairwise(of))
        assert changes == len(made.body.shards) - 1 if window == 1 else changes > len(of) // 2


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """70 MB in shards of 20 MB: several portions in a shard, several rounds in a window."""
    folder = tmp_path_factory.mktemp("large")
    settings = Settings(home=folder)
    files = {path: data for path, data in tree(280, 500_000).items() if path.endswith("jpg")}
    write(folder / "source", files)
    packings = [Packing(format="tar", shard_bytes=20_000_000, zstd_level=level) for level in (None, 1)]
    return Published(
        settings,
        [
            published(settings, request(folder / "source", packing, dataset=f"large{number}"))
            for number, packing in enumerate(packings)
        ],
    )


@pytest.mark.parametrize("number", [0, 1], ids=["plain", "zstd"])
@pytest.mark.parametrize("seed", [None, 8])
def test_shards_that_are_read_in_portions_give_every_sample_once_in_slices_and_resumed(
    large: Published, number: int, seed: int | None
) -> None:
    files = {path: path.read_bytes() for path in (large.settings.home / "source").rglob("*.jpg")}
    made = large.versions[number]
    slices = [
        read(large.settings, made.reference, shuffle_seed=seed, window=2, rank=rank, world=3) for rank in range(3)
    ]
    found = list(chain.from_iterable(slices))
    assert {large.settings.home / "source" / f"{each['__key__']}.jpg": each["jpg"] for each in found} == files
    assert len(found) == len(files)
    how: dict[str, Any] = {"shuffle_seed": seed, "window": 2}
    with open_version(large.settings, made.reference, **how) as data:
        samples = data.epoch(0)
        before = [next(samples) for _ in range(len(files) * 2 // 3)]
        state = data.state_dict()
    assert before == found[: len(before)]
    assert _resumed(large.settings, made.reference, state, how) == found[len(before) :]


# --- resuming -----------------------------------------------------------------------------------------------


def _resumed(settings: Settings, reference: str, state: Any, how: dict[str, Any]) -> list[Sample]:
    with open_version(settings, reference, **how) as data:
        return list(data.epoch(data.load_state_dict(state)))


@every_format
def test_another_process_goes_on_at_the_very_next_sample(
    settings: Settings, tmp_path: Path, form: Format, level: int | None
) -> None:
    publish(settings, tmp_path, form, level)
    how: dict[str, Any] = {"shuffle_seed": 6, "window": 3, "rank": 1, "world": 2}
    whole = read(settings, form, epoch=4, **how)
    tasks = []
    with open_version(settings, form, **how) as data:
        samples = data.epoch(4)
        for given_ in (1, len(whole) // 2):
            while data.state_dict()["position"] < given_:
                next(samples)
            tasks.append((settings, form, json.loads(json.dumps(data.state_dict())), how))
    for task, rest in zip(tasks, processes.at_once(_resumed, tasks), strict=True):
        assert rest == whole[task[2]["position"] :]


@examples(max_examples=40, deadline=None)
@given(number=st.integers(0, 5), stops=st.lists(st.integers(0, 60), max_size=4), seed=st.none() | st.integers(0, 3))
def test_stopped_and_resumed_any_number_of_times_an_epoch_is_the_same(
    sizes: Published, number: int, stops: list[int], seed: int | None
) -> None:
    made = sizes.versions[number]
    how: dict[str, Any] = {"shuffle_seed": seed, "window": 4, "worker": 1, "workers": 2}
    whole = read(sizes.settings, made.reference, epoch=1, **how)
    found: list[Sample] = []
    state = None
    for stop in [*stops, 10**9]:
        with open_version(sizes.settings, made.reference, **how) as data:
            if state is not None:
                assert data.load_state_dict(state) == 1
            for taken, sample in enumerate(data.epoch(1)):
                found.append(sample)
                if taken == stop:
                    break
            state = data.state_dict()
    assert found == whole


def test_a_state_counts_for_its_epoch_alone_and_once(settings: Settings, tmp_path: Path) -> None:
    made = publish(settings, tmp_path, "tar", None)
    with open_version(settings, "tar", shuffle_seed=1) as data:
        samples = data.epoch(1)
        state = [data.state_dict(), next(samples), data.state_dict()][2]
        assert data.load_state_dict(state) == 1
        assert data.state_dict() == state
        assert len(list(data.epoch(1))) == made.samples - 1 == len(data) - 1
        assert len(list(data.epoch(1))) == made.samples
        data.load_state_dict(state)
        assert len(list(data.epoch(2))) == made.samples


def test_a_state_of_another_reading_is_refused_and_says_which(settings: Settings, tmp_path: Path) -> None:
    publish(settings, tmp_path, "tar", None)
    how: dict[str, Any] = {"shuffle_seed": 1, "window": 4, "rank": 1, "world": 2, "worker": 0, "workers": 3}
    with open_version(settings, "tar", **how) as data:
        state = data.state_dict()
        length = len(data)
    other = {"shuffle_seed": 2, "window": 5, "rank": 0, "world": 3, "worker": 1, "workers": 4}
    for name, value in other.items():
        with open_version(settings, "tar", **{**how, name: value}) as data, pytest.raises(WrongState) as e:
            data.load_state_dict(state)
        assert (e.value.what, e.value.expected) == (name.removeprefix("shuffle_"), str(value))
    published(settings, request(write(tmp_path / "source", {"one more.txt": b""}), dataset="tar"))
    with open_version(settings, "tar", **how) as data, pytest.raises(WrongState, match="its version is"):
        data.load_state_dict(state)
    with open_version(settings, state["dataset"] + "@" + state["version"], **how) as data:
        for wrong in ({}, {**state, "position": -1}, {**state, "more": 1}, {**state, "position": length + 1}):
            with pytest.raises(WrongState):
                data.load_state_dict(wrong)
        assert data.load_state_dict({**state, "position": length}) == 0
        assert list(data.epoch(0)) == []


# --- damage -------------------------------------------------------------------------------------------------


def flipped(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@every_format
def test_a_bit_that_flipped_in_the_store_is_an_error_or_no_byte_of_a_sample(
    settings: Settings, store: Store, tmp_path: Path, form: Format, level: int | None
) -> None:
    made = publish(settings, tmp_path, form, level, count=40)
    right = read(settings, form, shuffle_seed=1)
    chance = random.Random(f"{form} {level}")
    noticed = 0
    for _ in range(40):
        shard = chance.choice(made.body.shards)
        path = Path(store.path(names.shard_key(form, shard.sha256)))
        bit = chance.randrange(8 * shard.size_bytes)
        flipped(path, bit)
        try:
            found = read(settings, form, shuffle_seed=1)
        except DamagedShard as e:
            noticed += e.shard == shard.sha256
        else:
            assert found == right, "the bit is of a header or the padding of a tar, or a wrong byte was served"
        flipped(path, bit)
    assert noticed == 40 if level or form != "tar" else 20 < noticed < 40


@every_format
def test_an_epoch_that_met_damage_does_not_end_as_if_it_were_over(
    settings: Settings, store: Store, tmp_path: Path, form: Format, level: int | None
) -> None:
    made = publish(settings, tmp_path, form, level)
    Path(store.path(names.shard_key(form, made.body.shards[-1].sha256))).write_bytes(b"cut short")
    with open_version(settings, form) as data:
        samples = data.epoch(0)
        for _ in range(2):
            with pytest.raises(DamagedShard, match="damaged"):
                list(samples)
        assert data.state_dict()["position"] < made.samples


def test_what_the_store_has_not_is_named(settings: Settings, store: Store, tmp_path: Path) -> None:
    made = publish(settings, tmp_path, "tar", None)
    shard = made.body.shards[1]
    index = Path(store.path(names.index_key("tar", shard.index)))
    kept = index.read_bytes()
    index.write_bytes(kept[:-5])
    with pytest.raises(CorruptObject, match=shard.index):
        read(settings, "tar")
    index.write_bytes(kept)
    store.delete(names.shard_key("tar", shard.sha256))
    with pytest.raises(KeyNotFound, match=shard.sha256):
        read(settings, "tar")


@pytest.mark.integration
def test_a_network_that_cuts_connections_gives_every_sample_and_every_byte(
    moto: S3, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = on(moto, settings, monkeypatch).model_copy(update={"store_retry_s": 60.0})
    publish(direct, tmp_path, "tar", None, count=200)
    right = read(direct, "tar", shuffle_seed=1)
    with flaky.cutting(moto, seed=3, cuts=30) as proxy:
        found = read(direct.model_copy(update={"s3_endpoint": proxy.endpoint}), "tar", shuffle_seed=1)
    assert found == right


# --- what is read and held ----------------------------------------------------------------------------------


def test_a_slice_opens_the_shards_of_its_part_alone(settings: Settings, store: Store, tmp_path: Path) -> None:
    made = publish(settings, tmp_path, "tar", None, count=400)
    folder = Path(store.path(names.shards_prefix("tar")))
    count = len(made.body.shards)
    with trees.opened(folder) as seen:
        read(settings, "tar", shuffle_seed=1, window=1, rank=4, world=count)
    assert 1 <= len(set(seen)) <= 2
    with trees.opened(folder) as seen:
        read(settings, "tar", shuffle_seed=1, window=2, rank=0, world=count // 2)
    assert 2 <= len(set(seen)) <= 4


def _descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@every_format
def test_nothing_stays_open_when_a_reader_is_left(
    settings: Settings, tmp_path: Path, form: Format, level: int | None
) -> None:
    publish(settings, tmp_path, form, level)
    before = _descriptors()
    with open_version(settings, form, shuffle_seed=1) as data:
        samples = data.epoch(0)
        next(samples)
        again = data.epoch(0)
        next(again)
        with pytest.raises(ValueError, match="began another one"):
            next(samples)
    with pytest.raises(ValueError, match="closed"):
        next(again)
    assert _descriptors() <= before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dataset-reader")]


# --- the node's cache ---------------------------------------------------------------------------------------


def staged(settings: Settings, made: Manifest) -> Cache:
    """The node's cache with all of a version in it."""
    found = stage.stage(
        settings, storage.open_store(settings), made, made.body.shards, staging_id="20261121T020000Z-1", say=print
    )
    assert {each.arrival for each in found.transfers} == {Arrival.FETCHED}
    return Cache.of(settings)


@every_format
def test_what_the_cache_has_is_not_read_from_the_store(
    settings: Settings, store: Store, tmp_path: Path, form: Format, level: int | None
) -> None:
    made = publish(settings, tmp_path, form, level)
    right = read(settings, form, shuffle_seed=1)
    staged(settings, made)
    for shard in made.body.shards:
        store.delete(names.shard_key(form, shard.sha256))
    assert read(settings, form, shuffle_seed=1) == right


@every_format
def test_a_bit_that_flipped_in_the_cache_is_never_served_and_its_shard_comes_from_the_store(
    settings: Settings, tmp_path: Path, form: Format, level: int | None
) -> None:
    made = publish(settings, tmp_path, form, level, count=40)
    right = read(settings, form, shuffle_seed=1)
    cache = staged(settings, made)
    chance = random.Random(f"{form} {level}")
    noticed = 0
    for _ in range(20):
        shard = chance.choice(made.body.shards)
        path = cache.path(shard.sha256)
        path.chmod(0o600)
        flipped(path, bit := chance.randrange(8 * shard.size_bytes))
        with open_version(settings, form, shuffle_seed=1) as data:
            assert list(data.epoch(0)) == right
            assert data.damaged in ([], [shard.sha256])
        assert path.exists() == (not data.damaged)
        if data.damaged:
            noticed += 1
            assert (cache.root / "damaged" / shard.sha256).exists()
            with open_version(settings, form, shuffle_seed=1) as data:
                assert list(data.epoch(0)) == right
                assert data.damaged == [], "it would have been read from the cache again"
            (cache.root / "damaged" / shard.sha256).replace(path)
        flipped(path, bit)
    assert noticed == 20 if level or form != "tar" else 10 < noticed < 20


def test_a_cached_shard_that_was_cut_short_or_emptied_is_read_from_the_store(
    settings: Settings, tmp_path: Path
) -> None:
    made = publish(settings, tmp_path, "tar", None)
    right = read(settings, "tar")
    cache = staged(settings, made)
    for shard, size in zip(made.body.shards, (0, 1, 1000), strict=False):
        cache.path(shard.sha256).chmod(0o600)
        os.truncate(cache.path(shard.sha256), size)
    with open_version(settings, "tar") as data:
        assert list(data.epoch(0)) == right
    assert sorted(data.damaged) == sorted(shard.sha256 for shard in made.body.shards[:3])


def test_damage_in_the_cache_and_in_the_store_is_an_error(settings: Settings, store: Store, tmp_path: Path) -> None:
    made = publish(settings, tmp_path, "blob", None)
    cache = staged(settings, made)
    shard = made.body.shards[0]
    cache.path(shard.sha256).chmod(0o600)
    flipped(cache.path(shard.sha256), 77)
    flipped(Path(store.path(names.shard_key("blob", shard.sha256))), 77)
    with pytest.raises(DamagedShard, match=shard.sha256[:12]):
        read(settings, "blob")
    assert cache.open(shard) is None


def test_what_is_being_read_is_not_evicted_and_afterwards_it_can_be(settings: Settings, tmp_path: Path) -> None:
    made = publish(settings, tmp_path, "tar", None)
    cache = staged(settings, made)
    every = [shard.sha256 for shard in made.body.shards]
    with open_version(settings, "tar", shuffle_seed=1, window=len(every)) as data:
        samples = data.epoch(0)
        next(samples)
        assert cache.evict(every) == ()
    assert sorted(cache.evict(every)) == sorted(every)


def test_readers_that_meet_the_same_damage_at_once_all_get_every_sample(settings: Settings, tmp_path: Path) -> None:
    made = publish(settings, tmp_path, "tar", None)
    right = keys(read(settings, "tar", shuffle_seed=1))
    cache = staged(settings, made)
    for shard in made.body.shards:
        cache.path(shard.sha256).write_bytes(bytes(shard.size_bytes))
    how = {"shuffle_seed": 1}
    assert processes.at_once(_keys, [(settings, "tar", how)] * 4) == [right] * 4
    assert cache.present() == []
