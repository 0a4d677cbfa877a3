"""Where a task of a node runs: in the queue of the node's own worker, and in a pool of one slot.

`queue` and `pool` cannot be mapped, so the tasks of nodes say `queue="per-node"` and this cluster policy, which Airflow
calls for each of them, puts the node's own in their place. Which node is meant is what the task is mapped over: names
of nodes, as an upstream task returned them. It is called in the scheduler, for scheduled, manual and backfilled runs
alike, and again for each retry and each clearing.
"""

import logging
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.policies import hookimpl

from pipelines import inventory, lanes, settings

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance

log = logging.getLogger(__name__)

PER_NODE = "per-node"
"""The queue of tasks whose own is not known yet. No worker listens to it."""

_REMEMBERED = 64  # runs at a time

_planned: dict[tuple[int, str], tuple[datetime, tuple[str, ...]]] = {}


@hookimpl
def task_instance_mutation_hook(task_instance: "TaskInstance", dag_run: "DagRun | None") -> None:
    """Called by Airflow. Whatever goes wrong here, the scheduler goes on; the task then waits for a worker in vain."""
    if task_instance.queue != PER_NODE or task_instance.map_index < 0 or dag_run is None:
        return
    try:
        _route(task_instance, dag_run)
    except Exception:
        log.exception(
            "no route: dag=%s task=%s index=%d", dag_run.dag_id, task_instance.task_id, task_instance.map_index
        )


class Place(NamedTuple):
    """Where the tasks of a node run."""

    queue: str
    pool: str  # see `lanes`


def places(path: Path) -> Mapping[str, Place]:
    """The place of each node of the inventory, which is read again when the file has changed."""
    return _places(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _places(path: Path, changed_at: int) -> Mapping[str, Place]:  # noqa: ARG001 - the key of what is remembered
    fleet = inventory.load(path)
    pools = lanes.of(fleet)
    return {node.name: Place(node.queue, pools[node.name]) for node in fleet.nodes}


def _route(task_instance: "TaskInstance", dag_run: "DagRun") -> None:
    nodes = _nodes_of(task_instance, dag_run)
    if task_instance.map_index >= len(nodes):
        return  # the plan has become shorter: Airflow is about to remove this one
    known = places(settings.load().inventory)
    task_instance.queue, task_instance.pool = known[nodes[task_instance.map_index]]


def _nodes_of(task_instance: "TaskInstance", dag_run: "DagRun") -> tuple[str, ...]:
    """What the task is mapped over, read by the scheduler's own session, which is not to be committed here."""
    from airflow.models.xcom import XCOM_RETURN_KEY, XComModel
    from sqlalchemy import select
    from sqlalchemy.orm import object_session

    source = _mapped_over(task_instance)
    session = object_session(dag_run)
    if session is None:
        raise RuntimeError("the run belongs to no session")
    where = (
        XComModel.dag_run_id == dag_run.id,
        XComModel.task_id == source,
        XComModel.map_index == -1,
        XComModel.key == XCOM_RETURN_KEY,
    )
    with session.no_autoflush:
        returned_at = session.scalar(select(XComModel.timestamp).where(*where))
        if returned_at is None:
            return ()
        key = (dag_run.id, source)
        if key not in _planned or _planned[key][0] != returned_at:  # a plan that was cleared is another one
            while len(_planned) >= _REMEMBERED:
                del _planned[next(iter(_planned))]
            value: Any = session.scalar(select(XComModel.value).where(*where))
            _planned[key] = returned_at, tuple(value)
    return _planned[key][1]


def _mapped_over(task_instance: "TaskInstance") -> str:
    task: Any = task_instance.task
    group = task.get_closest_mapped_task_group()
    mapped = task if group is None else group
    (source,) = {operator.task_id for operator in mapped.iter_mapped_dependencies()}
    return str(source)
