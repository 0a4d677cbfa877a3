"""The stages of a run, in order, each safe to repeat. Airflow's tasks and the command line call these and no more."""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime

from pydantic import Field, ValidationError

from pipelines import arrivals, inventory, keys, plan, suites, tenants
from pipelines.errors import FleetmarkError, KeyNotFound, OtherVersion, Unknown
from pipelines.inventory import Inventory
from pipelines.isolation import Retest
from pipelines.records import Job, Name, Node, Plan, Record, Scalar, Validation
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
    tenant: Name = tenants.DEFAULT
    note: str = Field(default="", max_length=500)


def make_plan(settings: Settings, request: Request, run_id: str, at: datetime) -> Plan:
    """The plan, touching nothing: the inventory, the suite, and from the store what these call for are read.

    Where the inventory says that the nightly run goes round the nodes in several nights, a scheduled one that names no
    nodes takes those whose turn it is, in the order of their turns.

    Raises:
        QuotaExceeded, RunTooLong: the inventory does not let an ad hoc run take so much.
        Unknown, BadReference, CorruptObject: a dataset of the suite, see `catalog.load`. And what else those raise.
    """
    fleet = inventory.load(settings.inventory)
    nodes = _nodes(settings, fleet, request, run_id, at)
    suite = suites.load(settings.suites, request.suite)
    made = plan.make(
        suite,
        nodes,
        run_id=run_id,
        created_at=at,
        trigger=request.trigger,
        tenant=request.tenant,
        note=request.note,
        overrides=request.overrides,
        repeats=request.repeats,
        datasets=_versions(settings, suites.datasets(suite)),
        rules=fleet.pairs,
    )
    return made.model_copy(update={"priority": tenants.check(fleet, made, _spent(settings, fleet, made))})


def _nodes(settings: Settings, fleet: Inventory, request: Request, run_id: str, at: datetime) -> tuple[Node, ...]:
    is_named = request.nodes or request.sample is not None
    if request.trigger != tenants.SCHEDULED or is_named or fleet.rounds.within_nights == 1:
        return inventory.select_working(fleet, request.nodes, request.sample, seed=run_id)
    from pipelines import coverage, storage

    history = coverage.read(storage.open_store(settings), request.suite)
    return coverage.tonight(inventory.select_working(fleet), history, at.date(), fleet.rounds.within_nights)


def _spent(settings: Settings, fleet: Inventory, made: Plan) -> tenants.Spent:
    """What the plan's tenant had; where it has no quota, nobody asks the store."""
    if made.trigger == tenants.SCHEDULED or made.tenant not in fleet.tenants:
        return tenants.Spent()
    from pipelines import storage

    found = tenants.spent(storage.open_store(settings), made.created_at, asking=made.run_id)
    return found.get(made.tenant, tenants.Spent())


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
    """The plan, with the tests that are done again where `isolate` has found some.

    Raises:
        Unknown: there is no such run.
        OtherVersion: another version of fleetmark made it.
    """
    try:
        made = _read_plan(store, run_id)
        return made.model_copy(update={"jobs": (*made.jobs, *_retests(store, made))})
    except KeyNotFound as e:
        newest = (key.removeprefix("plans/").removesuffix(".json") for key in store.keys_under("plans")[-10:])
        raise Unknown("run", run_id, tuple(newest)) from e


def _read_plan(store: Store, run_id: str) -> Plan:
    key = keys.plan_key(run_id)
    try:
        return Plan.model_validate_json(store.read(key))
    except ValidationError as e:
        first = e.errors()[0]
        raise OtherVersion(store.url(key), f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from e


def _retests(store: Store, made: Plan) -> tuple[Job, ...]:
    if not made.paired_nodes():
        return ()
    try:
        return Retest.model_validate_json(store.read(keys.retest_key(made.run_id))).jobs
    except KeyNotFound:
        return ()


def measure(
    settings: Settings, store: Store, run_id: str, node: str, attempt: int, say: Callable[[str], None]
) -> tuple[str, ...]:
    """Run the node's jobs on this machine, one after the other; jobs whose raw output is there are not run again.

    Returns the keys of the raw outputs. Raises what `node.run_jobs` raises; a failing tool is a raw output, no error.
    All of them are in the store when it returns, and so is what earlier tasks of this machine left in its spool.
    """
    from pipelines import node as shell

    with arrivals.telling(settings, store, run_id, node, "measure", attempt):
        made = load_plan(store, run_id)
        arrivals.record(settings, store, run_id, node, attempt)
        return shell.run_jobs(settings, store, made, node, attempt, say)


def measure_devices(
    settings: Settings, store: Store, run_id: str, node: str, attempt: int, say: Callable[[str], None], *, approval: str
) -> tuple[str, ...]:
    """The same of the node's jobs on raw devices, as far as the approval of this hash allows; the others are refused.

    Raises as well:
        CorruptObject: the approval or the plan in the store is not what was decided about.
    """
    from pipelines import approvals
    from pipelines import node as shell

    with arrivals.telling(settings, store, run_id, node, "measure_devices", attempt):
        made, decided = approvals.load(store, run_id, approval)
        arrivals.record(settings, store, run_id, node, attempt)
        return shell.run_jobs(settings, store, made, node, attempt, say, decided)


def pair_up(store: Store, run_id: str, *, again: bool = False) -> tuple[str, ...]:
    """The nodes that stand in rounds with others, but for those that the run did not reach."""
    made = load_plan(store, run_id)
    reached = arrivals.nodes(store, run_id)
    return tuple(node for node in made.paired_nodes(again=again) if node in reached)


def exchange(
    settings: Settings,
    store: Store,
    run_id: str,
    node: str,
    attempt: int,
    say: Callable[[str], None],
    *,
    again: bool = False,
) -> tuple[str, ...]:
    """Stand in the node's rounds of benchmarks between two nodes; every node of the run does so at the same time.

    `again`: in those rounds that `isolate` has added. Returns the keys of the raw outputs of those in which it is the
    client. Raises what `exchange.run_rounds` raises.
    """
    from pipelines import exchange as shell

    with arrivals.telling(settings, store, run_id, node, "exchange_again" if again else "exchange", attempt):
        return shell.run_rounds(settings, store, load_plan(store, run_id), node, attempt, say, again=again)


def isolate(settings: Settings, store: Store, run_id: str) -> tuple[str, ...]:
    """Decide, once, which pairs are tested again so that a bad node is told from its partners. Returns their nodes."""
    from pipelines import isolation
    from pipelines.tables import parse as rows

    made = load_plan(store, run_id)
    if not made.paired_nodes(again=True):
        results = isolation.results(rows.pair_trials(store, made))
        found = isolation.retest(made, results, inventory.load(settings.inventory).pairs)
        store.create(keys.retest_key(run_id), found.model_dump_json().encode())
    return pair_up(store, run_id, again=True)


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
    """Commit the batch to every table: what it used first, `runs` last, then what staging its datasets took.

    Returns the version of each table of runs after it.
    """
    from pipelines.tables import datasets, usage
    from pipelines.tables import land as lander

    usage.land_batch(store, batch)  # first: at no moment is a run neither planned nor used
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


def land_late(store: Store, at: datetime, say: Callable[[str], None]) -> tuple[str, ...]:
    """Parse and land again every run of which a spool sent raw outputs, maybe after it was parsed. Returns the runs.

    Raises: what the other stages raise, for the first of the runs that fail, after the others have landed.
    """
    from pipelines import late

    failures, landed = [], []
    for run_id, words in late.runs(store).items():
        try:
            batch = parse(store, run_id, at)
            validate(store, batch)
            land(store, batch)
            judge(store, run_id, at)
            report(store, run_id)
        except FleetmarkError as e:
            say(f"run {run_id}: {len(words)} raw outputs came from a spool and did not land: {e}")
            failures.append(e)
        else:
            late.forget(store, words)
            say(f"run {run_id}: landed as {batch}, with {len(words)} raw outputs that came from a spool")
            landed.append(run_id)
    if failures:
        raise failures[0]
    return tuple(landed)
