"""Collecting what no version of a dataset needs: deleted in an order that is safe to be killed in.

What that is says `collection.plan`; `claims.collecting` keeps publications out of the way meanwhile.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from itertools import groupby
from pathlib import Path

from pipelines.datasets import claims, names
from pipelines.datasets.claims import Claim
from pipelines.datasets.collection import Collection, Doomed, Kind, plan, portions
from pipelines.datasets.meter import size
from pipelines.errors import KeyNotFound, StillCollecting
from pipelines.storage import Store

_AT_ONCE = 16
_BATCH = 256  # deletions between two looks at whether they may go on
_TICK = timedelta(seconds=1)  # of times that servers tell

Say = Callable[[str], None]


def collect(
    store: Store,
    dataset: str,
    collector: str,
    grace: timedelta,
    dry_run: bool,
    say: Say,
    at_most: timedelta = claims.COLLECTING_AT_MOST,
) -> Collection:
    """Delete what `plan` dooms, or only say what that is. Safe to repeat, to race and to kill.

    It stops for a publication that comes, and after `at_most`; then `stopped` says so, and the next one goes on.

    Raises:
        StillCollecting: a publication is under way; nothing was deleted.
        CorruptObject: see `plan`; nothing was deleted.
    """
    if dry_run:
        planned = plan(store, dataset, claims.store_time(store), grace)
        _say_what(planned, "would go", say)
        return planned
    ends_at = time.monotonic() + at_most.total_seconds()
    with claims.collecting(store, dataset, collector) as (claim, now):
        planned = plan(store, dataset, now, grace)
        _say_what(planned, "to go", say)
        done = _delete(store, planned, claim, ends_at)
    say(f"{dataset}: {done.gone_objects} objects, {size(done.gone_bytes)} deleted")
    if done.stopped:
        say(f"{dataset}: {len(done.left)} objects left: {done.stopped}")
    return done


def _delete(store: Store, planned: Collection, claim: Claim, ends_at: float) -> Collection:
    """Delete in the plan's order, one kind after the other, until it is done or must stop."""
    gone_objects = gone_bytes = 0
    stopped = ""

    def delete(each: Doomed) -> None:
        claim.require()
        _delete_one(store, each)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for portion in _batches(planned.doomed):
            try:
                stopped = _must_stop(store, planned, claim, ends_at)
                if stopped:
                    break
                for each, _ in zip(portion, pool.map(delete, portion), strict=True):
                    gone_objects += 1
                    gone_bytes += each.size_bytes
            except StillCollecting as e:
                stopped = str(e)
                break
    done = {"dry_run": False, "gone_objects": gone_objects, "gone_bytes": gone_bytes, "stopped": stopped}
    return planned.model_copy(update=done)


def _must_stop(store: Store, planned: Collection, claim: Claim, ends_at: float) -> str:
    """Why nothing more may be deleted; empty when something may. Raises: see `Claim.require`."""
    if time.monotonic() >= ends_at:
        return "its time is over"
    claim.require()
    if set(store.keys_under(names.versions_prefix(planned.dataset))) - set(planned.versions):
        return "a version was published meanwhile"  # by a publication that came back after days
    return ""


def _delete_one(store: Store, each: Doomed) -> None:
    if each.kind is Kind.TEMPORARY:
        Path(each.key).unlink(missing_ok=True)
        return
    if each.kind is Kind.UPLOAD:
        key, _, upload_id = each.key.partition("?")
        store.abort_upload(key, upload_id)
        return
    if each.kind is Kind.REMOVED:
        with suppress(KeyNotFound):
            if store.stat(each.key).modified_at - each.modified_at >= _TICK:
                return  # the version was in `versions/`, too, and has been removed since: its grace begins anew
    store.delete(each.key)


def _batches(doomed: Sequence[Doomed]) -> Iterator[Sequence[Doomed]]:
    """One kind at a time: the next begins when every object of the last is gone."""
    for _, same in groupby(doomed, key=lambda each: each.kind):
        yield from portions(list(same), _BATCH)


def _say_what(planned: Collection, how: str, say: Say) -> None:
    for kind, same in groupby(planned.doomed, key=lambda each: each.kind):
        sizes = [each.size_bytes for each in same]
        say(f"{planned.dataset}: {len(sizes)} {kind} {how}, {size(sum(sizes))}")
    for kept in planned.kept:
        say(f"{planned.dataset}: {kept.objects} {kept.reason} stay, {size(kept.size_bytes)}")
