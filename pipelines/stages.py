"""The stages of a run, in order, each safe to repeat. Airflow's tasks and the command line call these and no more."""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime

from pydantic import Field

from pipelines import inventory, keys, plan, suites
from pipelines.errors import KeyNotFound, Unknown
from pipelines.records import Plan, Record, Scalar, Validation
from pipelines.settings import Settings
from pipelines.storage import Store


class Request(Record):
    """What a person or a schedule asks for."""

    suite: str
    nodes: tuple[str, ...] = ()  # see inventory.select; empty: every node
    sample: int | None = Field(default=None, ge=1)
    overrides: Mapping[str, Scalar] = {}
    repeats: int | None = Field(default=None, ge=1, le=100)
    trigger: str = "cli"
    note: str = Field(default="", max_length=500)


def make_plan(settings: Settings, request: Request, run_id: str, at: datetime) -> Plan:
    """The plan, touching nothing: the inventory, the suite and the datasets that it names are read.

    Raises:
        Unknown, BadReference, CorruptObject: a dataset of the suite, see `catalog.load`. And what else those raise.
    """
    fleet = inventory.load(settings.inventory)
    nodes = inventory.select(fleet, request.nodes, request.sample, seed=run_id)
    suite = suites.load(settings.suites, request.suite)
    return plan.make(
        suite,
        nodes,
        run_id=run_id,
        created_at=at,
        trigger=request.trigger,
        note=request.note,
        overrides=request.overrides,
        repeats=request.repeats,
        datasets=_versions(settings, suites.datasets(suite)),
    )


def _versions(settings: Settings, datasets: Collection[str]) -> Mapping[str, str]:
    """For each NAME@TAG the version that it is now, as NAME@ID."""
    if not datasets:
        return {}
    from pipelines import storage
    from pipelines.datasets import catalog

    store = storage.open_store(settings)
    return {named: catalog.load(store, named).reference for named in datasets}


def publish_plan(store: Store, made: Plan) -> Plan:
    """Write the plan before anything runs. A retry finds and returns the one that is there."""
    store.create(keys.plan_key(made.run_id), made.model_dump_json().encode())
    return load_plan(store, made.run_id)


def load_plan(store: Store, run_id: str) -> Plan:
    """Raises: Unknown: there is no such run."""
    try:
        return Plan.model_validate_json(store.read(keys.plan_key(run_id)))
    except KeyNotFound as e:
        newest = (key.removeprefix("plans/").removesuffix(".json") for key in store.keys_under("plans")[-10:])
        raise Unknown("run", run_id, tuple(newest)) from e


def measure(
    settings: Settings, store: Store, run_id: str, node: str, attempt: int, say: Callable[[str], None]
) -> tuple[str, ...]:
    """Run the node's jobs on this machine, one after the other; jobs whose raw output is there are not run again.

    Returns the keys of the raw outputs. Raises what `node.run_jobs` raises; a failing tool is a raw output, no error.
    All of them are in the store when it returns, and so is what earlier tasks of this machine left in its spool.
    """
    from pipelines import node as shell

    return shell.run_jobs(settings, store, load_plan(store, run_id), node, attempt, say)


def exchange(
    settings: Settings, store: Store, run_id: str, node: str, attempt: int, say: Callable[[str], None]
) -> tuple[str, ...]:
    """Stand in the node's rounds of benchmarks between two nodes; every node of the run does so at the same time.

    Returns the keys of the raw outputs of those in which it is the client. Raises what `exchange.run_rounds` raises.
    """
    from pipelines import exchange as shell

    return shell.run_rounds(settings, store, load_plan(store, run_id), node, attempt, say)


def parse(store: Store, run_id: str, at: datetime) -> str:
    """Raw outputs -> rows, written create-only below `parsed/<batch>`. Returns the batch id.

    The batch id is the hash of the plan, the raw outputs and the parsers, so that a retry gives the same batch.
    """
    from pipelines.tables import parse as rows

    return rows.prepare(store, load_plan(store, run_id), at)


def validate(store: Store, batch: str) -> Validation:
    """Judge the batch's rows with Great Expectations; write its landing files and the validation pages."""
    from pipelines.tables import validate as judge

    return judge.validate_batch(store, batch)


def land(store: Store, batch: str) -> Mapping[str, int]:
    """Commit the batch to every table, `runs` last, then what staging its datasets took.

    Returns the version of each table of runs after it.
    """
    from pipelines.tables import datasets
    from pipelines.tables import land as lander

    versions = lander.land_batch(store, batch)
    datasets.land_stagings_of(store, keys.run_of(batch))
    return versions


def judge(store: Store, run_id: str, at: datetime) -> None:
    """Judge the landed rows of a run and land the verdicts."""
    from pipelines.verdicts import judge as verdicts

    verdicts.judge_run(store, load_plan(store, run_id), at)


def report(store: Store, run_id: str) -> str:
    """Render the run's page. Returns its key."""
    from pipelines.report import page

    return page.publish(store, load_plan(store, run_id))
