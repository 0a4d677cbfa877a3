"""Staging: each shard fetched once, checked as it comes, resumed where it stopped, and never a wrong byte."""

import os
from pathlib import Path

import pytest

from pipelines import process, storage
from pipelines.datasets import names, stage
from pipelines.datasets.cache import Cache
from pipelines.datasets.events import Arrival
from pipelines.datasets.manifest import BLOCK_BYTES, Manifest
from pipelines.datasets.materialise import materialise
from pipelines.settings import Settings
from tests import processes, servers
from tests.conftest import on
from tests.datasets import flaky
from tests.datasets.staged import arrivals, distinct, large, require_right, stage_all, version
from tests.servers import S3

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
        assert Cache.of(here).room().held_bytes == made.stored_bytes + made.content_bytes
    assert list(Cache.of(here).files()) == []


def test_a_download_goes_on_at_its_last_good_block(local: Settings, tmp_path: Path) -> None:
    made = large(local, tmp_path / "source", FILE_BYTES, SHARD_BYTES)
    shard = distinct(made)[0]
    cache = Cache.of(local)
    data = storage.open_store(local).read(names.shard_key("weights", shard.sha256))
    with cache.receiving(shard, frozenset(), lambda _: None) as descriptor:
        assert descriptor is not None
        os.pwrite(descriptor, data[: BLOCK_BYTES + 1000], 0)  # and there it was killed
    (transfer,) = stage_all(local, made, [shard]).transfers
    assert (transfer.arrival, transfer.fetched_bytes) == (Arrival.RESUMED, shard.size_bytes - BLOCK_BYTES)
    require_right(local)


def test_a_wrong_byte_in_what_an_earlier_download_left_is_fetched_again(local: Settings, tmp_path: Path) -> None:
    made = large(local, tmp_path / "source", FILE_BYTES, SHARD_BYTES)
    shard = distinct(made)[0]
    data = bytearray(storage.open_store(local).read(names.shard_key("weights", shard.sha256)))
    data[5] ^= 1
    with Cache.of(local).receiving(shard, frozenset(), lambda _: None) as descriptor:
        assert descriptor is not None
        os.pwrite(descriptor, bytes(data), 0)
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


def test_two_datasets_with_files_of_equal_names_do_not_collide(local: Settings, tmp_path: Path) -> None:
    first = version(local, tmp_path / "a", seed=1, dataset="a")
    second = version(local, tmp_path / "b", seed=2, dataset="b")
    assert set(arrivals(stage_all(local, first)) + arrivals(stage_all(local, second))) == {Arrival.FETCHED}
    require_right(local)


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
def test_a_network_that_cuts_connections_makes_no_wrong_byte(
    settings: Settings, moto: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = roomy(on(moto, settings, monkeypatch), store_retry_s=20.0)
    made = large(there, tmp_path / "source", FILE_BYTES, SHARD_BYTES)
    with flaky.cutting(moto, seed=5, cuts=6) as cut:
        behind = there.model_copy(update={"s3_endpoint": cut.endpoint})
        assert set(arrivals(stage_all(behind, made))) <= {Arrival.FETCHED, Arrival.FAILED}
        assert set(arrivals(stage_all(behind, made))) <= {Arrival.FETCHED, Arrival.PRESENT, Arrival.RESUMED}
    require_right(there)


@pytest.mark.integration
def test_a_server_that_answers_500_is_asked_again(
    settings: Settings, moto: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = roomy(on(moto, settings, monkeypatch), store_retry_s=20.0)
    made = version(there, tmp_path / "source", files=8)
    error = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with servers.interfering(moto, [error] * 3) as proxy:
        done = stage_all(there.model_copy(update={"s3_endpoint": proxy.endpoint}), made)
    assert set(arrivals(done)) == {Arrival.FETCHED}
    require_right(there)


@pytest.mark.integration
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a filesystem")
def test_a_full_disk_is_said_before_anything_is_fetched_and_the_next_staging_has_what_fits(
    local: Settings, tmp_path: Path
) -> None:
    made = large(local, tmp_path / "source", FILE_BYTES, SHARD_BYTES)
    small = tmp_path / "small"
    small.mkdir()
    mounted = process.run(("mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(small)), timeout_s=10)
    assert mounted.exit_status == 0, mounted.stderr
    try:
        full = local.model_copy(update={"cache": small / "cache", "cache_bytes": 10**12})
        outcome = stage_all(full, made)
        assert sorted(arrivals(outcome)) == [Arrival.FAILED, Arrival.FETCHED]
        assert "do not fit" in next(each.reason for each in outcome.transfers if each.reason)
        require_right(full)
    finally:
        process.run(("umount", str(small)), timeout_s=10)


def test_only_what_is_wanted_is_staged(local: Settings, tmp_path: Path) -> None:
    made: Manifest = version(local, tmp_path / "source")
    wanted = distinct(made)[1:3]
    stage_all(local, made, wanted)
    assert {each.sha256 for each in Cache.of(local).present()} == {shard.sha256 for shard in wanted}
