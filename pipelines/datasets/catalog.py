"""The datasets of a store: which there are, their versions and tags, and moving a tag by compare and swap.

A tag is a row of numbered objects, each saying where it was moved to; the last one counts. To move it is to create the
next number, which of several writers one can: that works on every store whose create-only writes do, where `If-Match`
does not (Ceph), and the row is the tag's history.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, ValidationError

from pipelines.datasets import manifest, names
from pipelines.datasets.manifest import Index, Manifest, Shard, VersionId
from pipelines.datasets.names import Reference
from pipelines.errors import BadReference, CorruptObject, KeyNotFound, TagMoved, Unknown, VersionInUse
from pipelines.records import Name, Record
from pipelines.storage import Store

_MOST_BYTES = 2**29  # of a manifest: one of 100 TB in shards of 256 MiB has a third of it
_NAMED = 10  # versions that a sentence about an unknown one lists


class Move(Record):
    """One entry of a tag's row. `version` is None where the tag was removed."""

    schema_version: Literal[1] = 1
    version: VersionId | None
    moved_at: AwareDatetime
    by: str


class Tag(Record):
    """A tag as it stands: `number` is that of its last move, 0 where it was never set."""

    dataset: Name
    tag: Name
    number: int = 0
    version: VersionId | None = None


class Difference(Record):
    """What one version has and another does not, by path. A file is changed where its bytes differ."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    new_shards: int
    new_bytes: int  # stored: what the second version needs that the first does not have


def datasets(store: Store) -> list[str]:
    """Every dataset that has a version."""
    return [name for name in store.folders_under(names.root()) if versions(store, name)]


def versions(store: Store, dataset: str) -> list[str]:
    """The ids of a dataset's versions, in no order that means anything; empty when there is no such dataset."""
    found = store.keys_under(names.versions_prefix(dataset))
    return [key.rpartition("/")[2].removesuffix(".json") for key in found]


def load(store: Store, text: str | Reference) -> Manifest:
    """The manifest of `NAME[@TAG|@ID]`.

    Raises:
        BadReference: it names no dataset, or the digits are those of several versions.
        Unknown: there is no such dataset, tag or version.
        CorruptObject: the manifest is not what was published under its id.
    """
    reference = names.parse(text) if isinstance(text, str) else text
    return load_version(store, reference.dataset, resolve(store, reference))


def resolve(store: Store, reference: Reference) -> str:
    """The id of the version that a reference names now. Raises: see `load`."""
    tagged = tag_of(store, reference.dataset, reference.which)
    if tagged.version is not None:
        return tagged.version
    known = versions(store, reference.dataset)
    found = [version for version in known if version.startswith(reference.which)] if reference.may_be_id else []
    if len(found) > 1:
        raise BadReference(str(reference), f"{len(found)} versions begin with these digits: {', '.join(sorted(found))}")
    if found:
        return found[0]
    if not known:
        raise Unknown("dataset", reference.dataset, tuple(datasets(store)))
    set_tags = [each.tag for each in tags(store, reference.dataset) if each.version]
    raise Unknown(f"tag or version of {reference.dataset}", reference.which, (*set_tags, *sorted(known)[:_NAMED]))


def load_version(store: Store, dataset: str, version: str) -> Manifest:
    """Raises: Unknown: there is no such version. CorruptObject: see `load`."""
    key = names.version_key(dataset, version)
    try:
        return manifest.read_version(store.read(key, _MOST_BYTES), store.url(key), dataset, version)
    except KeyNotFound as e:
        raise Unknown(f"version of {dataset}", version, tuple(sorted(versions(store, dataset))[:_NAMED])) from e


def index_of(store: Store, dataset: str, shard: Shard) -> Index:
    """What lies where in a shard. Raises: KeyNotFound. CorruptObject: see `manifest.read_index`."""
    key = names.index_key(dataset, shard.index)
    return manifest.read_index(store.read(key), shard.index, store.url(key))


def tags(store: Store, dataset: str) -> list[Tag]:
    """Every tag that a dataset has or had."""
    return [tag_of(store, dataset, tag) for tag in store.folders_under(names.tags_prefix(dataset))]


def tag_of(store: Store, dataset: str, tag: str) -> Tag:
    """Where a tag stands now; a tag that was never set stands nowhere."""
    row = store.keys_under(names.tag_prefix(dataset, tag))
    if not row:
        return Tag(dataset=dataset, tag=tag)
    number = int(row[-1].rpartition("/")[2].removesuffix(".json"))
    return Tag(dataset=dataset, tag=tag, number=number, version=_move(store, row[-1]).version)


def history(store: Store, dataset: str, tag: str) -> Iterator[Move]:
    """Every move of a tag, the first one first."""
    for key in store.keys_under(names.tag_prefix(dataset, tag)):
        yield _move(store, key)


def move_tag(store: Store, seen: Tag, version: str | None, at: datetime, by: str) -> Tag:
    """Move a tag from where it was `seen` to a version, or remove it. Moving it to where it stands does nothing.

    Raises:
        TagMoved: it no longer stands there, nor where it is to go.
    """
    if seen.version == version:
        return seen
    number = seen.number + 1
    move = Move(version=version, moved_at=at, by=by)
    key = names.tag_key(seen.dataset, seen.tag, number)
    if store.create(key, move.model_dump_json().encode()) or _move(store, key) == move:  # an answer was lost
        return seen.model_copy(update={"number": number, "version": version})
    now = tag_of(store, seen.dataset, seen.tag)
    if now.version == version:
        return now
    raise TagMoved(seen.dataset, seen.tag, seen.version or "nothing", now.version or "nothing", version or "nothing")


def remove(store: Store, dataset: str, version: str) -> None:
    """Take a version out of sight. Its shards stay until the collector's grace is over.

    Raises:
        Unknown: there is no such version.
        VersionInUse: a tag stands on it.
    """
    key = names.version_key(dataset, version)
    try:
        body = store.read(key)
    except KeyNotFound as e:
        raise Unknown(f"version of {dataset}", version, tuple(sorted(versions(store, dataset))[:_NAMED])) from e
    standing = tuple(tag.tag for tag in tags(store, dataset) if tag.version == version)
    if standing:
        raise VersionInUse(dataset, version, standing)
    store.replace(names.removed_key(dataset, version), body)  # one that lies there already is older than this removal
    store.delete(key)


def difference(store: Store, before: Manifest, after: Manifest) -> Difference:
    """What `after` has other than `before`; only indexes of shards that they do not share are read."""
    had, has = _shards(before), _shards(after)
    old = _contents(store, before.dataset, [shard for sha256, shard in had.items() if sha256 not in has])
    new = _contents(store, after.dataset, [shard for sha256, shard in has.items() if sha256 not in had])
    return Difference(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(sorted(path for path in new.keys() & old.keys() if new[path] != old[path])),
        new_shards=len(has.keys() - had.keys()),
        new_bytes=sum(shard.size_bytes for sha256, shard in has.items() if sha256 not in had),
    )


def _shards(of: Manifest) -> dict[str, Shard]:
    return {shard.sha256: shard for shard in of.body.shards}


def _contents(store: Store, dataset: str, shards: list[Shard]) -> dict[str, set[tuple[int, int, str | None]]]:
    """By path the parts of the file that lie in these shards."""
    found: dict[str, set[tuple[int, int, str | None]]] = {}
    for shard in shards:
        for entry in index_of(store, dataset, shard):
            found.setdefault(entry.path, set()).add((entry.at, entry.length, entry.xxh3))
    return found


def _move(store: Store, key: str) -> Move:
    try:
        return Move.model_validate_json(store.read(key))
    except ValidationError as e:
        raise CorruptObject(store.url(key), "it is not a move of a tag") from e
