"""Where tasks of nodes are sent, as Airflow asks for each of them; and the pools they wait in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

FLEET = """
[limits]
rack = 1

[[nodes]]
name = "gpu-01"
queue = "queue-1"
scratch = "scratch"
labels = { rack = "r1" }

[[nodes]]
name = "gpu-02"
queue = "queue-2"
scratch = "scratch"
labels = { rack = "r1" }

[[nodes]]
name = "gpu-03"
queue = "queue-3"
scratch = "scratch"
"""


DAG = """
from airflow.sdk import dag, get_current_context, task
from fleetmark_airflow.routing import PER_NODE, PER_PAIR, PRIORITY

@dag(schedule=None)
def routed():
    @task
    def plan():
        context = get_current_context()
        conf = context["dag_run"].conf
        if conf["priority"] is not None:
            context["ti"].xcom_push(key=PRIORITY, value=conf["priority"])
        return list(conf["nodes"])

    @task(queue=PER_NODE)
    def measure(node): ...

    @task(queue=PER_PAIR)
    def exchange(node): ...

    planned = plan()
    measure.expand(node=planned) >> exchange.expand(node=planned)

routed()
"""


@pytest.fixture
def home(home: Path) -> Path:
    (home / "fleet.toml").write_text(FLEET)
    return home


def routed(home: Path, *nodes: str, priority: int | None = None) -> dict[str, dict[int, tuple[str, str, int]]]:
    """Queue, pool and priority of the mapped tasks of a run over these nodes, by task."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db

    (home / "dags").mkdir()
    (home / "dags/routed.py").write_text(DAG)
    bag = DagBag(str(home / "dags"), bundle_name="dags-folder")
    DagBundlesManager().sync_bundles_to_db()
    sync_bag_to_db(bag, "dags-folder", None)
    (dag,) = bag.dags.values()
    done = dag.test(run_conf={"nodes": nodes, "priority": priority})
    found: dict[str, dict[int, tuple[str, str, int]]] = {}
    for ti in done.get_task_instances():
        assert ti.state == "success"
        found.setdefault(ti.task_id, {})[ti.map_index] = (ti.queue, ti.pool, ti.priority_weight)
    return found


def test_tasks_run_in_their_nodes_queue_and_those_under_a_limit_share_a_pool_but_for_pairs(home: Path) -> None:
    found = routed(home, "gpu-03", "gpu-01", "gpu-02", priority=7)
    assert found["measure"] == {
        0: ("queue-3", "node-gpu-03", 7),
        1: ("queue-1", "rack-r1-1", 7),
        2: ("queue-2", "rack-r1-1", 7),
    }
    assert {index: pool for index, (_, pool, _) in found["exchange"].items()} == {
        0: "node-gpu-03",
        1: "pair-gpu-01",
        2: "pair-gpu-02",
    }, "two peers in one pool of one slot would wait for each other"


def test_a_run_that_says_nothing_of_its_priority_has_the_nightly_one(home: Path) -> None:
    from pipelines.tenants import NIGHTLY

    assert routed(home, "gpu-01")["measure"] == {0: ("queue-1", "rack-r1-1", NIGHTLY)}


def test_a_node_that_is_not_known_leaves_its_task_where_no_worker_listens_and_stops_nothing(home: Path) -> None:
    assert [queue for queue, _, _ in routed(home, "gpu-01", "gpu-99")["measure"].values()] == ["queue-1", "per-node"]


def test_a_transaction_reads_once_where_all_nodes_are_and_the_next_sees_a_plan_that_is_another_now(home: Path) -> None:
    from airflow import settings as airflow
    from airflow.models.dagbag import DBDagBag
    from airflow.models.dagrun import DagRun
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import event, select, update

    from fleetmark_airflow import routing

    routed(home, "gpu-01", "gpu-02")
    newest = select(DagRun).where(DagRun.dag_id == "routed").order_by(DagRun.id.desc()).limit(1)
    asked: list[str] = []

    def again() -> list[str]:
        """The queues of the two, as they are expanded again."""
        with create_session(scoped=False) as session:
            run = session.scalars(newest).one()
            task = DBDagBag().get_latest_version_of_dag("routed", session=session).get_task("measure")
            tis = sorted(run.get_task_instances(session=session), key=lambda ti: ti.map_index)
            asked.clear()
            for ti in (measured := [ti for ti in tis if ti.task_id == "measure"]):
                ti.task, ti.queue = task, routing.PER_NODE
                routing.task_instance_mutation_hook(ti, run)
            return [ti.queue for ti in measured]

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        asked.extend(["xcom"] if "FROM xcom" in statement else [])

    event.listen(airflow.engine, "before_cursor_execute", note)
    try:
        assert again() == ["queue-1", "queue-2"]
        assert len(asked) == 2, "the nodes, and the run's priority"
        with create_session(scoped=False) as session:
            of_plan = (XComModel.dag_run_id == session.scalars(newest).one().id, XComModel.task_id == "plan")
            nodes = update(XComModel).where(*of_plan, XComModel.key == "return_value")
            session.execute(nodes.values(value=["gpu-03", "gpu-01"]))
        assert again() == ["queue-3", "queue-1"]
    finally:
        event.remove(airflow.engine, "before_cursor_execute", note)


@pytest.fixture
def session() -> Iterator[Any]:
    from airflow.utils.session import create_session

    with create_session(scoped=False) as made:
        yield made
        made.rollback()


def test_pools_are_made_mended_and_removed_as_the_inventory_says_and_no_others_are_touched(session: Any) -> None:
    from airflow.models.pool import Pool
    from sqlalchemy import select

    from fleetmark_airflow import pools

    def there() -> dict[str, tuple[int, bool]]:
        session.flush()
        return {pool.pool: (pool.slots, pool.include_deferred) for pool in session.scalars(select(Pool))}

    session.add(Pool(pool="somebody-elses", slots=5, include_deferred=False))
    others = there()
    pools.reconcile(session, {"node-a", "node-b"})
    assert there() == {**others, "node-a": (1, True), "node-b": (1, True)}
    session.scalar(select(Pool).where(Pool.pool == "node-a")).slots = 3
    pools.reconcile(session, {"node-a"})
    assert there() == {**others, "node-a": (1, True)}
