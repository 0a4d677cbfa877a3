"""A node's cache: what it serves stays while it is read, its budget holds, several processes and users share it."""

import fcntl
import os
import stat
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.datasets import cachespace
from pipelines.datasets.cache import Cache
from pipelines.datasets.events import Arrival
from pipelines.datasets.incoming import receiving
from pipelines.datasets.manifest import Manifest
from pipelines.errors import CacheFull, CacheUnusable
from pipelines.settings import Settings
from tests import processes
from tests.datasets.published import publish, random_files
from tests.datasets.staged import arrivals, distinct, require_right, stage_all, version
from tests.node.conftest import public_dir
from tests.node.other_user import as_nobody

__all__ = ["public_dir"]  # a fixture


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
    hidden = [cache.root / name / ".x.1" for name in ("notes", "pins")]  # what killed processes were writing
    for path in hidden:
        path.write_bytes(b"")
        os.utime(path, times=(0, 0))
    wanted = {f"damaged/{shard.sha256}", f"partial/{abandoned.name}", "notes/.x.1", "pins/.x.1"}
    assert set(cache.gc()) == wanted
    assert recent.exists()
    assert cache.gc() == ()


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


def test_a_shard_that_is_read_is_passed_over_for_the_next_and_the_budget_holds(
    here: Settings, made: Manifest, tmp_path: Path
) -> None:
    tight = here.model_copy(update={"cache_bytes": made.stored_bytes})
    stage_all(tight, made)
    cache, shards = Cache.of(tight), distinct(made)
    opened = cache.open(shards[0])
    assert opened is not None
    with opened:
        for number, shard in enumerate(shards):
            os.utime(cache.root / "notes" / shard.sha256, times=(number, number))
        other = version(tight, tmp_path / "other", files=4, seed=9, dataset="other")
        assert set(arrivals(stage_all(tight, other))) == {"fetched"}
        left = {each.sha256 for each in cache.present()}
        assert (shards[0].sha256 in left, shards[1].sha256 in left) == (True, False)
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
    everything = space.f_blocks * space.f_frsize
    done = stage_all(here.model_copy(update={"cache_floor_bytes": everything}), made)
    assert set(arrivals(done)) == {"failed"}
    cache = Cache(here.cache_root, 10**12, everything)
    with cache.locked(), pytest.raises(CacheFull):
        cache.make_room(1)


def test_what_was_promised_to_files_and_is_not_yet_written_is_not_free(cache: Cache) -> None:
    folder = cache.files_folder("v.1", 10**6, is_new=True)
    folder.mkdir()
    assert cachespace.promised_bytes(folder) == 10**6
    (folder / "a").write_bytes(bytes(400_000))
    written = cachespace.written_bytes(folder)
    assert written >= 400_000
    assert cachespace.promised_bytes(folder) == 10**6 - written
    filled = folder.rename(cache.files_folder("v.1", written, is_new=False))
    assert (cachespace.promised_bytes(filled), cachespace.taken_bytes(filled)) == (0, written)
    everything = os.statvfs(cache.root).f_blocks * os.statvfs(cache.root).f_frsize
    cache.files_folder("v.2", everything, is_new=True).mkdir()
    assert cache.room().free_bytes == 0


def test_a_damaged_shard_is_fetched_again_where_nothing_else_may_go(here: Settings, made: Manifest) -> None:
    tight = here.model_copy(update={"cache_bytes": made.stored_bytes})
    stage_all(tight, made)
    cache, shard = Cache.of(tight), distinct(made)[0]
    cache.pin("photos@latest", made)
    flip(cache.path(shard.sha256), 7)
    assert Counter(arrivals(stage_all(tight, made))) == {"fetched": 1, "present": len(distinct(made)) - 1}
    require_right(tight)


def test_downloads_that_nobody_is_at_give_way_and_those_under_way_do_not(
    here: Settings, made: Manifest, tmp_path: Path
) -> None:
    other = version(here, tmp_path / "other", seed=9, dataset="other")
    tight = here.model_copy(update={"cache_bytes": max(made.stored_bytes, other.stored_bytes)})
    cache, (left, under_way, *_) = Cache.of(tight), distinct(other)
    with receiving(cache, left, frozenset(), lambda _: None):
        pass  # and there it was killed
    with receiving(cache, under_way, frozenset(), lambda _: None):
        failed = arrivals(stage_all(tight, made)).count("failed")
        assert {path.name for path in (cache.root / "partial").iterdir()} == {under_way.sha256}
    assert failed > 0
    assert set(arrivals(stage_all(tight, made))) == {"fetched", "present"}


def test_folders_that_killed_jobs_left_give_way_and_those_in_use_do_not(here: Settings, made: Manifest) -> None:
    tight = here.model_copy(update={"cache_bytes": made.stored_bytes + 10**6})
    cache = Cache.of(tight)
    left, used = (cache.files_folder(name, 10**6, is_new=False) for name in ("left", "used"))
    for folder in (left, used):
        folder.mkdir()
        (folder / "file").write_bytes(b"x")
    lock = os.open(used, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert set(arrivals(stage_all(tight, made))) == {"fetched"}
        assert (left.exists(), used.exists()) == (False, True)
        assert cache.reclaim() == []
    finally:
        os.close(lock)
    assert cache.reclaim() == [used]


def test_a_pin_that_cannot_be_read_is_named_and_nothing_is_evicted(
    here: Settings, made: Manifest, tmp_path: Path
) -> None:
    tight = here.model_copy(update={"cache_bytes": made.stored_bytes})
    stage_all(tight, made)
    cache = Cache.of(tight)
    (cache.root / "pins/photos@latest").write_bytes(b"")
    other = version(tight, tmp_path / "other", files=4, seed=9, dataset="other")
    assert "pins/photos@latest cannot be used: it is no pin" in stage_all(tight, other).transfers[0].reason
    assert {path.name for path in (cache.root / "shards").iterdir()} == {each.sha256 for each in distinct(made)}


def test_only_the_file_that_was_found_damaged_is_put_away(cache: Cache, made: Manifest) -> None:
    shard = distinct(made)[0]
    old = cache.open(shard)
    assert old is not None
    with old:
        replacement = cache.root / "new"
        replacement.write_bytes(cache.path(shard.sha256).read_bytes())
        replacement.replace(cache.path(shard.sha256))  # as another process does that found it, too
        cache.quarantine(shard.sha256, old)
        assert cache.path(shard.sha256).exists()
    new = cache.open(shard)
    assert new is not None
    with new:
        cache.quarantine(shard.sha256, new)
    assert not cache.path(shard.sha256).exists()


def test_another_user_goes_on_with_a_download_reads_and_evicts(public_dir: Path) -> None:
    shared = Settings(home=public_dir, lease_dir=public_dir, cache_bytes=10**9, cache_floor_bytes=0)
    store = storage.open_store(shared)
    made = publish(shared, store, random_files(1, 4, 50_000))
    shared.cache_root.mkdir()
    shared.cache_root.chmod(0o777)
    for path in Path(store.path("x")).parent.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o666)
    begun, *others = distinct(made)
    with receiving(Cache.of(shared), begun, frozenset(), lambda _: None) as partial:
        assert partial is not None
    stage_all(shared, made, others[:1])
    assert set(as_nobody(_arrivals, shared, made)) == {"fetched", "present"}
    assert len(as_nobody(_evicted, shared, made)) == len(distinct(made))


def test_a_user_who_may_only_read_has_the_shards_and_changes_nothing(public_dir: Path) -> None:
    shared = Settings(home=public_dir, lease_dir=public_dir, cache_bytes=10**9, cache_floor_bytes=0)
    made = publish(shared, storage.open_store(shared), random_files(1, 4, 50_000))
    shared.cache_root.mkdir()
    shared.cache_root.chmod(0o755)
    stage_all(shared, made)
    assert as_nobody(_read, shared, made) == len(distinct(made))
    assert as_nobody(_evicted, shared, made) == ()
    assert as_nobody(_read, shared, made) == len(distinct(made))


def _arrivals(settings: Settings, of: Manifest) -> list[Arrival]:
    return arrivals(stage_all(settings, of))


def _evicted(settings: Settings, of: Manifest) -> tuple[str, ...]:
    return Cache.of(settings).evict(shard.sha256 for shard in distinct(of))


def _read(settings: Settings, of: Manifest) -> int:
    cache = Cache.of(settings)
    assert all(cache.verify(shard) for shard in distinct(of))
    return len(cache.present())


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


def _open_all_the_time(settings: Settings, of: Manifest, until: Path) -> int:
    """Open and close shards, and look at what is there, as fast as it goes."""
    cache, count = Cache.of(settings), 0
    while not until.exists():
        for shard in distinct(of):
            opened = cache.open(shard)
            if opened is not None:
                opened.close()
                count += 1
        cache.present()
    return count


def _watch(settings: Settings, of: Manifest, until: Path) -> int:
    """The most that the cache ever held."""
    del of
    cache, most = Cache.of(settings), 0
    while not until.exists():
        with cache.locked():
            most = max(most, cache.room().held_bytes)
    return most


def _stage_in_turn(settings: Settings, of: Manifest, until: Path) -> int:
    """Stage half of the shards, then the other half, for which the first has to go, and so on."""
    shards, failed = distinct(of), 0
    half = len(shards) // 2
    for turn in range(30):
        wanted = shards[:half] if turn % 2 else shards[half : 2 * half]
        failed += arrivals(stage_all(settings, of, wanted)).count(Arrival.FAILED)
    until.touch()
    return failed


@pytest.mark.integration
def test_readers_that_come_and_go_never_make_the_cache_hold_more_than_its_budget(
    here: Settings, made: Manifest, tmp_path: Path
) -> None:
    half = len(distinct(made)) // 2
    largest = max(shard.size_bytes for shard in distinct(made))
    tight = here.model_copy(update={"cache_bytes": (half + 2) * largest})
    acts = (_open_all_the_time, _open_all_the_time, _watch, _stage_in_turn)
    opened, _, most, _ = processes.at_once(_act, [(act, tight, made, tmp_path / "end") for act in acts])
    assert opened > 0
    assert half * largest // 2 < most <= tight.cache_bytes


@pytest.mark.integration
def test_looking_at_the_cache_keeps_nothing_from_being_evicted(here: Settings, made: Manifest, tmp_path: Path) -> None:
    largest = max(shard.size_bytes for shard in distinct(made))
    tight = here.model_copy(update={"cache_bytes": (len(distinct(made)) // 2) * largest})
    acts = (_look_all_the_time, _look_all_the_time, _stage_in_turn)
    *looked, failed = processes.at_once(_act, [(act, tight, made, tmp_path / "end") for act in acts])
    assert min(looked) > 0
    assert failed == 0


def _look_all_the_time(settings: Settings, of: Manifest, until: Path) -> int:
    del of
    cache, count = Cache.of(settings), 0
    while not until.exists():
        count += len(cache.present())
    return count


def _act(act: Callable[[Settings, Manifest, Path], int], settings: Settings, of: Manifest, until: Path) -> int:
    return act(settings, of, until)
