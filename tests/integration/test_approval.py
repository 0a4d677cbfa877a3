"""A run that writes to a raw device, through a real Airflow: it waits, another person lets it, and it measures."""

import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import jwt
import pytest

from pipelines import keys, storage
from pipelines.approvals import Approval
from pipelines.embedded.api import Run
from tests.following import run_id_of
from tests.integration.conftest import Deployed
from tests.node.disks import SIZE_BYTES, attached

pytestmark = pytest.mark.integration
DAG = "fleet_benchmark"


@pytest.fixture
def disk(deployed: Deployed, tmp_path: Path) -> Iterator[Path]:
    """An empty disk that the deployment's inventory lists."""
    inventory = deployed.settings.inventory
    before = inventory.read_text()
    name = f"disk-{uuid.uuid4().hex[:12]}"
    with attached(tmp_path) as attach:
        inventory.write_text(before.replace("\nlabels = ", f'\ndevices = ["loop:{name}"]\nlabels = ', 1))
        yield attach(name)
    inventory.write_text(before)


def person(deployed: Deployed, name: str, role: str = "user") -> httpx.Client:
    """Somebody who has logged in: the embedded Airflow has one user, so the token is made with its secret."""
    now = int(time.time())
    claims = {"sub": name, "role": role, "iss": "fleetmark", "aud": "apache-airflow", "iat": now, "nbf": now}
    token = jwt.encode({**claims, "exp": now + 600}, deployed.home.secrets().jwt_secret, algorithm="HS512")
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=deployed.url, headers=headers, timeout=60, trust_env=False)


def let_time_pass(deployed: Deployed, run: Run) -> None:
    """As if the run had waited for as long as it may: Airflow has the end of that as a time in its database."""
    with closing(sqlite3.connect(deployed.home.database, timeout=60)) as database, database:
        sql = "UPDATE task_instance SET trigger_timeout = ? WHERE run_id = ? AND task_id = 'approve'"
        assert database.execute(sql, ("2026-01-01 00:00:00.000000", run.run_id)).rowcount == 1


def question_of(run: Run) -> str:
    return f"/api/v2/dags/{DAG}/dagRuns/{run.run_id}/taskInstances/approve/-1/hitlDetails"


def rows_of(deployed: Deployed, run: Run) -> dict[str, tuple[str, str | None]]:
    """Outcome and reason of a run's jobs, by benchmark."""
    rows = deployed.answer(f"SELECT benchmark, outcome, reason FROM runs WHERE run_id = '{run_id_of(run)}'")
    return {benchmark: (outcome, reason) for benchmark, outcome, reason in rows}


def test_a_run_waits_and_writes_to_its_disk_once_another_person_than_its_starter_has_let_it(
    deployed: Deployed, disk: Path
) -> None:
    own, others, silent = (deployed.airflow.trigger(DAG, {"suite": "disks"}) for _ in range(3))
    for run in (own, others, silent):
        deployed.task(run, "approve", "awaiting_input")
        deployed.task(run, "measure", "success")  # what needs no approval does not wait
    assert disk.read_bytes() == bytes(SIZE_BYTES)
    shown = deployed.airflow.get(question_of(others))
    assert shown["subject"] == f"Overwrite 1 disk? Run {run_id_of(others)}"
    assert "| `localhost` | `loop:disk-" in shown["body"]

    yes = {"chosen_options": ["Approve"]}
    let_time_pass(deployed, silent)
    with person(deployed, "wall", "viewer") as viewer, person(deployed, "bob") as bob:
        assert viewer.patch(question_of(others), json=yes).status_code == 403
        deployed.airflow.patch(question_of(own), yes)
        assert bob.patch(question_of(others), json=yes).status_code == 200
        assert bob.patch(question_of(own), json=yes).status_code == 409

    tasks = {}
    for run in (own, others, silent):
        ended, tasks[run.run_id] = deployed.ended(run)
        assert ended.state == "success"
    assert tasks[others.run_id]["measure_devices"].node == "localhost"
    why = "not approved: admin started the run, and another person has to approve it"
    assert rows_of(deployed, own) == {"fio": ("ok", ""), "raw_device": ("config", why)}
    why = "not approved: nobody answered in time"
    assert rows_of(deployed, silent) == {"fio": ("ok", ""), "raw_device": ("config", why)}
    assert rows_of(deployed, others) == {"fio": ("ok", ""), "raw_device": ("ok", "")}
    kept = storage.open_store(deployed.settings).read(keys.approval_key(run_id_of(others)))
    approval = Approval.model_validate_json(kept)
    assert (approval.granted, approval.by, approval.asked_by) == (True, "bob", "admin")
    assert disk.read_bytes() != bytes(SIZE_BYTES)
