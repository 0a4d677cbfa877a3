"""Landing killed with SIGKILL at any point, then tried again: nothing lost or twice, never half a run in sight."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tables import delta, land
from tests import processes
from tests.conftest import on
from tests.servers import S3
from tests.tables import landings
from tests.tables.landings import LANDED, expected, ready, standing

pytestmark = pytest.mark.integration


def first_landing(store: Store, run_id: str) -> str:
    landings.hand_in(store, landings.raws(run_id), run_id)
    return ready(store, run_id)


def landing_in_place_of_another(store: Store, run_id: str) -> str:
    land.land_batch(store, first_landing(store, run_id))
    landings.put(store, landings.raws(run_id)[0].model_copy(update={"attempt": 2}))
    return ready(store, run_id)


each_landing = pytest.mark.parametrize("make_ready", [first_landing, landing_in_place_of_another])


@each_landing
def test_a_landing_killed_at_any_point_is_made_whole_by_a_retry(
    settings: Settings, make_ready: Callable[[Store, str], str]
) -> None:
    _sweep(settings, make_ready, points=20)


def test_a_landing_killed_on_a_real_s3_server_is_made_whole_by_a_retry(
    settings: Settings, ceph: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sweep(on(ceph, settings, monkeypatch), first_landing, points=4)


def test_the_very_first_landing_killed_while_tables_are_made_is_made_whole_by_a_retry(
    settings: Settings, tmp_path: Path
) -> None:
    span_s = 0.0
    for number, part in enumerate([1.0, *processes.moments(seed=11, count=12, span_s=1.0)]):
        fresh = settings.model_copy(update={"home": tmp_path / str(number)})
        store = storage.open_store(fresh)
        batch = first_landing(store, landings.RUN_A)
        if number == 0:
            span_s = processes.duration_s(_land, fresh, batch)
            continue
        processes.kill_after(part * span_s, _land, fresh, batch)
        land.land_batch(store, batch)
        assert standing(store) == expected(store, batch)


def _sweep(settings: Settings, make_ready: Callable[[Store, str], str], points: int) -> None:
    """Kill the landings of as many runs, one after the other, each at another point of the time that one takes.

    How long that is differs from one to the next on a busy machine, so the sweep goes on, finer, until landings were
    killed before, between and after commits.
    """
    store = storage.open_store(settings)
    landed = [make_ready(store, f"202611{day}T020000Z-ffffff") for day in (29, 30)]
    span_s = [processes.duration_s(_land, settings, batch) for batch in landed][-1]  # the first makes the tables
    reached: list[int] = []
    for count in (points, 2 * points, 4 * points):
        for moment_s in processes.moments(seed=count, count=count, span_s=span_s):
            batch = make_ready(store, f"20261101T{len(reached):06d}Z-eeeeee")
            processes.kill_after(moment_s, _land, settings, batch)
            reached.append(_seen(store, batch))
            land.land_batch(store, batch)
            landed.append(batch)
            assert _seen(store, batch) == len(LANDED)
        if len(set(reached)) > 2:
            break
    assert standing(store) == expected(store, *landed)
    assert len(set(reached)) > 2, f"no landing was killed between its commits: {reached}"


def _seen(store: Store, batch: str) -> int:
    """In how many tables, in landing order, the whole batch stands; a part of it stands nowhere."""
    whole, now = expected(store, batch), standing(store)
    there = [now[name][batch] == whole[name][batch] for name in LANDED]
    assert all(there[number] or not now[name][batch] for number, name in enumerate(LANDED)), "half a batch is in sight"
    landed = [delta.open_table(store, name).transaction_version(batch) is not None for name in LANDED]
    if now["runs"][batch]:
        assert all(there), "runs shows a run whose rows are not all there"
    return sum(landed) if not all(there) else len(LANDED)


def _land(settings: Settings, batch: str) -> None:
    land.land_batch(storage.open_store(settings), batch)
