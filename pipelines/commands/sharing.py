"""Verbs about how the fleet's time is shared: who had how much of it, and which nodes the nightly run has been to."""

import importlib.util
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from pipelines import console
from pipelines.commands import options

if TYPE_CHECKING:
    from pipelines.inventory import Inventory
    from pipelines.storage import Store


@click.command()
@options.as_json
def usage(as_json: bool) -> None:
    """Show what each tenant's ad hoc runs had of the fleet in the last 24 hours, and what is planned, in node-minutes.

    Tenants and their quotas are in the inventory. The table `usage` has every run: see docs/tables.md.
    """
    from pipelines import tenants

    store, fleet = _deployment()
    spent = tenants.spent(store, datetime.now(UTC))
    found = []
    for tenant in sorted({*fleet.tenants, *spent, tenants.DEFAULT}):
        had, quota = spent.get(tenant, tenants.Spent()), fleet.tenants.get(tenant)
        per_day = quota.node_minutes_per_day if quota else None
        found.append({"tenant": tenant, "used": had.used_s / 60, "planned": had.planned_s / 60, "quota": per_day})
    if as_json:
        return console.emit(found)
    rows = [[_minutes(value) for value in each.values()] for each in found]
    return console.table(("tenant", "used", "planned", "quota a day"), rows)


@click.command()
@click.option("--suite", default="storage", show_default=True, help="Whose runs count.")
@click.option("--within", type=click.IntRange(min=1), help="Nights; default: within_nights of the inventory.")
@options.as_json
def coverage(suite: str, within: int | None, as_json: bool) -> None:
    """Show when a suite's runs last covered each node, in the order of the nodes' next turns, and what is overdue."""
    from pipelines import coverage as rounds

    store, fleet = _deployment()
    history, tonight = rounds.read(store, suite), datetime.now(UTC).date()
    nights = within or fleet.rounds.within_nights
    working = tuple(node for node in fleet.nodes if not node.drained)
    late = {each.node: each.reason for each in rounds.overdue(working, history, tonight, nights)}
    taken = {node.name: "yes" for node in rounds.tonight(working, history, tonight, nights)}
    drained = {node.name: "drained" for node in fleet.nodes if node.drained}
    covered = {node: turn.night.isoformat() for node, turn in history.covered.items()}
    turns = [node.name for node in rounds.order(fleet.nodes, history.covered)]
    if as_json:
        return console.emit(
            [
                {
                    "node": node,
                    "covered": covered.get(node),
                    "tonight": node in taken,
                    "drained": node in drained,
                    "overdue": late.get(node),
                }
                for node in turns
            ]
        )
    said = {**taken, **drained}
    rows = [(node, covered.get(node, "never"), said.get(node, ""), late.get(node, "")) for node in turns]
    return console.table(("node", "covered", "tonight", "overdue because"), rows)


def _minutes(value: object) -> str:
    return "none" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def _deployment() -> "tuple[Store, Inventory]":
    """Raises: NotInstalled: this is a bare node's environment."""
    from pipelines import inventory, settings, storage
    from pipelines.errors import NotInstalled

    if importlib.util.find_spec("duckdb") is None:
        raise NotInstalled("DuckDB", "tables")

    current = settings.load()
    return storage.open_store(current), inventory.load(current.inventory)


VERBS = (usage, coverage)
