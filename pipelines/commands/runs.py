"""Verbs that make runs: plan, run, reparse, and what a plan is made from."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from pipelines import console
from pipelines.commands import options

if TYPE_CHECKING:
    from pipelines.records import Plan
    from pipelines.settings import Settings
    from pipelines.storage import Store


@click.command()
@options.request
@click.option("--dry-run", is_flag=True, help="Only print it: nodes, commands, seconds, bytes. Touches nothing.")
@options.as_json
def plan(dry_run: bool, as_json: bool, **asked: Any) -> None:
    """Make the plan of a run and publish it to the store.

    The plan is every job of the run: what runs on which node with which parameters, for how long, writing how much.
    `fleetmark run` executes it at once; Airflow's DAG does so on every node.
    """
    from pipelines import settings, stages, storage

    current = settings.load()
    made = _new_plan(current, asked)
    if not dry_run:
        stages.publish_plan(storage.open_store(current), made)
    _show_plan(current, made, as_json)


@click.command()
@options.request
@options.as_json
def run(as_json: bool, **asked: Any) -> None:
    """Run a suite on this machine from plan to report, without Airflow.

    The plan must be for this machine alone: select it with --nodes where the inventory lists more.
    """
    from pipelines import benchmark, settings, stages, storage

    current = settings.load()
    store = storage.open_store(current)
    made = _new_plan(current, asked)
    if any(benchmark.get(job.benchmark).device for job in made.jobs):
        raise click.UsageError(f"suite {made.suite} {options.ONLY_IN_AIRFLOW}")
    made = stages.publish_plan(store, made)
    for sentence in made.left_out:
        console.say(sentence)
    console.say(f"run {made.run_id}: {len(made.jobs)} jobs, about {sum(job.seconds for job in made.jobs):.0f} s")
    stages.measure(current, store, made.run_id, _only_node(made), 1, console.say)
    _land(store, made.run_id, as_json)


@click.command()
@click.argument("run_id", required=False)
@click.option("--late", is_flag=True, help="Every run of which a node's spool sent raw outputs since it was parsed.")
@options.as_json
def reparse(run_id: str | None, late: bool, as_json: bool) -> None:
    """Parse a run's raw outputs again and land what changed.

    Rows that come out the same land nothing; rows that differ (a newer parser) replace the run's earlier rows. Earlier
    rows stay readable with `fleetmark results --as-of`.
    """
    from pipelines import settings, stages, storage

    if late == bool(run_id):
        raise click.UsageError("give either the run or --late")
    store = storage.open_store(settings.load())
    if run_id:
        return _land(store, run_id, as_json)
    landed = stages.land_late(store, datetime.now(UTC), console.say)
    return console.emit({"landed": landed}) if as_json else console.say(f"{len(landed)} runs landed again")


@click.command()
@options.selection
@options.as_json
def nodes(nodes: tuple[str, ...], sample: int | None, as_json: bool) -> None:
    """List the nodes of the inventory, or those a selection names."""
    from pipelines import inventory, settings

    current = settings.load()
    chosen = inventory.select(inventory.load(current.inventory), nodes, sample)
    if as_json:
        return console.emit([node.model_dump(mode="json") for node in chosen])
    return console.table(
        ("node", "cohort", "features", "labels", "scratch"),
        [
            (
                node.name,
                node.cohort,
                " ".join(node.features),
                " ".join(f"{key}={value}" for key, value in node.labels.items()),
                str(current.home / node.scratch),
            )
            for node in chosen
        ],
    )


@click.command()
@options.as_json
def suites(as_json: bool) -> None:
    """List the suites, what they run, and what that takes of a node that has every feature, pairs with one other node.

    `fleetmark plan --suite NAME --dry-run` has the same of the inventory's nodes, job by job.
    """
    from pipelines import plan, settings, suites

    folder = settings.load().suites
    found = [suites.load(folder, name) for name in suites.names(folder)]
    takes = {suite.name: plan.takes(suite) for suite in found}
    if not found:
        console.say(f"there is no suite in {folder}")
    if as_json:
        return console.emit([{**suite.model_dump(mode="json"), **vars(takes[suite.name])} for suite in found])
    return console.table(
        ("suite", "takes", "writes", "benchmarks", "description"),
        [
            (
                suite.name,
                f"{takes[suite.name].seconds / 60:.1f} min",
                f"{takes[suite.name].written_bytes / 1e9:.1f} GB",
                " ".join(dict.fromkeys(entry.benchmark for entry in suite.entries)),
                suite.description,
            )
            for suite in found
        ],
    )


def _new_plan(current: "Settings", asked: dict[str, Any]) -> "Plan":
    import uuid

    from pipelines import keys, stages

    now = datetime.now(UTC)
    return stages.make_plan(current, options.as_request(**asked), keys.run_id(now, uuid.uuid4().hex), now)


def _only_node(made: "Plan") -> str:
    if len(made.nodes) > 1:
        names = ", ".join(node.name for node in made.nodes)
        raise click.UsageError(f"this runs on one machine, the selection has {len(made.nodes)} ({names}); use --nodes")
    return made.nodes[0].name


def _land(store: "Store", run_id: str, as_json: bool) -> None:
    """From raw outputs to the report, then the results on stdout."""
    from pipelines import stages
    from pipelines.commands.tables import show_overview

    stages.load_plan(store, run_id)
    batch = stages.parse(store, run_id, datetime.now(UTC))
    validation = stages.validate(store, batch)
    for sentence in validation.failed:
        console.say(f"validation: {sentence}")
    stages.land(store, batch)
    stages.judge(store, run_id, datetime.now(UTC))
    report = stages.report(store, run_id)
    show_overview(store, run_id, as_json)
    console.say(f"report: {store.url(report)}")


def _show_plan(current: "Settings", made: "Plan", as_json: bool) -> None:
    from pipelines import plan as planning

    if as_json:
        return console.emit(made.model_dump(mode="json"))
    console.table(
        ("node", "benchmark", "case", "repeat", "seconds", "writes MB", "command"),
        [
            (
                job.node,
                job.benchmark,
                job.case,
                str(job.repeat),
                f"{job.seconds:.1f}",
                f"{job.written_bytes / 1_000_000:.0f}",
                " ".join(planning.preview(job, current.home / made.node(job.node).scratch)),
            )
            for job in made.jobs
        ],
    )
    seconds = max(made.seconds_by_node().values())
    for sentence in made.left_out:
        console.say(sentence)
    console.say(
        f"run {made.run_id}: {len(made.jobs)} jobs on {len(made.nodes)} nodes, about {seconds:.0f} s on each, "
        f"at most {max(job.written_bytes for job in made.jobs) / 1_000_000:.0f} MB on a node's scratch at a time"
    )
    return None


VERBS = (plan, run, reparse, nodes, suites)
