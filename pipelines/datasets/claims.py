"""Who is at work on a dataset: publications keep the collector of unreferenced shards away, and it keeps them away.

Each side first puts its own flag into the store and then looks for the other's, so that of two that start at once at
least one sees the other. Flags lie in the store, whose listings are consistent; their age is by the store's own clock,
so that the clocks of two machines need not agree.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from pipelines.datasets import names
from pipelines.errors import KeyNotFound, StillCollecting
from pipelines.storage import Store, Stored

ABANDONED = timedelta(days=2)
"""A publication that has packed nothing for so long is no longer under way."""

COLLECTING_AT_MOST = timedelta(minutes=30)
"""The collector stops by itself after so long, by its own monotonic clock."""

_WORTH_WAITING = timedelta(hours=2)  # a collector's flag older than this was left by one that was killed
_ASKED_EVERY_S = 1.0
_FLAG = "alive"


def publishing(store: Store, dataset: str, publication: str, wait_s: float) -> None:
    """Put up, or renew, the flag of a publication; then wait until no collector is at work.

    Raises:
        StillCollecting: one still was after `wait_s`; safe to try again.
    """
    key = names.publication_key(dataset, publication, _FLAG)
    store.replace(key, b"")
    now = store.stat(key).modified_at
    deadline = time.monotonic() + wait_s
    while collectors := [each for each in _collectors(store, dataset) if now - each.modified_at < _WORTH_WAITING]:
        if time.monotonic() >= deadline:
            raise StillCollecting(dataset, f"the collector {collectors[0].key.rpartition('/')[2]}")
        time.sleep(_ASKED_EVERY_S)


def published(store: Store, dataset: str, publication: str) -> None:
    """Take the flag of a publication down."""
    store.delete(names.publication_key(dataset, publication, _FLAG))


def age(store: Store, dataset: str, publication: str, now: datetime) -> timedelta | None:
    """How long ago a publication put its flag up or renewed it; None when it has none."""
    try:
        return now - store.stat(names.publication_key(dataset, publication, _FLAG)).modified_at
    except KeyNotFound:
        return None


@contextmanager
def collecting(store: Store, dataset: str, collector: str) -> Iterator[datetime]:
    """The collector's flag for the time of the block. Yields the time by the store's clock.

    Raises:
        StillCollecting: a publication is under way; nothing may be deleted.
    """
    key = f"{names.collecting_prefix(dataset)}/{collector}"
    store.replace(key, b"")
    try:
        now = store.stat(key).modified_at
        for flag in _publications(store, dataset):
            if now - flag.modified_at < ABANDONED:
                raise StillCollecting(dataset, f"publication {flag.key.split('/')[-2]}")
        yield now
    finally:
        store.delete(key)


def _collectors(store: Store, dataset: str) -> list[Stored]:
    return store.objects_under(names.collecting_prefix(dataset))


def _publications(store: Store, dataset: str) -> list[Stored]:
    found = store.objects_under(names.publishing_prefix(dataset))
    return [each for each in found if each.key.rpartition("/")[2] == _FLAG]
