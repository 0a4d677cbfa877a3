"""The same DAGs with Celery workers on the nodes, by configuration alone: Redis, PostgreSQL, Ceph, real fio."""

from collections.abc import Iterator

import pytest

from pipelines import keys, storage
from pipelines.records import RawOutput
from tests.fleet import celery_fleet, ground
from tests.fleet.conftest import SUITES
from tests.fleet.control import Fleet
from tests.fleet.test_fleet import outcomes
from tests.following import run_id_of

pytestmark = pytest.mark.integration

NODES = ("node-a", "node-b", "node-c")


@pytest.fixture(scope="module")
def celery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three nodes; two of them have a worker."""
    with (
        ground.prepared(tmp_path_factory, NODES, "redis-server") as prepared,
        celery_fleet.redis(prepared.folder, prepared.network.address) as redis,
        prepared.fleet(SUITES, over=celery_fleet.options(redis)) as fleet,
    ):
        for name in NODES[:2]:
            celery_fleet.start_worker(fleet, name)
        yield fleet


def test_nodes_measure_themselves_and_one_without_a_worker_delays_nobody_and_takes_part_again(celery: Fleet) -> None:
    run = celery.ended(celery.trigger(suite="tiny"))
    assert run.state == "success"
    assert outcomes(celery, run) == {
        "node-a": {("ok", 2)},
        "node-b": {("ok", 2)},
        "node-c": {("not_measured", 2)},
    }
    states = {NODES[task.map_index]: task.state for task in celery.airflow.tasks(run) if task.name == "measure"}
    assert states == {"node-a": "success", "node-b": "success", "node-c": "failed"}
    celery_fleet.start_worker(celery, "node-c")  # it finds the message of the first run, which nobody wants any more
    again = celery.ended(celery.trigger(suite="tiny"))
    assert again.state == "success"
    assert outcomes(celery, again) == {name: {("ok", 2)} for name in NODES}
    shown = {task.node for task in celery.airflow.tasks(again) if task.name == "measure"}
    assert shown == set(NODES), "the UI shows each by its name"
    store = storage.open_store(celery.settings)
    found = [
        RawOutput.model_validate_json(store.read(key))
        for each in (run, again)
        for key in store.keys_under(keys.raw_prefix(run_id_of(each)))
    ]
    assert sorted((raw.job.node, raw.hostname) for raw in found) == sorted(
        (name, name) for name in (*NODES, *NODES[:2]) for _ in range(2)
    )
