"""A node's cache: what it serves stays while it is read, its budget holds, several processes and users share it."""

import os
import stat
import time
from pathlib import Path

import pytest

from pipelines.datasets.cache import Cache
from pipelines.datasets.manifest import Manifest
from pipelines.errors import CacheFull, CacheUnusable
from pipelines.settings import Settings
from tests import processes
from tests.datasets.staged import arrivals, distinct, require_right, stage_all, version


@pytest.fixture
def here(settings: Settings) -> Settings:
    return settings.model_copy(update={"cache_bytes": 10**9, "cache_floor_bytes": 0})


@pytest.fixture
def made(here: Settings, tmp_path: Path) -> Manifest:
    return version(here, tmp_path / "source")


@pytest.fixture
def cache(here: Settings, made: Manifest) -> Cache:
    """A cache with every shard of a version."""
    stage_all(here, made)
    return Cache.of(here)


def flip(path: Path, at: int) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_an_open_shard_has_the_bytes_that_were_published(cache: Cache, made: Manifest) -> None:
    shard = distinct(made)[0]
    opened = cache.open(shard)
    assert opened is not None
    with opened:
        assert len(opened.read()) == shard.size_bytes
    assert cache.verify(shard)


def test_a_shard_that_is_not_there_is_none_and_no_error(here: Settings, made: Manifest) -> None:
    shard = distinct(made)[0]
    assert Cache.of(here).open(shard) is None
    assert Cache.of(here).verify(shard) is None


def test_a_shard_that_is_read_is_not_evicted_and_can_be_afterwards(cache: Cache, made: Manifest) -> None:
    shard, *_ = distinct(made)
    opened = cache.open(shard)
    assert opened is not None
    with opened:
        assert [each.is_in_use for each in cache.present() if each.sha256 == shard.sha256] == [True]
        assert cache.evict([shard.sha256]) == ()
        assert cache.path(shard.sha256).exists()
    assert cache.evict([shard.sha256]) == (shard.sha256,)


def test_pins_keep_a_version_and_unpinning_lets_it_go(cache: Cache, made: Manifest) -> None:
    every = [shard.sha256 for shard in distinct(made)]
    cache.pin("photos@latest", made)
    assert cache.evict(every) == ()
    assert cache.unpin("photos@latest")
    assert not cache.unpin("photos@latest")
    assert sorted(cache.evict(every)) == sorted(every)


@pytest.mark.parametrize("place", [0, 1000, -1])
def test_a_flipped_bit_is_found_and_the_shard_is_never_served_again(cache: Cache, made: Manifest, place: int) -> None:
    shard = distinct(made)[0]
    flip(cache.path(shard.sha256), place)
    assert cache.verify(shard) is False
    cache.quarantine(shard.sha256)
    assert cache.open(shard) is None
    assert (cache.root / "damaged" / shard.sha256).exists()


def test_a_shard_that_was_cut_or_grew_is_damaged(cache: Cache, made: Manifest) -> None:
    first, second = distinct(made)[:2]
    cache.path(first.sha256).chmod(0o644)
    os.truncate(cache.path(first.sha256), first.size_bytes - 1)
    cache.path(second.sha256).chmod(0o644)
    with cache.path(second.sha256).open("ab") as file:
        file.write(b"x")
    assert cache.verify(first) is cache.verify(second) is False


def test_damaged_files_and_abandoned_downloads_are_collected_and_recent_ones_stay(cache: Cache, made: Manifest) -> None:
    shard = distinct(made)[0]
    cache.quarantine(shard.sha256)
    recent, abandoned = cache.root / "partial" / ("0" * 64), cache.root / "partial" / ("1" * 64)
    for path in (recent, abandoned):
        path.write_bytes(b"x")
    os.utime(abandoned, times=(0, time.time() - 2 * 24 * 3600))
    assert set(cache.gc()) == {f"damaged/{shard.sha256}", f"partial/{abandoned.name}"}
    assert recent.exists()


def test_the_least_recently_used_go_first_and_no_more_than_need_be(
    here: Settings, made: Manifest, tmp_path: Path
) -> None:
    tight = here.model_copy(update={"cache_bytes": made.stored_bytes})
    stage_all(tight, made)
    cache, shards = Cache.of(tight), distinct(made)
    for number, shard in enumerate(shards):
        os.utime(cache.root / "notes" / shard.sha256, times=(number, number))
    other = version(tight, tmp_path / "other", files=4, seed=9, dataset="other")
    stage_all(tight, other)
    left = {each.sha256 for each in cache.present()}
    assert shards[0].sha256 not in left
    assert {shard.sha256 for shard in shards[2:]} | {shard.sha256 for shard in distinct(other)} <= left
    require_right(tight)


def test_what_does_not_fit_beside_what_is_pinned_says_so_and_evicts_nothing_pinned(
    here: Settings, made: Manifest, tmp_path: Path
) -> None:
    tight = here.model_copy(update={"cache_bytes": made.stored_bytes})
    stage_all(tight, made)
    cache = Cache.of(tight)
    cache.pin("photos@latest", made)
    other = version(tight, tmp_path / "other", files=4, seed=9, dataset="other")
    done = stage_all(tight, other)
    assert set(arrivals(done)) == {"failed"}
    assert "are pinned or in use" in done.transfers[0].reason
    assert len(cache.present()) == len(distinct(made))
    assert list((cache.root / "partial").iterdir()) == []


def test_the_free_space_floor_is_kept(here: Settings, made: Manifest) -> None:
    space = os.statvfs(here.home)
    free = space.f_bavail * space.f_frsize
    done = stage_all(here.model_copy(update={"cache_floor_bytes": free}), made)
    assert set(arrivals(done)) == {"failed"}
    with Cache.of(here).locked(), pytest.raises(CacheFull):
        Cache(here.cache_root, 10**12, free).make_room(1)


def test_everything_in_the_cache_has_the_permissions_that_its_root_was_given(here: Settings, made: Manifest) -> None:
    here.cache_root.mkdir()
    here.cache_root.chmod(0o2770)
    stage_all(here, made)
    folders = [path for path in here.cache_root.iterdir() if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o2770}
    assert stat.S_IMODE((here.cache_root / "lock").stat().st_mode) == 0o660
    assert {stat.S_IMODE(path.stat().st_mode) for path in (here.cache_root / "shards").iterdir()} == {0o440}


def test_a_root_that_is_no_directory_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheUnusable, match="file cannot be used"):
        Cache(tmp_path / "file", 1, 0)


def test_a_link_in_the_place_of_a_shard_is_not_followed(cache: Cache, made: Manifest, tmp_path: Path) -> None:
    shard = distinct(made)[0]
    path = cache.path(shard.sha256)
    (tmp_path / "elsewhere").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheUnusable):
        cache.open(shard)


def _read_while_evicted(settings: Settings, of: Manifest) -> int:
    """Read shards that come and go until each was read some times; every time it was whole, and stayed."""
    cache, read = Cache.of(settings), dict.fromkeys((shard.sha256 for shard in distinct(of)), 0)
    while min(read.values()) < 5:
        for shard in distinct(of):
            opened = cache.open(shard)
            if opened is not None:
                with opened:
                    assert len(opened.read()) == shard.size_bytes
                    assert cache.path(shard.sha256).exists(), "evicted while it was open"
                read[shard.sha256] += 1
    return sum(read.values())


def _evict_and_stage(settings: Settings, of: Manifest) -> int:
    cache = Cache.of(settings)
    for _ in range(15):
        cache.evict(shard.sha256 for shard in distinct(of))
        stage_all(settings, of)
    return len(cache.present())


@pytest.mark.integration
def test_readers_in_other_processes_never_lose_what_they_have_open_to_the_evictor(
    here: Settings, made: Manifest
) -> None:
    stage_all(here, made)
    answers = processes.at_once(_dispatch, [(name, here, made) for name in ("read", "read", "evict")])
    assert answers[2] == len(distinct(made))
    assert min(answers[:2]) >= 5 * len(distinct(made))


def _dispatch(name: str, settings: Settings, of: Manifest) -> int:
    return (_read_while_evicted if name == "read" else _evict_and_stage)(settings, of)
