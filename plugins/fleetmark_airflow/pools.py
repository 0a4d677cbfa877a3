"""The pools of one slot that `lanes` says, so that tasks of a node wait for each other and busy is never like down.

Airflow calls `on_dag_run_running` in the scheduler before the run's first task is looked at. A task in a pool that is
not there would wait for ever, so pools are made here, and those of nodes that have left the inventory go.
"""

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from airflow.listeners import hookimpl

from fleetmark_airflow import routing
from pipelines import settings

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun
    from sqlalchemy.orm import Session

log = logging.getLogger(__name__)

OURS = "fleetmark: one task at a time"


@hookimpl
def on_dag_run_running(dag_run: "DagRun", msg: str) -> None:  # noqa: ARG001 - the signature is Airflow's
    """Called by Airflow. Whatever goes wrong here, the scheduler goes on."""
    try:
        current = settings.load()
        if not current.node_executor or "fleetmark" not in {tag.name for tag in dag_run.dag_model.tags}:
            return
        from airflow.utils.session import create_session

        with create_session(scoped=False) as session:  # not the scheduler's own, which is not to be committed here
            places = routing.places(current.inventory).values()
            of_nodes = {pool for place in places for pool in (place.pool, place.pair_pool)}
            reconcile(session, {routing.PLANNING, *of_nodes})
    except Exception:
        log.exception("the nodes' pools could not be looked after")


def reconcile(session: "Session", wanted: Collection[str]) -> None:
    """Make the pools that are missing, mend those that were changed, drop those that no node and no task needs."""
    from airflow.models.pool import Pool
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.state import State
    from sqlalchemy import select

    there = {pool.pool: pool for pool in session.scalars(select(Pool))}
    for name in sorted(wanted):
        pool = there.get(name)
        if pool is None:
            session.add(Pool(pool=name, slots=1, description=OURS, include_deferred=True))
        elif (pool.slots, pool.include_deferred) != (1, True):
            log.warning("pool mended: name=%s slots=%d; a node is drained in the inventory", name, pool.slots)
            pool.slots, pool.include_deferred = 1, True
    left = [name for name, pool in there.items() if pool.description == OURS and name not in wanted]
    if left:
        unfinished = select(TaskInstance.pool).where(
            TaskInstance.pool.in_(left), TaskInstance.state.in_(State.unfinished) | TaskInstance.state.is_(None)
        )
        needed = set(session.scalars(unfinished))
        for gone in set(left) - needed:
            session.delete(there[gone])
