"""What befalls a fleet: nodes, workers, the control plane and the object store go away in mid-run and come back."""

import shutil
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from pipelines import coverage, keys, storage
from pipelines.embedded.api import Run
from pipelines.records import RawOutput
from tests.fleet.conftest import NODES
from tests.fleet.control import Fleet
from tests.following import run_id_of, wait_for

pytestmark = pytest.mark.integration

BEGAN = "there is no raw output: a task of its node began, and ended before this job"

_OTHER_DAG = """
from airflow.sdk import dag, task
from fleetmark_airflow.tasks import DEFAULT_ARGS

@dag(default_args=DEFAULT_ARGS)
def fleet_benchmark():
    @task
    def measure(node):
        raise ValueError("as in a version that knew nothing of arrivals, nor of a field of this plan")

    measure.expand(node=["first", "second"])

fleet_benchmark()
"""


def rows(fleet: Fleet, run: Run) -> dict[str, list[tuple[str, str]]]:
    """Outcome and reason of each row in `runs`, by node."""
    found = fleet.answer(f"SELECT node, outcome, reason FROM runs WHERE run_id = '{run_id_of(run)}' ORDER BY ALL")
    return {node: [(outcome, reason) for name, outcome, reason in found if name == node] for node, _, _ in found}


def raws(fleet: Fleet, run: Run) -> list[RawOutput]:
    store = storage.open_store(fleet.settings)
    return [RawOutput.model_validate_json(store.read(key)) for key in store.keys_under(keys.raw_prefix(run_id_of(run)))]


def attempts(fleet: Fleet, run: Run) -> list[tuple[str, int]]:
    """Node and attempt of each raw output."""
    return sorted((raw.job.node, raw.attempt) for raw in raws(fleet, run))


def page(fleet: Fleet, run: Run) -> str:
    return storage.open_store(fleet.settings).read(keys.report_key(run_id_of(run), "index.html")).decode()


def measuring(fleet: Fleet, *nodes: str) -> None:
    """Wait until fio measures on each of these."""
    wait_for(lambda: all(fleet.machine(node).measuring() for node in nodes) or None)


def spooled(fleet: Fleet, node: str) -> list[str]:
    """What the node keeps for the store."""
    return [path.name for path in fleet.machine(node).disk.glob("spool-*/*/raw,*")]


@pytest.fixture
def outdated(fleet: Fleet) -> Iterator[str]:
    """A node whose tasks fail before they leave any word."""
    name = NODES[1]
    dags = fleet.machine(name).disk / "dags"
    here = dags.readlink()
    dags.unlink()
    dags.mkdir()
    (dags / "fleet_benchmark.py").write_text(_OTHER_DAG)
    yield name
    shutil.rmtree(dags)
    dags.symlink_to(here)


def test_a_node_that_is_down_is_told_from_one_whose_task_fails_at_once_and_the_next_run_measures_it(
    fleet: Fleet, outdated: str
) -> None:
    down, _, *up = NODES
    machine = fleet.machine(down)
    machine.cut_off()
    try:
        run = fleet.ended(fleet.trigger(suite="tiny"))
    finally:
        machine.plug_in()
    reason = "node unreachable: no task was heard to begin there within 30 s"
    assert run.state == "success"
    missing = {down: [("not_measured", reason)] * 2, outdated: [("not_measured", BEGAN)] * 2}
    assert rows(fleet, run) == {**missing, **dict.fromkeys(up, [("ok", "")] * 2)}
    assert {fleet.instances(run, "measure")[node]["state"] for node in missing} == {"failed"}
    assert reason in page(fleet, run)
    history = coverage.read(storage.open_store(fleet.settings), "tiny")
    assert history.reasons[down] == f"not_measured: {reason}"
    fleet.kill_worker(down)
    fleet.revive_worker(down)
    measured = [down, *up]
    after = fleet.ended(fleet.trigger(suite="tiny", nodes=measured))
    assert rows(fleet, after) == dict.fromkeys(measured, [("ok", "")] * 2)
    assert down not in coverage.read(storage.open_store(fleet.settings), "tiny").reasons


def test_tasks_of_killed_workers_are_tried_again_on_their_nodes_and_nothing_is_left_or_halved(fleet: Fleet) -> None:
    whole, alone = nodes = NODES[1:3]
    run = fleet.trigger(suite="seconds", nodes=list(nodes), repeats=1, overrides={"runtime_s": 5.0})
    measuring(fleet, *nodes)
    fleet.kill_worker(whole)
    fleet.kill_worker_alone(alone)
    wait_for(lambda: not any(fleet.machine(node).processes() for node in nodes) or None)
    for node in nodes:
        fleet.revive_worker(node)
    assert fleet.ended(run).state == "success"
    assert tried(fleet, run) == placed(dict.fromkeys(nodes, 2))
    assert attempts(fleet, run) == [(node, 2) for node in nodes]
    assert rows(fleet, run) == {node: [("ok", "")] for node in nodes}


def test_a_task_that_outlives_its_worker_ends_well_and_nothing_runs_beside_it(fleet: Fleet) -> None:
    """A worker that was started by Airflow's own command leaves its tasks behind."""
    node = NODES[3]
    fleet.kill_worker(node)
    fleet.revive_worker(node, module="airflow")
    run = fleet.trigger(suite="seconds", nodes=[node], repeats=1)
    measuring(fleet, node)
    fleet.kill_worker_alone(node)
    left_behind = fleet.machine(node).measuring()
    beside = fleet.trigger(suite="tiny", nodes=[node])
    fleet.revive_worker(node)  # the other tests need it, too
    assert left_behind
    assert fleet.ended(run).state == fleet.ended(beside).state == "success"
    assert attempts(fleet, run) == [(node, 1)]
    assert rows(fleet, run) == {node: [("ok", "")]}
    assert rows(fleet, beside) == {node: [("ok", "")] * 2}
    (first,) = raws(fleet, run)
    ended_at = first.started_at + timedelta(seconds=first.duration_s)
    assert all(ended_at <= raw.started_at for raw in raws(fleet, beside))


def test_the_run_goes_on_when_scheduler_and_api_server_come_back(fleet: Fleet) -> None:
    run = fleet.trigger(suite="seconds")
    measuring(fleet, *NODES)
    for name in ("scheduler", "api-server"):
        fleet.kill_component(name)
    for name in ("scheduler", "api-server"):
        fleet.start_component(name)
    wait_for(lambda: fleet.airflow.is_up() or None)
    assert fleet.ended(run).state == "success"
    assert attempts(fleet, run) == sorted((node, 1) for node in NODES for _ in range(2))
    assert rows(fleet, run) == dict.fromkeys(NODES, [("ok", "")] * 2)


def test_what_a_store_that_is_away_does_not_take_is_spooled_and_sent_when_it_is_back(fleet: Fleet) -> None:
    run = fleet.trigger(suite="seconds")
    measuring(fleet, *NODES)
    for machine in fleet.network.machines:
        machine.lose(fleet.network.store_address)
    try:
        wait_for(lambda: all(spooled(fleet, node) for node in NODES) or None)
    finally:
        for machine in fleet.network.machines:
            machine.find(fleet.network.store_address)
    assert fleet.ended(run).state == "success"
    assert attempts(fleet, run) == sorted((node, 1) for node in NODES for _ in range(2))
    assert rows(fleet, run) == dict.fromkeys(NODES, [("ok", "")] * 2)
    assert [spooled(fleet, node) for node in NODES] == [[]] * len(NODES)


def test_what_comes_after_its_task_was_given_up_is_sent_by_the_next_and_lands(fleet: Fleet) -> None:
    node, other = NODES[0], NODES[1]
    run = fleet.trigger(suite="seconds", nodes=[node, other], repeats=1)
    measuring(fleet, node, other)
    machine = fleet.machine(node)
    machine.lose(fleet.network.store_address)
    try:
        fleet.task(run, "measure", node, "up_for_retry")
        give_up(fleet, run, node)
        assert fleet.ended(run).state == "success"
    finally:
        machine.find(fleet.network.store_address)
    assert rows(fleet, run) == {node: [("not_measured", BEGAN)], other: [("ok", "")]}
    assert len(spooled(fleet, node)) == 1
    after = fleet.ended(fleet.trigger(suite="tiny", nodes=[node]))
    assert after.state == "success"
    assert rows(fleet, run) == {node: [("ok", "")], other: [("ok", "")]}
    assert attempts(fleet, run) == [(node, 1), (other, 1)]


def give_up(fleet: Fleet, run: Run, node: str) -> None:
    """As an operator does who does not wait for the other tries."""
    index = fleet.instances(run, "measure")[node]["map_index"]
    path = f"/api/v2/dags/{run.dag}/dagRuns/{run.run_id}/taskInstances/measure/{index}"
    fleet.airflow.patch(path, {"new_state": "failed"})


def test_a_cleared_task_and_a_backfill_run_on_the_right_nodes(fleet: Fleet) -> None:
    run = fleet.ended(fleet.trigger(suite="tiny"))
    node = NODES[2]
    index = fleet.instances(run, "measure")[node]["map_index"]
    cleared: dict[str, Any] = {"dry_run": False, "dag_run_id": run.run_id, "task_ids": [["measure", index]]}
    fleet.airflow.post(f"/api/v2/dags/{run.dag}/clearTaskInstances", {**cleared, "only_failed": False})
    tries = {name: 2 if name == node else 1 for name in NODES}
    wait_for(lambda: (fleet.airflow.run(run).ended and tried(fleet, run) == placed(tries)) or None)

    backfill = {"dag_id": run.dag, "from_date": "2025-12-31T12:00:00Z", "to_date": "2026-01-01T12:00:00Z"}
    fleet.airflow.post("/api/v2/backfills", {**backfill, "dag_run_conf": {"suite": "tiny"}})
    runs = f"/api/v2/dags/{run.dag}/dagRuns?run_type=backfill"
    made = wait_for(lambda: next(iter(fleet.airflow.get(runs)["dag_runs"]), None))
    filled = fleet.ended(Run(dag=run.dag, run_id=made["dag_run_id"], run_after=made["run_after"], state=made["state"]))
    assert filled.state == "success"
    assert tried(fleet, filled) == placed(dict.fromkeys(NODES, 1))
    assert rows(fleet, filled) == dict.fromkeys(NODES, [("ok", "")] * 2)


def tried(fleet: Fleet, run: Run) -> dict[str, tuple[Any, ...]]:
    """Where and how often each node's task has run."""
    wanted = ("hostname", "queue", "pool", "try_number")
    return {node: tuple(each[key] for key in wanted) for node, each in fleet.instances(run, "measure").items()}


def placed(tries: dict[str, int]) -> dict[str, tuple[Any, ...]]:
    """Where each node's task should have run."""
    return {node: (node, node, f"node-{node}", number) for node, number in tries.items()}
