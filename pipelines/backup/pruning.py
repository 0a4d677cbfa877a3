"""Old backups deleted, and the objects that no other one has."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import NonNegativeInt

from pipelines.backup.kept import AT_ONCE, LISTS, OBJECTS, ids, list_key, load, object_key, source_of
from pipelines.datasets import claims
from pipelines.errors import CorruptObject
from pipelines.records import Record
from pipelines.storage import Store, Stored

Say = Callable[[str], None]


class Pruned(Record):
    """What went, or would go: whole backups, then objects that none of those that stay has."""

    dry_run: bool
    stay: tuple[str, ...]
    go: tuple[str, ...]
    objects: NonNegativeInt
    size_bytes: NonNegativeInt


def prune(place: Store, keep: int, dry_run: bool) -> Pruned:
    """Keep the newest `keep` backups of every store that has some here, and delete the others. Safe to repeat.

    Interrupted, the next one goes on: a backup's list goes before the first of its objects. What a backup that was
    never finished has left goes, too.

    Raises:
        ValueError: `keep` is less than one: the newest backup always stays.
        StillCollecting: a backup is being made, or was killed within two days; nothing more was deleted.
        CorruptObject: a backup that stays lacks an object, or its list is damaged; nothing was deleted.
    """
    if keep < 1:
        raise ValueError(f"the newest backup always stays: expected 1 or more to keep, got {keep}")
    if dry_run:
        return _planned(place, keep, dry_run)[0]
    with claims.collecting(place, LISTS, "prune") as (claim, now):
        planned, doomed = _planned(place, keep, dry_run)
        for flag in claims.publications(place, LISTS):
            if now - flag.modified_at >= claims.ABANDONED:
                place.delete(flag.key)

        def delete(key: str) -> None:
            claim.require()
            place.delete(key)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            for some in (map(list_key, planned.go), (each.key for each in doomed)):
                list(pool.map(delete, some))
    return planned


def _planned(place: Store, keep: int, dry_run: bool) -> tuple[Pruned, Sequence[Stored]]:
    """What shall go, and the objects among it. Raises: CorruptObject: see `prune`."""
    stay = tuple(_newest(ids(place), keep))
    there = {each.key: each for each in place.objects_under(OBJECTS)}
    wanted = set()
    for backup_id in stay:
        for each in load(place, backup_id).everything:
            key = object_key(each.sha256)
            if key not in there or there[key].size_bytes != each.size_bytes:
                problem = f"backup {backup_id} needs it for {each.key}; nothing is deleted before that is mended"
                raise CorruptObject(place.url(key), f"missing or of another size: {problem}")
            wanted.add(key)
    doomed = [each for key, each in there.items() if key not in wanted]
    go = tuple(each for each in ids(place) if each not in stay)
    size_bytes = sum(each.size_bytes for each in doomed)
    return Pruned(dry_run=dry_run, stay=stay, go=go, objects=len(doomed), size_bytes=size_bytes), doomed


def _newest(known: Sequence[str], keep: int) -> Iterator[str]:
    """The last `keep` of each store's, of ids with the oldest first."""
    for number, each in enumerate(known):
        if sum(source_of(later) == source_of(each) for later in known[number:]) <= keep:
            yield each
