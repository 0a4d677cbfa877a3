"""Staging: each shard fetched once, checked as it comes, resumed where it stopped, and never a wrong byte."""

import os
import resource
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.datasets import names, stage
from pipelines.datasets.cache import Cache
from pipelines.datasets.events import Arrival, Staging
from pipelines.datasets.incoming import receiving
from pipelines.datasets.manifest import BLOCK_BYTES, Manifest
from pipelines.datasets.materialise import materialise
from pipelines.errors import CacheFull
from pipelines.settings import Settings
from tests import processes, servers
from tests.conftest import on
from tests.datasets import flaky, halting
from tests.datasets.published import publish, random_files
from tests.datasets.staged import STAGING, arrivals, distinct, large, require_right, stage_all, version
from tests.node.conftest import Mount, mount
from tests.servers import S3

__all__ = ["mount"]  # a fixture

FILE_BYTES, SHARD_BYTES = 5 * BLOCK_BYTES + 12_345, 3 * BLOCK_BYTES


def roomy(settings: Settings, **more: object) -> Settings:
    return settings.model_copy(update={"cache_bytes": 10**9, "cache_floor_bytes": 0, **more})


@pytest.fixture
def here(any_settings: Settings) -> Settings:
    """Each kind of store in turn."""
    return roomy(any_settings)


@pytest.fixture
def local(settings: Settings) -> Settings:
    return roomy(settings)


@pytest.fixture
def there(settings: Settings, moto: S3, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A store that has time to come back."""
    return roomy(on(moto, settings, monkeypatch), store_retry_s=20.0)


def flip(path: Path, at: int) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_version_is_fetched_once_and_is_present_from_then_on(here: Settings, tmp_path: Path) -> None:
    made = version(here, tmp_path / "source")
    first, second = stage_all(here, made), stage_all(here, made)
    assert set(arrivals(first)) == {Arrival.FETCHED}
    assert set(arrivals(second)) == {Arrival.PRESENT}
    assert [transfer.fetched_bytes for transfer in first.transfers] == [s.size_bytes for s in distinct(made)]
    assert sum(transfer.fetched_bytes for transfer in second.transfers) == 0
    require_right(here)


def test_shards_of_several_blocks_come_whole(here: Settings, tmp_path: Path) -> None:
    made = large(here, tmp_path / "source", FILE_BYTES, SHARD_BYTES)
    assert arrivals(stage_all(here, made)) == [Arrival.FETCHED, Arrival.FETCHED]
    require_right(here)
    with materialise(here, storage.open_store(here), made, lambda _: None) as folder:
        assert (folder / "weights.bin").read_bytes() == (tmp_path / "source/weights.bin").read_bytes()
        files_bytes = Cache.of(here).room().held_bytes - made.stored_bytes
        assert 0 <= files_bytes - made.content_bytes < 2**20  # a disk gives whole blocks
    assert list(Cache.of(here).files()) == []


def test_a_download_goes_on_at_its_last_good_block(local: Settings, tmp_path: Path) -> None:
    made = large(local, tmp_path / "source", FILE_BYTES, SHARD_BYTES)
    shard = distinct(made)[0]
    data = storage.open_store(local).read(names.shard_key("weights", shard.sha256))
    with receiving(Cache.of(local), shard, frozenset(), lambda _: None) as partial:
        assert partial is not None
        os.pwrite(partial.descriptor, data[: BLOCK_BYTES + 1000], 0)  # and there it was killed
    (transfer,) = stage_all(local, made, [shard]).transfers
    assert (transfer.arrival, transfer.fetched_bytes) == (Arrival.RESUMED, shard.size_bytes - BLOCK_BYTES)
    require_right(local)


def test_a_wrong_byte_in_what_an_earlier_download_left_is_fetched_again(local: Settings, tmp_path: Path) -> None:
    made = large(local, tmp_path / "source", FILE_BYTES, SHARD_BYTES)
    shard = distinct(made)[0]
    data = bytearray(storage.open_store(local).read(names.shard_key("weights", shard.sha256)))
    data[5] ^= 1
    with receiving(Cache.of(local), shard, frozenset(), lambda _: None) as partial:
        assert partial is not None
        os.pwrite(partial.descriptor, bytes(data), 0)
    (transfer,) = stage_all(local, made, [shard]).transfers
    assert transfer.fetched_bytes == shard.size_bytes
    require_right(local)


@pytest.mark.parametrize("place", [0, 3 * BLOCK_BYTES // 2, -1])
def test_a_flipped_bit_in_the_cache_is_found_put_away_and_fetched_again(
    local: Settings, tmp_path: Path, place: int
) -> None:
    made = large(local, tmp_path / "source", FILE_BYTES, SHARD_BYTES)
    stage_all(local, made)
    shard = distinct(made)[0]
    flip(Cache.of(local).path(shard.sha256), place)
    assert arrivals(stage_all(local, made)) == [Arrival.FETCHED, Arrival.PRESENT]
    require_right(local)


@pytest.mark.parametrize("place", [0, 3 * BLOCK_BYTES // 2, -1])
def test_a_flipped_bit_in_the_store_is_named_nothing_of_it_is_kept_and_the_rest_is_staged(
    local: Settings, tmp_path: Path, place: int
) -> None:
    made = large(local, tmp_path / "source", FILE_BYTES, SHARD_BYTES)
    shard = distinct(made)[0]
    flip(Path(storage.open_store(local).path(names.shard_key("weights", shard.sha256))), place)
    failed, other = stage_all(local, made).transfers
    assert (failed.arrival, other.arrival) == (Arrival.FAILED, Arrival.FETCHED)
    assert f"shard {shard.sha256[:12]} of dataset weights is damaged: expected xxh3" in failed.reason
    assert list((local.cache_root / "partial").iterdir()) == []
    require_right(local)


def test_a_shard_that_is_gone_from_the_store_is_a_transfer_that_says_so(local: Settings, tmp_path: Path) -> None:
    made = version(local, tmp_path / "source")
    shard, *others = distinct(made)
    store = storage.open_store(local)
    store.delete(names.shard_key("photos", shard.sha256))
    failed, *rest = stage_all(local, made).transfers
    assert (failed.arrival, f"there is no object {store.url('datasets')}" in failed.reason) == (Arrival.FAILED, True)
    assert {transfer.arrival for transfer in rest} == {Arrival.FETCHED}
    assert len(rest) == len(others)
    assert list((local.cache_root / "partial").iterdir()) == []


def test_two_datasets_with_files_of_equal_names_do_not_collide(local: Settings, tmp_path: Path) -> None:
    first = version(local, tmp_path / "a", seed=1, dataset="a")
    second = version(local, tmp_path / "b", seed=2, dataset="b")
    assert set(arrivals(stage_all(local, first)) + arrivals(stage_all(local, second))) == {Arrival.FETCHED}
    require_right(local)


def test_a_shard_that_begins_with_zeros_was_fetched_and_not_resumed(local: Settings) -> None:
    content = bytes(2 * BLOCK_BYTES) + b"x"
    made = publish(local, storage.open_store(local), {"zeros.bin": content}, shard_bytes=2**30)
    (transfer,) = stage_all(local, made).transfers
    assert (transfer.arrival, transfer.fetched_bytes) == (Arrival.FETCHED, len(content))


def test_an_interrupted_staging_ends_with_the_block_it_is_at_and_the_next_goes_on(
    local: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = large(local, tmp_path / "source", 12 * BLOCK_BYTES, 12 * BLOCK_BYTES)
    stage_all(local, made)
    (shard,) = distinct(made)
    flip(Cache.of(local).path(shard.sha256), 0)
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    def say(line: str) -> None:
        if "is damaged in the cache" in line:  # and is about to be fetched
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupted.wait(10)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            stage.stage(local, storage.open_store(local), made, [shard], staging_id=STAGING, say=say)
    finally:
        signal.signal(signal.SIGINT, before)
    assert Cache.of(local).present() == []
    assert [path.name for path in (local.cache_root / "partial").iterdir()] == [shard.sha256]
    assert set(arrivals(stage_all(local, made))) <= {Arrival.FETCHED, Arrival.RESUMED}
    require_right(local)


def test_a_disk_that_takes_no_more_fails_the_shard_by_name_and_a_retry_goes_on(local: Settings, tmp_path: Path) -> None:
    made = large(local, tmp_path / "source", 3 * BLOCK_BYTES, 3 * BLOCK_BYTES)
    with receiving(Cache.of(local), distinct(made)[0], frozenset(), lambda _: None):
        pass  # its space is taken: it is writing that fails
    (limited,) = processes.at_once(_stage_with_small_files, [(local, made)])
    (transfer,) = limited.transfers
    assert (transfer.arrival, "cannot be used: File too large" in transfer.reason) == (Arrival.FAILED, True)
    (transfer,) = stage_all(local, made).transfers
    assert (transfer.arrival, transfer.fetched_bytes) == (Arrival.RESUMED, 2 * BLOCK_BYTES)
    require_right(local)


def _stage_with_small_files(settings: Settings, of: Manifest) -> Staging:
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK_BYTES, BLOCK_BYTES))
    return stage_all(settings, of)


def test_files_are_made_of_what_is_cached_and_other_versions_give_way_to_them(local: Settings) -> None:
    store = storage.open_store(local)
    other = publish(local, store, random_files(2, 4, 60_000), dataset="other")
    files = random_files(1, 4, 60_000)
    made = publish(local, store, files)
    tight = local.model_copy(update={"cache_bytes": 2 * made.stored_bytes + other.stored_bytes})
    stage_all(tight, made)  # used longer ago than the other
    stage_all(tight, other)
    for shard in distinct(made):
        store.delete(names.shard_key("d", shard.sha256))
    with materialise(tight, store, made, lambda _: None) as folder:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    require_right(tight)


def test_what_was_done_is_kept_once(local: Settings, tmp_path: Path) -> None:
    store = storage.open_store(local)
    done = stage_all(local, version(local, tmp_path / "source"))
    stage.record(store, done)
    stage.record(store, done)
    assert type(done).model_validate_json(store.read(names.staging_key(done.staging_id, "localhost"))) == done


@pytest.mark.integration
def test_of_many_stagers_at_once_one_fetches_each_shard_and_all_have_it(here: Settings, tmp_path: Path) -> None:
    made = version(here, tmp_path / "source", files=30)
    answers = processes.at_once(stage_all, [(here, made)] * 6)
    for number in range(len(distinct(made))):
        seen = [arrivals(answer)[number] for answer in answers]
        assert seen.count(Arrival.FETCHED) == 1
        assert seen.count(Arrival.PRESENT) == 5
    require_right(here)


@pytest.mark.integration
def test_of_many_stagers_that_find_a_shard_damaged_one_fetches_it(here: Settings, tmp_path: Path) -> None:
    made = version(here, tmp_path / "source", files=30)
    stage_all(here, made)
    for shard in distinct(made):
        flip(Cache.of(here).path(shard.sha256), 3)
    answers = processes.at_once(stage_all, [(here, made)] * 6)
    for number in range(len(distinct(made))):
        assert [arrivals(answer)[number] for answer in answers].count(Arrival.FETCHED) == 1
    require_right(here)


@pytest.mark.integration
def test_answers_that_are_cut_in_the_middle_are_asked_for_again(there: Settings, moto: S3, tmp_path: Path) -> None:
    made = large(there, tmp_path / "source", FILE_BYTES, SHARD_BYTES)
    with halting.cutting_answers(moto, cuts=1, after_bytes=BLOCK_BYTES // 2) as cut:
        done = stage_all(there.model_copy(update={"s3_endpoint": cut.endpoint}), made)
    assert arrivals(done) == [Arrival.FETCHED, Arrival.FETCHED]
    require_right(there)


@pytest.mark.integration
def test_a_store_that_cuts_every_answer_is_given_up_as_unreachable(there: Settings, moto: S3, tmp_path: Path) -> None:
    made = large(there, tmp_path / "source", BLOCK_BYTES, BLOCK_BYTES)
    with halting.cutting_answers(moto, cuts=10**9, after_bytes=2**17) as cut:
        (transfer,) = stage_all(
            there.model_copy(update={"s3_endpoint": cut.endpoint, "store_retry_s": 1.0}), made
        ).transfers
    assert "object store gave up on" in transfer.reason  # and so a retry may help
    assert arrivals(stage_all(there, made)) == [Arrival.FETCHED]


@pytest.mark.integration
def test_a_slow_store_is_waited_for(there: Settings, moto: S3, tmp_path: Path) -> None:
    made = version(there, tmp_path / "source", files=8)
    with halting.slow(moto, bytes_at_once=4096, pause_s=0.02) as slowed:
        done = stage_all(there.model_copy(update={"s3_endpoint": slowed.endpoint}), made)
    assert set(arrivals(done)) == {Arrival.FETCHED}
    require_right(there)


@pytest.mark.integration
def test_a_store_that_goes_away_fails_every_shard_and_costs_the_cache_next_to_nothing(
    there: Settings, moto: S3, tmp_path: Path
) -> None:
    made = version(there, tmp_path / "source")
    other = version(there, tmp_path / "other", seed=2, dataset="other")
    tight = there.model_copy(update={"cache_bytes": other.stored_bytes, "store_retry_s": 1.0})
    stage_all(tight, other)
    with halting.gone_at_the_first_range(moto) as gone:
        done = stage_all(tight.model_copy(update={"s3_endpoint": gone.endpoint}), made)
    assert set(arrivals(done)) == {Arrival.FAILED}
    assert all("gave up on" in transfer.reason for transfer in done.transfers)
    assert len(Cache.of(tight).present()) >= len(distinct(other)) - 4  # for the two that were begun
    require_right(tight)


@pytest.mark.integration
def test_a_network_that_cuts_connections_makes_no_wrong_byte(there: Settings, moto: S3, tmp_path: Path) -> None:
    made = large(there, tmp_path / "source", FILE_BYTES, SHARD_BYTES)
    with flaky.cutting(moto, seed=5, cuts=6) as cut:
        behind = there.model_copy(update={"s3_endpoint": cut.endpoint})
        assert arrivals(stage_all(behind, made)) == [Arrival.FETCHED, Arrival.FETCHED]
    require_right(there)


@pytest.mark.integration
def test_a_server_that_answers_500_is_asked_again(there: Settings, moto: S3, tmp_path: Path) -> None:
    made = version(there, tmp_path / "source", files=8)
    error = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with servers.interfering(moto, [error] * 3) as proxy:
        done = stage_all(there.model_copy(update={"s3_endpoint": proxy.endpoint}), made)
    assert set(arrivals(done)) == {Arrival.FETCHED}
    require_right(there)


@pytest.mark.integration
def test_a_full_disk_is_said_before_anything_is_fetched_and_the_rest_is_staged(
    local: Settings, tmp_path: Path, mount: Mount
) -> None:
    made = large(local, tmp_path / "source", FILE_BYTES, SHARD_BYTES)
    full = local.model_copy(update={"cache": mount("small", "size=40m") / "cache", "cache_bytes": 10**12})
    outcome = stage_all(full, made)
    assert sorted(arrivals(outcome)) == [Arrival.FAILED, Arrival.FETCHED]
    assert "do not fit" in next(each.reason for each in outcome.transfers if each.reason)
    require_right(full)


@pytest.mark.integration
def test_the_floor_is_kept_by_stagers_side_by_side_and_by_the_files_of_a_job(
    local: Settings, tmp_path: Path, mount: Mount
) -> None:
    small = mount("small", "size=64m")
    floor_bytes = 20 * 2**20
    full = local.model_copy(update={"cache": small / "cache", "cache_bytes": 10**12, "cache_floor_bytes": floor_bytes})
    every = [large(full, tmp_path / str(number), 2 * BLOCK_BYTES, BLOCK_BYTES, seed=number) for number in range(3)]
    acts = [(_watch_free, full, every[0], tmp_path / "end"), (_stage_in_turn, full, every, tmp_path / "end")]
    acts += [(_work_with_files, full, each, tmp_path / "end") for each in every[:2]]
    least, *_ = processes.at_once(_act, acts)
    assert floor_bytes <= least < 64 * 2**20 - BLOCK_BYTES


def _act(act: Callable[..., int], *args: object) -> int:
    return act(*args)


def _watch_free(settings: Settings, of: Manifest, until: Path) -> int:
    """The least that was ever free."""
    del of
    least = 2**62
    while not until.exists():
        disk = os.statvfs(settings.cache_root.parent)
        least = min(least, disk.f_bavail * disk.f_frsize)
    return least


def _stage_in_turn(settings: Settings, every: Sequence[Manifest], until: Path) -> int:
    for turn in range(24):
        stage_all(settings, every[turn % len(every)])
    until.touch()
    return 0


def _work_with_files(settings: Settings, of: Manifest, until: Path) -> int:
    """Have the version's files again and again; where there is no room, try again."""
    had = 0
    while not until.exists():
        with suppress(CacheFull), materialise(settings, storage.open_store(settings), of, lambda _: None):
            had += 1
    return had


def test_only_what_is_wanted_is_staged(local: Settings, tmp_path: Path) -> None:
    made: Manifest = version(local, tmp_path / "source")
    wanted = distinct(made)[1:3]
    stage_all(local, made, wanted)
    assert {each.sha256 for each in Cache.of(local).present()} == {shard.sha256 for shard in wanted}
