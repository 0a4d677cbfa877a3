"""Stagers and evictors killed by SIGKILL at any point: never a wrong byte, never over budget, made whole by a retry."""

from pathlib import Path

import pytest

from pipelines import storage
from pipelines.datasets.cache import Cache
from pipelines.datasets.events import Arrival
from pipelines.datasets.manifest import BLOCK_BYTES, Manifest
from pipelines.datasets.materialise import materialise
from pipelines.settings import Settings
from tests import processes
from tests.conftest import on
from tests.datasets.staged import arrivals, distinct, large, require_right, stage_all, version
from tests.servers import S3

pytestmark = pytest.mark.integration


@pytest.fixture
def here(settings: Settings) -> Settings:
    return settings.model_copy(update={"cache_bytes": 10**9, "cache_floor_bytes": 0})


def _stage_anew(settings: Settings, of: Manifest) -> None:
    """Evict all and fetch all: whichever the kill hits."""
    Cache.of(settings).evict(shard.sha256 for shard in distinct(of))
    stage_all(settings, of)


def _sweep(settings: Settings, of: Manifest, points: int) -> set[Arrival]:
    """Kill the stager at as many points of the time that it takes, going on with what each one left."""
    _stage_anew(settings, of)
    span_s = processes.duration_s(_stage_anew, settings, of)
    seen: set[Arrival] = set()
    killed = 0
    for moment_s in processes.moments(seed=7, count=points, span_s=span_s):
        killed += processes.kill_after(moment_s, _stage_anew, settings, of)
        require_right(settings)
        if killed % 3 == 0:  # otherwise the next one meets what this one left
            seen |= set(arrivals(stage_all(settings, of)))
            assert len(Cache.of(settings).present()) == len(distinct(of))
            require_right(settings)
    assert killed > points // 3, "nearly every stager had ended before it was killed"
    assert Arrival.FAILED not in seen
    assert set(arrivals(stage_all(settings, of))) <= {Arrival.PRESENT, Arrival.FETCHED, Arrival.RESUMED}
    return seen


def test_a_stager_killed_at_any_point_leaves_nothing_wrong_and_is_made_whole(here: Settings, tmp_path: Path) -> None:
    _sweep(here, version(here, tmp_path / "source", files=40), points=40)


def test_a_killed_download_of_large_shards_is_resumed(here: Settings, tmp_path: Path) -> None:
    made = large(here, tmp_path / "source", 8 * BLOCK_BYTES, 4 * BLOCK_BYTES)
    assert Arrival.RESUMED in _sweep(here, made, points=24)


def test_a_stager_killed_while_it_fetches_from_s3_is_made_whole(
    here: Settings, moto: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = on(moto, here, monkeypatch)
    _sweep(there, version(there, tmp_path / "source", files=20), points=10)


def test_a_tight_budget_holds_whoever_is_killed(here: Settings, tmp_path: Path) -> None:
    made = [version(here, tmp_path / name, files=16, seed=ord(name), dataset=name) for name in "ab"]
    tight = here.model_copy(update={"cache_bytes": max(each.stored_bytes for each in made)})
    span_s = processes.duration_s(stage_all, tight, made[0])
    for number, moment_s in enumerate(processes.moments(seed=3, count=16, span_s=span_s)):
        processes.kill_after(moment_s, stage_all, tight, made[number % 2])
        require_right(tight)
    for each in made:
        assert Arrival.FAILED not in arrivals(stage_all(tight, each))
        require_right(tight)


def _work_with_files(settings: Settings, of: Manifest) -> None:
    with materialise(settings, storage.open_store(settings), of, lambda _: None):
        pass


def test_a_job_killed_with_its_files_costs_no_space_that_is_not_taken_back(here: Settings, tmp_path: Path) -> None:
    made = large(here, tmp_path / "source", 4 * BLOCK_BYTES, 2 * BLOCK_BYTES)
    other = large(here, tmp_path / "other", 2 * BLOCK_BYTES, 2 * BLOCK_BYTES, seed=2)
    both = made.stored_bytes + made.content_bytes + other.stored_bytes
    tight = here.model_copy(update={"cache_bytes": both})
    stage_all(tight, made)
    span_s = processes.duration_s(_work_with_files, tight, made)
    left = 0
    for moment_s in processes.moments(seed=5, count=12, span_s=span_s):
        processes.kill_after(moment_s, _work_with_files, tight, made)
        left += len(Cache.of(tight).files())
        require_right(tight)
        with materialise(tight, storage.open_store(tight), made, lambda _: None) as folder:
            assert (folder / "weights.bin").read_bytes() == (tmp_path / "source/weights.bin").read_bytes()
            assert Cache.of(tight).files() == [folder]
            require_right(tight)
        assert Cache.of(tight).files() == []
    assert left > 0, "no job was killed while it had files"
    assert set(arrivals(stage_all(tight, other))) == {Arrival.FETCHED}
