"""Verbs on this node's spool: what the object store did not take, see `pipelines.spool`."""

import click

from pipelines import console
from pipelines.commands import options
from pipelines.commands.staging import deployment


@click.group(cls=console.Verbs)
def spool() -> None:
    """Look after what this node keeps for the object store: FLEETMARK_SPOOL_BYTES, FLEETMARK_SPOOL_WAIT_S."""


@spool.command()
@options.as_json
def ls(as_json: bool) -> None:
    """List what waits to be sent to the object store."""
    from pipelines.spool import Spool

    current, store = deployment()
    waiting = Spool.of(current, store).ls()
    if as_json:
        return console.emit([each.model_dump(mode="json") for each in waiting])
    return console.table(
        ("key", "size", ""),
        [(each.key, options.size(each.size_bytes), "" if each.is_intact else "damaged") for each in waiting],
    )


@spool.command()
@options.as_json
def send(as_json: bool) -> None:
    """Send it now. A node's task does that at its beginning and at its end."""
    from pipelines.spool import Spool

    current, store = deployment()
    sent = Spool.of(current, store).send(store, console.say)
    return console.emit({"sent": sent}) if as_json else console.say(f"{len(sent)} objects sent")


VERBS = (spool,)
