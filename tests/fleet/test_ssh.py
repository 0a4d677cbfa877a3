"""A fleet without workers: each node's part of a run over SSH, followed by the triggerer. PostgreSQL, Ceph, fio."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import keys, storage
from pipelines.embedded.api import Run
from pipelines.records import RawOutput
from tests.fleet import disks, ground, ssh_fleet
from tests.fleet.conftest import SUITES
from tests.fleet.control import Fleet
from tests.fleet.ssh_fleet import Sshd
from tests.fleet.test_fleet import outcomes
from tests.following import run_id_of, wait_for

pytestmark = pytest.mark.integration

NODES = ("node-a", "node-b", "node-c")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """Three nodes; one of them does not answer."""
    with (
        ground.prepared(tmp_path_factory, NODES, "sshd", "ssh-keygen") as prepared,
        ssh_fleet.fleet(prepared, SUITES) as made,
    ):
        made.start("node-a")
        made.start("node-b")
        yield made


def raws(sshd: Sshd, run: Run) -> list[RawOutput]:
    store = storage.open_store(sshd.fleet.settings)
    found = store.keys_under(keys.raw_prefix(run_id_of(run)))
    return [RawOutput.model_validate_json(store.read(key)) for key in found]


def limit_tasks(fleet: Fleet, options: dict[str, str]) -> None:
    """Start the scheduler, and so the tasks to come, with other options."""
    fleet.kill_component("scheduler")
    fleet.environ.update(options)
    fleet.start_component("scheduler")


def benchmark_of(sshd: Sshd, node: str) -> tuple[int, ...]:
    """The processes of fio on the node, once there are any."""
    return wait_for(lambda: sshd.fleet.machine(node).measuring() or None)


def test_nodes_measure_themselves_over_ssh_and_one_that_is_down_delays_nobody(sshd: Sshd) -> None:
    fleet = sshd.fleet
    run = fleet.ended(fleet.trigger(suite="tiny"), timeout_s=480)
    assert run.state == "success"
    assert outcomes(fleet, run) == {"node-a": {("ok", 2)}, "node-b": {("ok", 2)}, "node-c": {("not_measured", 2)}}
    assert {(raw.job.node, raw.hostname) for raw in raws(sshd, run)} == {("node-a", "node-a"), ("node-b", "node-b")}
    reasons = fleet.answer(f"SELECT DISTINCT reason FROM runs WHERE run_id = '{run_id_of(run)}' AND node = 'node-c'")
    assert reasons == (("node unreachable: no task was heard to begin there within 150 s",),)
    instances = fleet.instances(run, "measure")
    assert {name: each["state"] for name, each in instances.items()} == {
        "node-a": "success",
        "node-b": "success",
        "node-c": "failed",
    }, "the UI shows each by its name"
    assert {name: each["pool"] for name, each in instances.items()} == {name: f"node-{name}" for name in NODES}
    assert [sshd.jobs(name) for name in NODES] == [[], [], []]
    log = "".join(path.read_text() for path in (fleet.folder / "logs").rglob("task_id=measure/map_index=0/*.log"))
    assert "2 raw outputs are in the store" in log
    assert "Requesting new SSH session" not in log


def test_nodes_meet_in_pairs_over_ssh(sshd: Sshd) -> None:
    fleet = sshd.fleet
    run = fleet.ended(fleet.trigger(suite="pairs", nodes=["node-a", "node-b"]))
    assert run.state == "success"
    met = fleet.answer(
        f"SELECT DISTINCT least(node, peer), greatest(node, peer), outcome FROM runs WHERE run_id = '{run_id_of(run)}'"
    )
    assert met == (("node-a", "node-b", "ok"),)


def test_a_disk_is_written_to_over_ssh_once_another_person_agrees(sshd: Sshd, tmp_path: Path) -> None:
    fleet = sshd.fleet
    with disks.given(fleet, "node-a", tmp_path) as disk:
        run = fleet.trigger(suite="disks", nodes=["node-a"])
        disks.question(fleet, run)
        disks.require_untouched(disk)
        disks.answer(fleet, run, "user", "Approve")
        assert fleet.ended(run).state == "success"
        disks.require_written(disk)
    assert disks.jobs(fleet, run) == {
        ("node-a", "fio"): ("ok", "", False),
        ("node-a", "dcgm_profile"): ("ok", "", True),
        ("node-a", "raw_device"): ("ok", "", False),
    }
    disks.require_watched(fleet, run, "node-a")


def test_clearing_a_task_ends_its_job_with_its_tool_and_the_next_attempt_does_it_all(sshd: Sshd) -> None:
    fleet = sshd.fleet
    run = fleet.trigger(suite="tiny", nodes=["node-a"], overrides={"runtime_s": 30}, repeats=1)
    first = benchmark_of(sshd, "node-a")
    fleet.task(run, "measure", "node-a", "deferred")
    fleet.airflow.post(
        "/api/v2/dags/fleet_benchmark/clearTaskInstances",
        {"dry_run": False, "dag_run_id": run.run_id, "task_ids": [["measure", 0]], "only_failed": False},
    )
    wait_for(lambda: not set(first) & set(fleet.machine("node-a").measuring()) or None)
    assert fleet.ended(run).state == "success"
    assert outcomes(fleet, run) == {"node-a": {("ok", 1)}}
    assert {raw.attempt for raw in raws(sshd, run)} == {2}
    assert sshd.jobs("node-a") == []


def test_a_node_that_was_restarted_in_mid_run_is_measured_by_the_next_attempt(sshd: Sshd) -> None:
    fleet = sshd.fleet
    run = fleet.trigger(suite="tiny", nodes=["node-b"], overrides={"runtime_s": 30}, repeats=1)
    benchmark_of(sshd, "node-b")
    fleet.task(run, "measure", "node-b", "deferred")
    fleet.machine("node-b").power_off()
    sshd.start("node-b")
    assert fleet.ended(run).state == "success"
    assert outcomes(fleet, run) == {"node-b": {("ok", 1)}}
    assert {raw.attempt for raw in raws(sshd, run)} == {2}


def test_a_job_that_takes_too_long_is_ended_with_its_tool(sshd: Sshd) -> None:
    fleet = sshd.fleet
    limit_tasks(fleet, {"AIRFLOW__CORE__DEFAULT_TASK_EXECUTION_TIMEOUT": "15"})
    run = fleet.trigger(suite="tiny", nodes=["node-a"], overrides={"runtime_s": 600})
    first, job = benchmark_of(sshd, "node-a"), sshd.jobs("node-a")
    wait_for(lambda: not set(first) & set(fleet.machine("node-a").measuring()) or None)
    wait_for(lambda: not set(job) & set(sshd.jobs("node-a")) or None)
    fleet.airflow.fail(run)
    limit_tasks(fleet, {"AIRFLOW__CORE__DEFAULT_TASK_EXECUTION_TIMEOUT": ""})


def test_what_another_attempt_does_not_cure_is_not_tried_again_a_strange_host_key_a_wrong_setting(sshd: Sshd) -> None:
    fleet = sshd.fleet
    ssh_fleet.write_settings(fleet.machine("node-a"), fleet.environ, FLEETMARK_TYPO="1")
    a, b = (fleet.machine(name) for name in ("node-a", "node-b"))
    text = sshd.known_hosts.read_text()
    key_of = {line.split()[0]: line for line in text.splitlines()}
    sshd.known_hosts.write_text(f"{key_of[a.address]}\n{b.address} {key_of[a.address].partition(' ')[2]}\n")
    try:
        run = fleet.ended(fleet.trigger(suite="tiny", nodes=["node-a", "node-b"]))
        assert outcomes(fleet, run) == {"node-a": {("not_measured", 2)}, "node-b": {("not_measured", 2)}}
        instances = fleet.instances(run, "measure")
        assert {(each["state"], each["try_number"]) for each in instances.values()} == {("failed", 1)}
        of_run = f"run_id = '{run_id_of(run)}'"
        said = dict(fleet.answer(f"SELECT DISTINCT node, reason FROM runs WHERE {of_run}"))  # type: ignore[arg-type]
        failed = "there is no raw output: the task measure of its node failed, attempt 1: node"
        assert said["node-a"].startswith(f"{failed} node-a: ")
        assert "FLEETMARK_TYPO" in said["node-a"]
        assert said["node-b"].startswith(f"{failed} node-b: SSH to {b.address}: Host key for server")
        assert raws(sshd, run) == []
    finally:
        sshd.known_hosts.write_text(text)
        ssh_fleet.write_settings(fleet.machine("node-a"), fleet.environ)
