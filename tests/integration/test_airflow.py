"""The whole way through a real Airflow: REST trigger, scheduler, task processes, fio, tables, assets."""

import os
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from pyarrow import parquet

from pipelines import keys, storage
from pipelines.embedded import follow
from pipelines.errors import TriggerRefused
from pipelines.tables.query import open_reader
from tests.following import run_id_of
from tests.integration.conftest import Deployed, descendants

pytestmark = pytest.mark.integration
DAG = "fleet_benchmark"


def log_of(deployed: Deployed, run: object, task: object) -> str:
    return "\n".join(follow.tail(follow.log_of(deployed.home.logs, run, task)))  # type: ignore[arg-type]


def test_the_nightly_defaults_land_and_the_asset_event_carries_the_tables_versions(deployed: Deployed) -> None:
    run, tasks = deployed.ended(deployed.airflow.trigger(DAG, {}))
    not_in_the_suite = {"exchange", "isolate", "exchange_again", "approve", "measure_devices"}
    assert {name for name, task in tasks.items() if task.state == "skipped"} == not_in_the_suite
    assert {task.state for name, task in tasks.items() if name not in not_in_the_suite} == {"success"}
    assert tasks["measure"].node == "localhost"
    ours = run_id_of(run)
    assert deployed.answer(f"SELECT suite, outcome, count(*) FROM runs WHERE run_id = '{ours}' GROUP BY ALL") == (
        ("nightly", "ok", 2),
    )
    events = deployed.airflow.get(f"/api/v2/assets/events?source_dag_id={DAG}&limit=100")["asset_events"]
    (event,) = (event for event in events if event["source_run_id"] == run.run_id)
    assert event["extra"]["run_id"] == ours
    at = event["extra"]["versions"]["runs"]
    with open_reader(storage.open_store(deployed.settings), at) as then:
        assert then.query(f"SELECT count(*) FROM completed WHERE run_id = '{ours}'").rows == ((1,),)
    with open_reader(storage.open_store(deployed.settings), at - 1) as before:
        assert before.query(f"SELECT count(*) FROM runs WHERE run_id = '{ours}'").rows == ((0,),)


@pytest.mark.parametrize(
    ("conf", "sentence"),
    [
        ({"suite": "nope"}, "'nope' is not one of ['disks', 'nightly', 'quick', 'seconds', 'tiny']"),
        ({"nodes": ["gpu-99"]}, "'gpu-99' is not one of ['localhost']"),
        ({"repeats": 101}, "101 is greater than the maximum of 100"),
    ],
)
def test_wrong_input_is_refused_at_the_trigger_with_http_400_and_a_sentence(
    deployed: Deployed, conf: dict[str, object], sentence: str
) -> None:
    credentials = {"username": "admin", "password": deployed.home.secrets().password}
    token = httpx.post(f"{deployed.url}/auth/token", json=credentials).json()["access_token"]
    answer = httpx.post(
        f"{deployed.url}/api/v2/dags/{DAG}/dagRuns",
        json={"logical_date": None, "conf": conf},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert answer.status_code == 400
    assert sentence in answer.json()["detail"]
    with pytest.raises(TriggerRefused, match=r"^Airflow refused to start fleet_benchmark: Invalid input for param"):
        deployed.airflow.trigger(DAG, conf)


def test_an_unknown_override_fails_the_plan_with_a_sentence_and_without_a_retry(deployed: Deployed) -> None:
    run, tasks = deployed.ended(deployed.airflow.trigger(DAG, {"suite": "tiny", "overrides": {"bogus": 1}}))
    assert run.state == "failed"
    assert (tasks["plan"].state, tasks["plan"].try_number) == ("failed", 1)
    assert "parameter 'bogus': there is no such parameter; known: profile" in log_of(deployed, run, tasks["plan"])


def test_a_dry_run_prints_the_plan_in_the_log_and_writes_nothing(deployed: Deployed) -> None:
    run, tasks = deployed.ended(deployed.airflow.trigger(DAG, {"suite": "tiny", "dry_run": True}))
    assert Counter(task.state for task in tasks.values()) == {"success": 1, "skipped": len(tasks) - 1}
    assert "case=rand_read-4MiB repeat=2" in log_of(deployed, run, tasks["plan"])
    assert not storage.open_store(deployed.settings).exists(keys.plan_key(run_id_of(run)))


def test_two_runs_at_once_both_land_and_the_second_waited_for_the_lease_and_says_so(deployed: Deployed) -> None:
    first = deployed.airflow.trigger(DAG, {"suite": "seconds"})
    second = deployed.airflow.trigger(DAG, {"suite": "seconds"})
    ended = [deployed.ended(run) for run in (first, second)]
    assert [run.state for run, _ in ended] == ["success", "success"]
    names = ", ".join(f"'{run_id_of(run)}'" for run, _ in ended)
    waits = deployed.answer(
        f"SELECT max(lease_wait_s) FROM runs WHERE run_id IN ({names}) AND outcome = 'ok' GROUP BY run_id ORDER BY 1"
    )
    assert waits[0][0] < 0.5
    assert waits[1][0] > 0.5
    said = [log_of(deployed, run, tasks["measure"]) for run, tasks in ended]
    assert sum("lease" in log for log in said) == 1


def test_landing_killed_in_the_middle_is_retried_by_airflow_and_lands_exactly_once(deployed: Deployed) -> None:
    """Between two tables: what says where the table `measurements` starts is a FIFO, on which the task waits."""
    store = storage.open_store(deployed.settings)
    fifo = Path(store.path("tables/measurements/_delta_log")) / "_last_checkpoint"
    if not fifo.parent.exists():
        deployed.ended(deployed.airflow.trigger(DAG, {"suite": "tiny"}))
    run = deployed.airflow.trigger(DAG, {"suite": "tiny"})
    ours = run_id_of(run)
    deployed.task(run, "validate", "running")
    deployed.airflow.patch(f"/api/v2/dags/{DAG}", {"is_paused": True})  # keeps `land` from being started
    deployed.task(run, "validate", "success")
    assert not fifo.exists()  # no table has that many versions yet
    os.mkfifo(fifo)
    deployed.airflow.patch(f"/api/v2/dags/{DAG}", {"is_paused": False})
    os.kill(deployed.wait_for(lambda: waiting_on_a_fifo(deployed.keeper)), signal.SIGKILL)
    fifo.unlink()
    landed = {name: f"SELECT count(*) FROM {name} WHERE run_id = '{ours}'" for name in ("histograms", "runs")}
    assert deployed.answer(landed["histograms"])[0][0] > 0
    assert deployed.answer(landed["runs"]) == ((0,),)

    run, tasks = deployed.ended(run)
    assert run.state == "success"
    assert tasks["land"].try_number == 2
    for name in ("runs", "measurements", "histograms"):
        (file,) = Path(store.path("landing")).glob(f"{ours}.*/{name}.parquet")
        wanted = parquet.read_metadata(file).num_rows
        assert wanted > 0
        assert deployed.answer(f"SELECT count(*) FROM {name} WHERE run_id = '{ours}'") == ((wanted,),)


def waiting_on_a_fifo(keeper: int) -> int | None:
    """The process of this Airflow with a thread that waits in the kernel for the other end of a FIFO (fifo(7))."""
    for process in descendants(keeper):
        for thread in Path(f"/proc/{process}/task").glob("*"):
            with suppress(OSError):
                if (thread / "wchan").read_text() == "wait_for_partner":
                    return process
    return None
