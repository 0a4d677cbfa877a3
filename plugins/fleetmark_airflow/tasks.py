"""The tasks of the DAGs: each calls one stage of the library and hands keys and ids on, never data."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, get_current_context, task

from fleetmark_airflow.approval import APPROVAL, APPROVE, ApproveDevices
from fleetmark_airflow.on_node import IS_SSH, ON_NODE, ON_PAIR, ONE_AT_A_TIME, SSH_GIVES_UP_AFTER_S
from fleetmark_airflow.retries import OnlyInfrastructure
from fleetmark_airflow.routing import PRIORITY
from pipelines import settings as edge
from pipelines.tenants import NIGHTLY

if TYPE_CHECKING:
    from airflow.sdk.definitions.xcom_arg import XComArg

    from pipelines.records import Plan
    from pipelines.settings import Settings
    from pipelines.storage import Store

log = logging.getLogger("fleetmark")

RESULTS = Asset("fleetmark_results", "fleetmark://tables/measurements")
"""Updated by every landing; the event's extra holds the run's id and each table's version after it."""

DEFAULT_ARGS = {
    "owner": "fleetmark",
    "retries": 3,
    "retry_delay": timedelta(seconds=10),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=10),
    "retry_policy": OnlyInfrastructure(),
    "priority_weight": NIGHTLY,  # what is under way is brought to its end; nodes' tasks have their own, see `routing`
    "weight_rule": "absolute",
}


@task.short_circuit(**ONE_AT_A_TIME)  # type: ignore[untyped-decorator]
def plan() -> list[str]:
    """Make and publish the plan. Returns its nodes; none for a dry run, and everything after it is skipped."""
    from fleetmark_airflow import form
    from pipelines import stages

    require_known_parameters()
    context = get_current_context()
    dag_run, params = context["dag_run"], dict(context["params"])
    settings, store = deployment()
    trigger = "schedule" if dag_run.run_type == "scheduled" else "manual"
    made = stages.make_plan(settings, form.request(params, trigger), run(), dag_run.run_after.astimezone(UTC))
    made = made.model_copy(update={"unreachable_after_s": _unreachable_after_s()})
    _print(made, settings)
    if params["dry_run"]:
        log.info("dry run: nothing was published, nothing will run")
        return []
    published = stages.publish_plan(store, made)
    context["ti"].xcom_push(key=PRIORITY, value=published.priority)
    return [node.name for node in published.nodes]


@task(map_index_template="{{ task.op_kwargs['node'] }}", **ON_NODE)
def measure(node: str) -> int:
    """Run the node's jobs on this machine. Returns how many raw outputs there are."""
    from pipelines import stages

    settings, store = deployment()
    attempt = get_current_context()["ti"].try_number
    return len(stages.measure(settings, store, run(), node, attempt, log.info))


@task(map_index_template="{{ task.op_kwargs['node'] }}", trigger_rule="all_done", **ON_NODE)
def measure_devices(node: str) -> int:
    """Run the node's jobs on raw devices, as far as they were approved. Returns how many raw outputs there are."""
    from pipelines import stages

    ti = get_current_context()["ti"]
    approval = ti.xcom_pull(task_ids=APPROVE, key=APPROVAL)
    return len(stages.measure_devices(*deployment(), run(), node, ti.try_number, log.info, approval=approval))


APPROVED = ("--approval", f"{{{{ ti.xcom_pull(task_ids='{APPROVE}', key='{APPROVAL}') }}}}")
"""What `measure_devices` is told where it is a verb on the node."""


def approve() -> "XComArg":
    """Ask for the approval of the run's jobs on raw devices. Returns their nodes."""
    return ApproveDevices(task_id=APPROVE, response_timeout=timedelta(seconds=edge.load().approval_wait_s)).output


@task(trigger_rule="all_done_min_one_success")
def pair_up() -> list[str]:
    """Name the nodes that are measured in pairs, as far as the run reached them; none where the suite has no pairs."""
    from pipelines import stages

    return list(stages.pair_up(_store(), run()))


@task(map_index_template="{{ task.op_kwargs['node'] }}", **ON_PAIR)
def exchange(node: str) -> int:
    """Stand in the node's rounds with others, as all of them do now. Returns how many raw outputs there are."""
    return _exchange(node, again=False)


@task(trigger_rule="all_done_min_one_success")
def isolate() -> list[str]:
    """Find the pairs that did badly. Returns the nodes that are tested again, to tell bad ones from their partners."""
    from pipelines import stages

    return list(stages.isolate(*deployment(), run()))


@task(map_index_template="{{ task.op_kwargs['node'] }}", **ON_PAIR)
def exchange_again(node: str) -> int:
    """The same, in the rounds that `isolate` has added."""
    return _exchange(node, again=True)


def _exchange(node: str, *, again: bool) -> int:
    from pipelines import stages

    attempt = get_current_context()["ti"].try_number
    return len(stages.exchange(*deployment(), run(), node, attempt, log.info, again=again))


@task(trigger_rule="all_done")
def parse() -> str:
    """Turn raw outputs into rows; a node that failed has rows that say so. Returns the batch's id."""
    from pipelines import arrivals, stages

    store, at = _store(), datetime.now(UTC)
    arrivals.heard(store, run(), _begun(), at)
    return stages.parse(store, run(), at)


def _begun() -> list[str]:
    """The nodes whose task `measure` has begun and failed, as Airflow knows it: it may have left no word in the store.

    One that waited in its queue in vain has no duration. Over SSH it begins on the control plane, whatever the node.
    """
    if IS_SSH:
        return []
    ti: Any = get_current_context()["ti"]  # a task's own class has more than its protocol
    ended = ti.get_task_breadcrumbs(dag_id=ti.dag_id, run_id=ti.run_id)
    failed = [each for each in ended if each["task_id"] == measure.function.__name__ and each["state"] == "failed"]
    nodes = ti.xcom_pull(task_ids=plan.function.__name__) or ()
    return [nodes[each["map_index"]] for each in failed if each["duration"] and 0 <= each["map_index"] < len(nodes)]


@task
def validate(batch: str) -> str:
    """Judge the batch with Great Expectations. Returns the batch's id."""
    from pipelines import stages

    validation = stages.validate(_store(), batch)
    log.info("%d rows, %d quarantined", validation.rows, validation.quarantined)
    for sentence in validation.failed:
        log.warning("validation: %s", sentence)
    return batch


@task(outlets=[RESULTS])
def land(batch: str) -> Mapping[str, int]:
    """Commit the batch to every table. Returns the version of each table after it."""
    from pipelines import keys, stages

    versions = stages.land(_store(), batch)
    event = get_current_context()["outlet_events"][RESULTS]
    event.extra = {"run_id": keys.run_of(batch), "batch": batch, "versions": dict(versions)}
    return versions


@task
def report() -> str:
    """Judge the landed rows and render the run's page. Returns its key."""
    from pipelines import stages

    store, run_id = _store(), run()
    stages.judge(store, run_id, datetime.now(UTC))
    key = stages.report(store, run_id)
    log.info("report: %s", store.url(key))
    return key


@task
def late() -> list[str]:
    """Land what nodes sent of earlier runs since, from their spools. Returns these runs."""
    from pipelines import stages

    return list(stages.land_late(_store(), datetime.now(UTC), log.info))


@task
def maintain() -> None:
    """Rewrite, expire and vacuum every table; the log has a line for each."""
    from pipelines.tables import maintain as tables

    params = get_current_context()["params"]
    vacuum_after = timedelta(days=params["vacuum_after_days"])
    done = tables.maintain(_store(), datetime.now(UTC), params["keep_months"], vacuum_after)
    for each in done.tables:
        log.info(" ".join(f"{name}={value}" for name, value in each))
    log.info("latest_rows=%d", done.latest_rows)


def require_known_parameters() -> None:
    """Raises: Unknown: the trigger has a parameter that the form does not know."""
    from pipelines.errors import Unknown

    context = get_current_context()
    declared = tuple(context["dag"].params)
    for name in context["dag_run"].conf or {}:
        if name not in declared:  # Airflow lets it through, and a typo would run something else than was asked for
            raise Unknown("parameter of the form", name, declared)


def run() -> str:
    """Fleetmark's id of this DAG run: the same in every task and every retry."""
    from pipelines import keys

    dag_run = get_current_context()["dag_run"]
    return keys.run_id(dag_run.run_after.astimezone(UTC), dag_run.run_id)


def deployment() -> "tuple[Settings, Store]":
    """The settings of this process and the store they name."""
    from pipelines import storage

    settings = edge.load()
    return settings, storage.open_store(settings)


def _store() -> "Store":
    return deployment()[1]


def _unreachable_after_s() -> float | None:
    """How long Airflow lets a node's task wait in its queue, or tries to get in by SSH."""
    if IS_SSH:
        return SSH_GIVES_UP_AFTER_S
    if not ON_NODE:
        return None
    from airflow.configuration import conf

    times = 1 + conf.getint("scheduler", "num_stuck_in_queued_retries", fallback=2)
    return times * conf.getfloat("scheduler", "task_queued_timeout")


def _print(made: "Plan", settings: "Settings") -> None:
    from pipelines import plan as planning

    for job in made.jobs:
        argv = planning.preview(job, settings.home / made.node(job.node).scratch)
        log.info(
            "node=%s benchmark=%s case=%s repeat=%d seconds=%.1f written_bytes=%d command=%s",
            job.node, job.benchmark, job.case, job.repeat, job.seconds, job.written_bytes, " ".join(argv),
        )  # fmt: skip
    for sentence in made.left_out:
        log.info(sentence)
    seconds = max(made.seconds_by_node().values())
    log.info("run_id=%s jobs=%d nodes=%d seconds=%.0f", made.run_id, len(made.jobs), len(made.nodes), seconds)
