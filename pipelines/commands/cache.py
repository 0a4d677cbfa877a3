"""Verbs on this node's cache of shards: list, verify, pin, unpin, evict, collect."""

import click

from pipelines import console
from pipelines.commands import options
from pipelines.commands.dataset_views import DIGITS
from pipelines.commands.staging import cache_of, deployment


@click.group(cls=console.Verbs)
def cache() -> None:
    """Look after this node's cache of shards: FLEETMARK_CACHE, FLEETMARK_CACHE_BYTES, FLEETMARK_CACHE_FLOOR_BYTES."""


@cache.command()
@options.as_json
def ls(as_json: bool) -> None:
    """List the shards in the cache, and what room there is."""
    current, _ = deployment()
    here = cache_of(current)
    present, room = here.present(), here.room()
    if as_json:
        return console.emit([each.model_dump(mode="json") for each in present])
    console.table(
        ("shard", "dataset", "size", "last used", ""),
        [
            (
                each.sha256[:DIGITS],
                each.dataset,
                options.size(each.size_bytes),
                f"{each.used_at:%Y-%m-%d %H:%M}",
                " ".join(word for word, holds in (("pinned", each.is_pinned), ("in use", each.is_in_use)) if holds),
            )
            for each in present
        ],
    )
    return console.say(
        f"{options.size(room.held_bytes)} of {options.size(room.budget_bytes)} held in {room.path}; "
        f"{options.size(room.free_bytes)} free on its disk, {options.size(room.floor_bytes)} must stay free"
    )


@cache.command("verify")
@options.as_json
def verify_cache(as_json: bool) -> None:
    """Read every shard in the cache; what is damaged is put away and will be fetched again."""
    current, _ = deployment()
    here = cache_of(current)
    damaged = []
    for each in here.present():
        note = here.note(each.sha256)
        if note is None or here.verify(note.shard) is False:
            here.quarantine(each.sha256)
            damaged.append(each.sha256)
    if as_json:
        console.emit({"damaged": damaged})
    if damaged:
        raise console.Failed(f"{len(damaged)} shards were damaged and put away: {', '.join(damaged)}")
    if not as_json:
        click.echo("every shard in the cache is intact")


@cache.command()
@click.argument("version", metavar="NAME[@TAG|@ID]")
@options.as_json
def pin(version: str, as_json: bool) -> None:
    """Keep a version's shards in the cache, those that are staged later, too, until `unpin`."""
    from pipelines.datasets import catalog, names

    current, store = deployment()
    found, reference = catalog.load(store, version), str(names.parse(version))
    cache_of(current).pin(reference, found)
    if as_json:
        return console.emit({"pinned": reference, "version": found.version})
    return console.say(f"{reference} is pinned at {found.version}: {len(found.body.shards)} shards")


@cache.command()
@click.argument("version", metavar="NAME[@TAG|@ID]")
@options.as_json
def unpin(version: str, as_json: bool) -> None:
    """Let a pinned version's shards be evicted again. Name it as it was pinned."""
    from pipelines.datasets import names
    from pipelines.errors import Unknown

    current, _ = deployment()
    here, reference = cache_of(current), str(names.parse(version))
    if not here.unpin(reference):
        raise Unknown("pin", reference, tuple(each.reference for each in here.pins()))
    return console.emit({"unpinned": reference}) if as_json else console.say(f"{reference} is no longer pinned")


@cache.command()
@click.argument("shards", nargs=-1, metavar="[SHARD]...")
@click.option("--all", "everything", is_flag=True, help="Every shard that is neither pinned nor in use.")
@options.as_json
def evict(shards: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Remove shards from the cache, named by the first digits of their hash. Pinned ones and those in use stay."""
    current, _ = deployment()
    here = cache_of(current)
    if not shards and not everything:
        raise click.UsageError("name shards, or say --all")
    going = here.evict(each.sha256 for each in here.present() if everything or any(map(each.sha256.startswith, shards)))
    return console.emit({"evicted": going}) if as_json else console.say(f"{len(going)} shards evicted")


@cache.command("gc")
@options.as_json
def gc_cache(as_json: bool) -> None:
    """Remove what nobody will use: downloads abandoned for a day, damaged shards, folders that killed jobs left."""
    from pipelines.datasets.materialise import reclaim

    current, _ = deployment()
    here = cache_of(current)
    reclaim(here, console.say)
    gone = here.gc()
    return console.emit({"removed": gone}) if as_json else console.say(f"{len(gone)} files removed")


VERBS = (cache,)
