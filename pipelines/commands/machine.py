"""Verbs about this machine: its settings, its environment, and the Airflow embedded in it."""

from typing import TYPE_CHECKING

import click

from pipelines import console
from pipelines.commands import options

if TYPE_CHECKING:
    from pipelines.settings import Settings


@click.command()
@options.as_json
def settings(as_json: bool) -> None:
    """List the settings, their values and what they mean."""
    from pipelines import settings as edge

    current = edge.load()
    rows = [
        (f"{edge.PREFIX}{name.upper()}", str(getattr(current, name)), field.description or "")
        for name, field in type(current).model_fields.items()
    ]
    if as_json:
        return console.emit(current.model_dump(mode="json"))
    return console.table(("variable", "value", "meaning"), rows)


@click.command()
@options.as_json
def env(as_json: bool) -> None:
    """Show this machine's environment: what a number measured here depends on, and the id of it."""
    from pipelines import environment, inventory
    from pipelines import settings as edge

    current = edge.load()
    (node,) = inventory.select(inventory.load(current.inventory), (current.node_name,))
    snapshot = environment.snapshot(current.home / node.scratch)
    if as_json:
        return console.emit(snapshot.model_dump(mode="json"))
    click.echo(snapshot.environment_id)
    return console.table(("fact", "value"), [(name, _fact(value)) for name, value in snapshot.facts.items()])


@click.command()
def up() -> None:
    """Start Airflow on this machine and leave it running."""
    from pipelines import embedded

    with console.progress() as say:
        embedded.up(_settings(), say)


@click.command()
def down() -> None:
    """Stop the Airflow that `up` started."""
    from pipelines import embedded

    embedded.down(_settings(), console.say)


@click.command()
@options.as_json
def demo(as_json: bool) -> None:
    """Run the quick suite on this machine through Airflow and print what it measured.

    Uses the Airflow that `up` started, or starts one for the time of the run.
    """
    from pipelines import embedded, storage
    from pipelines.commands.tables import show_overview

    current = _settings()
    with console.progress() as say:
        finished = embedded.demo(current, say)
    show_overview(storage.open_store(current), finished.run_id, as_json)
    for line in finished.where:
        console.say(line)


def _fact(value: object) -> str:
    """A fact on one line; of several things, each with its properties."""
    if not isinstance(value, tuple):
        return str(value)
    return "; ".join(" ".join(f"{name}={each}" for name, each in thing.items()) for thing in value)


def _settings() -> "Settings":
    from pipelines import settings as edge

    return edge.load()


VERBS = (settings, env, up, down, demo)
