"""What the verbs on datasets print."""

from typing import TYPE_CHECKING, Any

import click

from pipelines import console
from pipelines.commands import options

if TYPE_CHECKING:
    from pipelines.datasets.catalog import Difference
    from pipelines.datasets.manifest import Manifest
    from pipelines.storage import Store

DIGITS = 12  # of an id or a hash that people see
_LISTED = 20  # paths of a difference


def versions(store: "Store", name: str) -> list[dict[str, Any]]:
    """The summaries of a dataset's versions, oldest first."""
    from pipelines.datasets import catalog

    tags: dict[str, list[str]] = {}
    for each in catalog.tags(store, name):
        tags.setdefault(each.version or "", []).append(each.tag)
    found = [catalog.load_version(store, name, version) for version in catalog.versions(store, name)]
    found.sort(key=lambda each: each.provenance.published_at)
    return [summary(each) | {"tags": tags.get(each.version, [])} for each in found]


def summary(of: "Manifest") -> dict[str, Any]:
    provenance = of.provenance.model_dump(mode="json", exclude={"packed"})
    return {
        "dataset": of.dataset,
        "version": of.version,
        **of.body.packing.model_dump(mode="json"),
        "shards": len(of.body.shards),
        "files": of.files,
        "samples": of.samples,
        "content_bytes": of.content_bytes,
        "stored_bytes": of.stored_bytes,
        **provenance,
    }


def show(of: "Manifest") -> None:
    sizes = {"content_bytes", "stored_bytes", "shard_bytes"}
    rows = [
        (name.removesuffix("_bytes").replace("_", " "), options.size(value) if name in sizes else str(value))
        for name, value in summary(of).items()
        if value not in (None, "")
    ]
    console.table(("what", "value"), rows)


def show_files(store: "Store", of: "Manifest", as_json: bool) -> None:
    from pipelines.datasets import catalog

    entries = (
        (number, entry)
        for number, shard in enumerate(of.body.shards)
        for entry in catalog.index_of(store, of.dataset, shard)
    )
    if as_json:
        return console.emit([{"shard": number, **entry.model_dump(mode="json")} for number, entry in entries])
    for number, entry in entries:  # there may be a million
        click.echo(f"{number}\t{entry.offset}\t{entry.length}\t{entry.path}{f' from {entry.at}' if entry.at else ''}")
    return None


def show_difference(found: "Difference") -> None:
    for word, paths in (("added", found.added), ("removed", found.removed), ("changed", found.changed)):
        for path in paths[:_LISTED]:
            click.echo(f"{word}\t{path}")
        if len(paths) > _LISTED:
            click.echo(f"{word}\t... and {len(paths) - _LISTED} more; --json lists all")
    console.say(
        f"{len(found.added)} files added, {len(found.removed)} removed, {len(found.changed)} changed; "
        f"{found.new_shards} new shards with {options.size(found.new_bytes)}"
    )


def show_tags(store: "Store", name: str, as_json: bool) -> None:
    from pipelines.datasets import catalog

    moves = [(each.tag, move) for each in catalog.tags(store, name) for move in catalog.history(store, name, each.tag)]
    if not moves:
        catalog.load(store, name)  # raises: there is no such dataset
    if as_json:
        return console.emit([{"tag": tag, **move.model_dump(mode="json")} for tag, move in moves])
    return console.table(
        ("tag", "moved to", "at", "by"),
        [(tag, move.version or "(removed)", f"{move.moved_at:%Y-%m-%d %H:%M:%S}", move.by) for tag, move in moves],
    )
