"""A fleet of four machines in network namespaces: PostgreSQL, Ceph, Airflow's edge workers, real fio."""

import pytest

from pipelines import keys, storage
from pipelines.embedded.api import Run
from pipelines.records import RawOutput
from tests.fleet.conftest import NODES
from tests.fleet.control import Fleet
from tests.following import run_id_of

pytestmark = pytest.mark.integration


def outcomes(fleet: Fleet, run: Run) -> dict[str, set[tuple[str, int]]]:
    rows = fleet.answer(
        f"SELECT node, outcome, count(*) FROM runs WHERE run_id = '{run_id_of(run)}' GROUP BY ALL ORDER BY ALL"
    )
    return {node: {(o, n) for name, o, n in rows if name == node} for node, _, _ in rows}


def test_every_node_measures_itself_and_the_run_lands_complete(fleet: Fleet) -> None:
    run = fleet.ended(fleet.trigger(suite="tiny"))
    assert run.state == "success"
    assert outcomes(fleet, run) == {name: {("ok", 2)} for name in NODES}
    store = storage.open_store(fleet.settings)
    found = [
        RawOutput.model_validate_json(store.read(key)) for key in store.keys_under(keys.raw_prefix(run_id_of(run)))
    ]
    assert {(raw.job.node, raw.hostname) for raw in found} == {(name, name) for name in NODES}
    tasks = {task.node: task for task in fleet.airflow.tasks(run) if task.name == "measure"}
    assert set(tasks) == set(NODES), "the UI shows each by its name"
    pools = {each["name"]: each["slots"] for each in fleet.airflow.get("/api/v2/pools?limit=100")["pools"]}
    assert {pools[f"node-{name}"] for name in NODES} == {1}
