"""Verbs on datasets in the store: publish, list, show, diff, tag, remove."""

import importlib.util
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines import console
from pipelines.commands import dataset_views as views
from pipelines.commands import options

if TYPE_CHECKING:
    from pipelines.datasets.publications import Request
    from pipelines.storage import Store


@click.group(cls=console.Verbs)
def dataset() -> None:
    """Publish, read and keep datasets: versions of checksummed shards in the object store.

    A version is named NAME@TAG or NAME@ID, where the first six digits of the id will do; NAME alone is NAME@latest.
    """


@dataset.command()
@click.argument("source")
@click.option("--name", "dataset", required=True, help="The dataset's name.")
@click.option("--tag", default="latest", show_default=True, help="The tag that moves to the new version.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["tar", "parquet", "blob"]),
    default="tar",
    show_default=True,
    help="tar: many small files, as WebDataset reads them. parquet: rows of Parquet, CSV or JSONL. blob: large files.",
)
@click.option(
    "--shard-size", type=options.Size(), default="128MiB", show_default=True, help="Aimed at, before compression."
)
@click.option("--zstd", type=click.IntRange(1, 19), metavar="LEVEL", help="Compress each shard.")
@click.option("--parent", metavar="ID|TAG", help="Keep the packing of this version; default: the one the tag is on.")
@click.option("--no-parent", is_flag=True, help="Pack everything anew.")
@click.option("--note", default="", help="Kept with the version.")
@click.option("--dry-run", is_flag=True, help="Only say what would be read and written. Touches nothing.")
@options.as_json
def publish(source: str, dry_run: bool, as_json: bool, **asked: Any) -> None:
    """Publish the files of SOURCE (a path, a glob or any fsspec URL) as a new version.

    What did not change since the parent version stays in its shards and is neither read nor written again. Interrupted,
    the same command goes on where it was. The version is seen when all of it is there, and then the tag moves to it.
    """
    from pipelines import settings, storage
    from pipelines.datasets import publish as publisher

    current = settings.load()
    store, request = storage.open_store(current), _request(source, **asked)
    if dry_run:
        found = publisher.preview(current, store, request)
        if as_json:
            return console.emit(found.model_dump(mode="json"))
        return console.table(("what", "value"), [(name.replace("_", " "), str(value)) for name, value in found])
    with console.progress() as say:
        made = publisher.publish(current, store, request, datetime.now(UTC), say)
    _land(store)
    if as_json:
        return console.emit(views.summary(made))
    shards, stored = len(made.body.shards), options.size(made.stored_bytes)
    return click.echo(f"{made.reference}: {made.samples} samples in {shards} shards, {stored}")


@dataset.command("list")
@click.argument("name", required=False)
@options.as_json
def list_(name: str | None, as_json: bool) -> None:
    """List the datasets, or the versions of one, with their tags."""
    store = _store()
    from pipelines.datasets import catalog, names

    found = [names.checked("dataset", name)] if name else catalog.datasets(store)
    rows = [row for each in found for row in views.versions(store, each)]
    if name and not rows:
        catalog.load(store, name)  # raises, with the names that are known
    if as_json:
        return console.emit(rows)
    return console.table(
        ("dataset", "version", "tags", "published", "format", "shards", "samples", "content", "stored"),
        [
            (
                row["dataset"],
                row["version"][: views.DIGITS],
                " ".join(row["tags"]),
                row["published_at"][:16].replace("T", " "),
                row["format"],
                str(row["shards"]),
                str(row["samples"]),
                options.size(row["content_bytes"]),
                options.size(row["stored_bytes"]),
            )
            for row in rows
        ],
    )


@dataset.command()
@click.argument("version", metavar="NAME[@TAG|@ID]")
@click.option("--shards", is_flag=True, help="List its shards.")
@click.option("--files", is_flag=True, help="List its files: where each lies in which shard.")
@options.as_json
def show(version: str, shards: bool, files: bool, as_json: bool) -> None:
    """Show a version: what it holds, where it came from."""
    from pipelines.datasets import catalog

    store = _store()
    found = catalog.load(store, version)
    if files:
        return views.show_files(store, found, as_json)
    if as_json:
        return console.emit(found.model_dump(mode="json") if shards else views.summary(found))
    if not shards:
        return views.show(found)
    return console.table(
        ("shard", "size", "files", "samples", "sha256"),
        [
            (str(number), options.size(each.size_bytes), str(each.files), str(each.samples), each.sha256)
            for number, each in enumerate(found.body.shards)
        ],
    )


@dataset.command()
@click.argument("before", metavar="NAME[@TAG|@ID]")
@click.argument("after", metavar="NAME[@TAG|@ID]")
@options.as_json
def diff(before: str, after: str, as_json: bool) -> None:
    """Show what the second version has other than the first: files by name, shards, bytes."""
    from pipelines.datasets import catalog

    store = _store()
    found = catalog.difference(store, catalog.load(store, before), catalog.load(store, after))
    if as_json:
        return console.emit(found.model_dump(mode="json"))
    return views.show_difference(found)


@dataset.command()
@click.argument("version", metavar="NAME[@TAG|@ID]")
@click.argument("tag", required=False)
@click.option("--remove", is_flag=True, help="Remove TAG instead of moving it.")
@options.as_json
def tag(version: str, tag: str | None, remove: bool, as_json: bool) -> None:
    """Move TAG to a version, or remove it; without TAG, show where the dataset's tags have been.

    Moving is compare and swap: when somebody else moves the tag at the same time, one of the two is told so.
    """
    import getpass

    from pipelines.datasets import catalog, names

    store, reference = _store(), names.parse(version)
    if tag is None:
        return views.show_tags(store, reference.dataset, as_json)
    seen = catalog.tag_of(store, reference.dataset, names.checked("tag", tag))
    to = None if remove else catalog.resolve(store, reference)
    if remove and seen.version is None:
        catalog.resolve(store, names.Reference(dataset=reference.dataset, which=tag))  # raises, with the known ones
    moved = catalog.move_tag(store, seen, to, datetime.now(UTC), by=f"tag, by {getpass.getuser()}")
    if as_json:
        return console.emit(moved.model_dump(mode="json"))
    return console.say(f"{reference.dataset}@{tag}: {seen.version or 'nothing'} -> {moved.version or 'nothing'}")


@dataset.command()
@click.argument("version", metavar="NAME@ID")
@options.as_json
def rm(version: str, as_json: bool) -> None:
    """Remove a version that no tag stands on.

    Its shards go when `dataset gc` next runs after its grace period, unless another version has them too.
    """
    from pipelines.datasets import catalog, names

    store, reference = _store(), names.parse(version)
    removed = catalog.resolve(store, reference)
    catalog.remove(store, reference.dataset, removed)
    if as_json:
        return console.emit({"dataset": reference.dataset, "removed": removed})
    return console.say(f"{reference.dataset}@{removed} is removed")


def tables_are_here() -> bool:
    """Whether this environment can write tables; a bare node's cannot, and a DAG lands what it leaves."""
    return importlib.util.find_spec("deltalake") is not None


def _request(source: str, form: str, shard_size: int, zstd: int | None, no_parent: bool, **asked: Any) -> "Request":
    from pydantic import ValidationError

    from pipelines.datasets import names
    from pipelines.datasets.manifest import Packing
    from pipelines.datasets.publications import Request

    try:
        packing = Packing.model_validate({"format": form, "shard_bytes": shard_size, "zstd_level": zstd})
    except ValidationError as e:
        raise click.BadParameter(e.errors()[0]["msg"], param_hint="--shard-size") from e
    asked["dataset"] = names.checked("dataset", asked["dataset"])
    asked["tag"] = names.checked("tag", asked["tag"])
    parent = asked.pop("parent")
    return Request(
        source=source if "://" in source else str(Path.cwd() / Path(source).expanduser()),
        packing=packing,
        parent=None if no_parent else parent or "",
        **asked,
    )


def _land(store: "Store") -> None:
    """The rows of the table `datasets`, where this environment can write tables; a DAG lands what was published."""
    if not tables_are_here():
        return console.say("the row in the table datasets is landed by the next publication from a full installation")
    from pipelines.tables import datasets as rows

    rows.land_versions(store, datetime.now(UTC))
    return None


def _store() -> "Store":
    from pipelines import settings, storage

    return storage.open_store(settings.load())


VERBS = (dataset,)
