"""Who runs the tasks of nodes is a setting: the DAGs that Airflow reads differ in nothing else."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
from click.testing import CliRunner

from pipelines import process
from pipelines.commands.node import node

ROOT = Path(__file__).parents[2]
READ = """
import json
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
bag = DagBag("dags", bundle_name="dags-folder")
assert not bag.import_errors, bag.import_errors
found = {
    dag.dag_id: {
        task.task_id: {
            "upstream": sorted(task.upstream_task_ids),
            "trigger_rule": str(task.trigger_rule),
            "type": task.task_type,
            "verb": getattr(task, "partial_kwargs", {}).get("verb"),
            "queue": task.queue,
            "executor": task.executor,
        }
        for task in dag.tasks
    }
    for dag in bag.dags.values()
}
for dag in bag.dags.values():
    DagSerialization.to_dict(dag)
print(json.dumps(found))
"""
EXECUTORS = {
    "edge": "airflow.providers.edge3.executors.EdgeExecutor",
    "celery": "airflow.providers.celery.executors.celery_executor.CeleryExecutor",
}
ON_NODES = {
    "dataset_scrub": {"scrub_cache"},
    "dataset_stage": {"stage"},
    "fleet_benchmark": {"measure", "measure_devices", "exchange", "exchange_again"},
}

Tasks = dict[str, dict[str, Any]]


def read(home: Path, node_executor: str) -> dict[str, Tasks]:
    """The tasks of each DAG, read in a process of its own: the setting is looked at once."""
    executors = ",".join(f"{alias}:{path}" for alias, path in EXECUTORS.items())
    ours = {
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__EXECUTOR": f"LocalExecutor,{executors}",
        "AIRFLOW__CELERY__RESULT_BACKEND": "redis://127.0.0.1:1/1",
        "FLEETMARK_NODE_EXECUTOR": node_executor,
    }
    done = process.run(
        (sys.executable, "-c", READ), timeout_s=120, cwd=ROOT, environ={**os.environ, **ours}, passed=tuple(ours)
    )
    assert done.exit_status == 0, done.stderr
    found: dict[str, Tasks] = json.loads(done.stdout.splitlines()[-1])
    return found


def on_nodes(dags: dict[str, Tasks]) -> dict[str, Tasks]:
    return {name: {task: dags[name][task] for task in tasks} for name, tasks in ON_NODES.items()}


@pytest.mark.parametrize("node_executor", ["edge", "celery"])
def test_tasks_of_nodes_go_to_the_executor_that_the_setting_names_and_no_others(
    tmp_path: Path, node_executor: str
) -> None:
    dags = read(tmp_path, node_executor)
    sent = {
        name: {task for task, found in tasks.items() if found["executor"] == node_executor}
        for name, tasks in dags.items()
    }
    assert {name: tasks for name, tasks in sent.items() if tasks} == ON_NODES


def test_by_ssh_each_task_of_nodes_is_a_verb_that_there_is_and_the_dags_have_the_same_shape(tmp_path: Path) -> None:
    embedded, agentless = read(tmp_path, ""), read(tmp_path, "ssh")
    shapes = [
        {
            name: {task: (found["upstream"], found["trigger_rule"]) for task, found in tasks.items()}
            for name, tasks in dags.items()
        }
        for dags in (embedded, agentless)
    ]
    assert shapes[0] == shapes[1]
    by_ssh = {
        name: {task for task, found in tasks.items() if found["type"] == "NodeJob"} for name, tasks in agentless.items()
    }
    assert {name: tasks for name, tasks in by_ssh.items() if tasks} == ON_NODES
    verbs = {found["verb"] for tasks in on_nodes(agentless).values() for found in tasks.values()}
    assert verbs == set(node.commands)


@pytest.mark.usefixtures("home")
def test_the_hash_of_an_approval_reaches_the_verb_on_the_node() -> None:
    from fleetmark_airflow.tasks import APPROVED

    class Ti:
        """Airflow's, which has returned this hash from the task that waits for the approval."""

        @staticmethod
        def xcom_pull(task_ids: str, key: str) -> str:
            return {("approve", "approval"): "5e1f"}[task_ids, key]

    rendered = [jinja2.Template(each).render(ti=Ti) for each in APPROVED]
    given = node.commands["measure-devices"].make_context("measure-devices", ["run-1", "localhost", *rendered]).params
    assert given["approval"] == "5e1f"


@pytest.mark.parametrize(("rate", "sha256"), [(None, False), (2.5, True)])
def test_the_form_of_a_scrub_reaches_the_verb_on_the_node(home: Path, rate: float | None, sha256: bool) -> None:
    from fleetmark_airflow.dataset_tasks import THOROUGHNESS

    params = {"sample_percent": 50.0, "rate_mb_per_s": rate, "sha256": sha256}
    rendered = [jinja2.Template(each).render(params=params) for each in THOROUGHNESS]
    done = CliRunner().invoke(node, ("scrub-cache", "scrub-1", "localhost", "--attempt", "1", *rendered))
    assert done.exit_code == 0, done.output
    given = node.commands["scrub-cache"].make_context("scrub-cache", ["scrub-1", "localhost", *rendered]).params
    expected = {"sample": 50.0, "rate": int((rate or 0) * 1_000_000), "sha256": sha256}
    assert {name: given[name] for name in expected} == expected
