"""Verbs on benchmarks: list them, show one, run one on this bare machine."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from pipelines import console
from pipelines.commands import options

if TYPE_CHECKING:
    from pipelines.records import Job, Node, Parsed, Scalar
    from pipelines.settings import Settings


@click.group(cls=console.Verbs)
def bench() -> None:
    """List, show and run single benchmarks on this machine, or begin a new one; needs no Airflow and no store."""


@bench.command("list")
@options.as_json
def list_(as_json: bool) -> None:
    """List the benchmarks."""
    from pipelines.benchmark import discover

    found = discover().values()
    if as_json:
        return console.emit([{"name": each.name, "title": each.title, "tool": each.tool} for each in found])
    return console.table(("benchmark", "tool", "what it measures"), [(b.name, b.tool, b.title) for b in found])


@bench.command()
@click.argument("name")
@options.as_json
def show(name: str, as_json: bool) -> None:
    """Show a benchmark's parameters and metrics."""
    from pipelines import benchmark, guide

    descriptor = benchmark.get(name)
    schema = descriptor.params.model_json_schema()["properties"]
    if as_json:
        metrics = [vars(metric) for metric in descriptor.metrics]
        return console.emit({"name": name, "title": descriptor.title, "parameters": schema, "metrics": metrics})
    click.echo(f"{descriptor.title}\ntool: {descriptor.tool}; source: {descriptor.source}")
    needs = f"; needs {', '.join(sorted(descriptor.needs))}" if descriptor.needs else ""
    click.echo(f"how often: {descriptor.cadence}{needs}\n{descriptor.caveat}\n")
    console.table(
        ("parameter", "default", "meaning"),
        [(name, guide.default(field), str(field["description"])) for name, field in schema.items()],
    )
    click.echo()
    console.table(
        ("metric", "unit", "better", "honest range", "meaning"),
        [(m.name, m.unit, m.better, f"{m.low:g} .. {m.high:g}", m.meaning) for m in descriptor.metrics],
    )
    return None


@bench.command("run")
@click.argument("name")
@click.option(
    "--param",
    "params",
    multiple=True,
    metavar="PARAM=VALUE",
    callback=lambda _context, _parameter, given: options.assignments(given),
    help="See `fleetmark bench show NAME`. Repeat for more.",
)
@click.option("--node", help="This machine's name in the inventory; default: the setting FLEETMARK_NODE.")
@click.option(
    "--files",
    type=click.Path(exists=True, file_okay=False, resolve_path=True),
    help="The folder with the files that it reads, such as models; default: the one that the inventory names.",
)
@options.as_json
def run_(name: str, params: "dict[str, Scalar]", node: str | None, files: str | None, as_json: bool) -> None:
    """Run one benchmark once and print what it measured. Nothing is landed.

    Without an inventory it is this machine, and what it writes lies under FLEETMARK_HOME.
    """
    from pipelines import benchmark, energy, settings
    from pipelines.node import run_once
    from pipelines.records import Outcome

    current = settings.load()
    place = _place(current, node)
    if files:
        place = place.model_copy(update={"files": files})
    descriptor = benchmark.get(name)
    if descriptor.device:
        raise click.UsageError(f"benchmark {name} {options.ONLY_IN_AIRFLOW}")
    job = _job(descriptor, place.name, params)
    raw = run_once(current, place, job, say=console.say)
    parsed = energy.beside(raw, descriptor.parse(raw))
    if as_json:
        console.emit(parsed.model_dump(mode="json", exclude={"histograms", "series"}))
    else:
        _show(parsed)
    if parsed.outcome is not Outcome.OK:
        raise console.Failed(f"{parsed.outcome}: {parsed.reason}")


@bench.command("new")
@click.argument("name")
@options.as_json
def new(name: str, as_json: bool) -> None:
    """Write the module, the sample and the test of a new benchmark, in the checkout that is the working directory.

    They wrap dd and pass all checks as they stand; nothing that is there is overwritten.
    """
    from pathlib import Path

    from pipelines import benchmark, scaffold

    if problem := scaffold.problem_with(name, benchmark.discover()):
        raise click.UsageError(f"benchmark {name!r}: {problem}")
    root = Path.cwd()
    try:
        written = [str(path.relative_to(root)) for path in scaffold.write(root, name)]
    except OSError as e:
        raise console.Failed(str(e)) from e
    if as_json:
        return console.emit({"written": written})
    module, sample, test = written
    return click.echo(
        f"{module}\n{sample}\n{test}\n\n"
        f"next:\n"
        f"  fleetmark bench run {name}            it measures already: zeros, with dd\n"
        f"  put what your tool prints, also where it fails, into {Path(sample).parent}/<tool-version>-<case>\n"
        f"  change the module and its test (docs/adding-a-benchmark.md says how), then:\n"
        f"  .venv/bin/python -m pytest {test} tests/benchmarks/test_contract.py -k {name}\n"
        f"  make check && make docs"
    )


def _place(current: "Settings", name: str | None) -> "Node":
    """The node as the inventory has it; where nobody named one, and there is none at its usual place, this machine."""
    from pathlib import Path

    from pipelines import inventory
    from pipelines.records import Node

    usual = Path.cwd() / type(current).model_fields["inventory"].default
    if name is None and current.inventory == usual and not usual.exists():
        here = Node(name=current.node_name, queue=current.node_name, scratch="scratch")
        console.say(f"there is no inventory here; what is written lies in {current.home / here.scratch}")
        return here
    (place,) = inventory.select(inventory.load(current.inventory), (name or current.node_name,))
    return place


def _job(descriptor: Any, node: str, params: "dict[str, Scalar]") -> "Job":
    from pipelines import keys, plan
    from pipelines.records import SuiteEntry

    now = datetime.now(UTC)
    (job,) = plan.jobs_of_entry(keys.run_id(now, "bench"), node, SuiteEntry(benchmark=descriptor.name, params=params))
    return job


def _show(parsed: "Parsed") -> None:
    """A row for each measurement, and above them the labels that all of them have."""
    from pipelines.tables.render import format_value

    measured = parsed.measurements
    shared = dict(set.intersection(*(set(m.labels.items()) for m in measured))) if measured else {}
    if shared:
        click.echo(" ".join(f"{name}={shared[name]}" for name in measured[0].labels if name in shared) + "\n")
    if measured:
        own = [[f"{name}={value}" for name, value in m.labels.items() if name not in shared] for m in measured]
        rows = zip(measured, own, strict=True)
        console.table(
            ("metric", "value", "labels" if any(own) else ""),
            [(m.metric, format_value(m.value, m.unit), " ".join(labels)) for m, labels in rows],
        )
    for note in parsed.notes:
        console.say(note)


VERBS = (bench,)
