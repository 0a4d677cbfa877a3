"""Where a task of a node runs: in the queue of the node's own worker, and in a pool of one slot.

`queue` and `pool` cannot be mapped, so the tasks of nodes say `queue="per-node"` and this cluster policy, which Airflow
calls for each of them, puts the node's own in their place. Which node is meant is what the task is mapped over: names
of nodes, as an upstream task returned them. It is called in the scheduler, for scheduled, manual and backfilled runs
alike, and again for each retry and each clearing. It says whose turn it is, too, where several wait for a node.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from airflow.policies import hookimpl

from pipelines import inventory, lanes, settings
from pipelines.tenants import NIGHTLY

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy.orm import SessionTransaction

log = logging.getLogger(__name__)

PER_NODE = "per-node"
"""The queue of tasks whose own is not known yet. No worker listens to it."""

PER_PAIR = "per-pair"
"""The same, of tasks that need another node's at the same time: they cannot wait for each other in one lane."""

PLANNING = "planning"
"""The pool in which runs are planned, one at a time."""

PRIORITY = "priority"
"""The XCom of a run's plan that says how soon its turn is, among tasks that wait for a node. See `tenants`."""


class Place(NamedTuple):
    """Where the tasks of a node run."""

    queue: str
    pool: str  # see `lanes`
    pair_pool: str  # the same where the node has a lane of its own


class _Planned(NamedTuple):
    nodes: tuple[str, ...]
    priority: int
    places: Mapping[str, Place]


_read: WeakKeyDictionary["SessionTransaction", dict[tuple[int, str], _Planned]] = WeakKeyDictionary()
"""What an open transaction has read, by run and task; it goes with the transaction.

Airflow expands a task in one, and calls twice for each index. What an earlier one has read may have been cleared since,
and to ask whether it was costs as much as to read it.
"""


@hookimpl
def task_instance_mutation_hook(task_instance: "TaskInstance", dag_run: "DagRun | None") -> None:
    """Called by Airflow. Whatever goes wrong here, the scheduler goes on; the task then waits for a worker in vain."""
    if task_instance.queue not in {PER_NODE, PER_PAIR} or task_instance.map_index < 0 or dag_run is None:
        return
    try:
        _route(task_instance, dag_run)
    except Exception:
        log.exception(
            "no route: dag=%s task=%s index=%d", dag_run.dag_id, task_instance.task_id, task_instance.map_index
        )


def places(path: Path) -> Mapping[str, Place]:
    """The place of each node of the inventory, which is read again when the file has changed."""
    return _places(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _places(path: Path, changed_at: int) -> Mapping[str, Place]:  # noqa: ARG001 - the key of what is remembered
    fleet = inventory.load(path)
    pools = lanes.of(fleet)
    nodes = Counter(pools.values())
    return {
        node.name: Place(node.queue, pool, pool if nodes[pool] == 1 else f"pair-{node.name}")
        for node, pool in zip(fleet.nodes, pools.values(), strict=True)
    }


def _route(task_instance: "TaskInstance", dag_run: "DagRun") -> None:
    planned = _planned_for(task_instance, dag_run)
    if planned is None or task_instance.map_index >= len(planned.nodes):
        return  # the plan has become shorter: Airflow is about to remove this one
    place = planned.places[planned.nodes[task_instance.map_index]]
    task_instance.pool = place.pool if task_instance.queue == PER_NODE else place.pair_pool
    task_instance.queue = place.queue
    task_instance.priority_weight = planned.priority


def _planned_for(task_instance: "TaskInstance", dag_run: "DagRun") -> _Planned | None:
    """What the task is mapped over, read by the scheduler's own session, which is not to be committed here."""
    from airflow.models.xcom import XCOM_RETURN_KEY, XComModel
    from sqlalchemy import select
    from sqlalchemy.orm import object_session

    session = object_session(dag_run)
    if session is None:
        raise RuntimeError("the run belongs to no session")
    key = (dag_run.id, _mapped_over(task_instance))
    known = _read.setdefault(session.get_transaction() or session.begin(), {})
    if key not in known:
        of_run = XComModel.dag_run_id == dag_run.id
        of_source = (XComModel.task_id == key[1], XComModel.map_index == -1, XComModel.key == XCOM_RETURN_KEY)
        with session.no_autoflush:
            nodes: Any = session.scalar(select(XComModel.value).where(of_run, *of_source))
            priority: Any = session.scalar(select(XComModel.value).where(of_run, XComModel.key == PRIORITY))
        if nodes is None:
            return None
        there = places(settings.load().inventory)
        known[key] = _Planned(tuple(nodes), NIGHTLY if priority is None else priority, there)
    return known[key]


def _mapped_over(task_instance: "TaskInstance") -> str:
    task: Any = task_instance.task
    group = task.get_closest_mapped_task_group()
    mapped = task if group is None else group
    (source,) = {operator.task_id for operator in mapped.iter_mapped_dependencies()}
    return str(source)
