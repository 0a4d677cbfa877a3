"""Who is at work on a dataset: publications keep the collector of unreferenced shards away, and it keeps them away.

Each side first puts its own flag into the store and then looks for the other's, so that of two that start at once at
least one sees the other: the publication waits, the collector gives way. Flags lie in the store, whose listings are
consistent, and no two machines' clocks are compared:

- A publication's flag stands for two days by the store's own clock, renewed with every chunk that it packs.
- A collector renews its flag every few seconds and looks for publications each time. It deletes only while its last
  renewal is recent by its own clock, suspension of the machine included. A publication takes it for dead when the flag
  has stayed as it is for longer than that, by the publication's own clock, and takes the flag down.
"""

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from pipelines.datasets import names
from pipelines.errors import FleetmarkError, KeyNotFound, StillCollecting
from pipelines.storage import Store, Stored

ABANDONED = timedelta(days=2)
"""A publication that has packed nothing for so long is no longer under way."""

COLLECTING_AT_MOST = timedelta(minutes=30)
"""The collector stops by itself after so long, by its own monotonic clock."""

_RENEWED_EVERY_S = 1.0
_VALID_S = 10.0  # a collector begins no deletion when its last renewal began longer ago
_ENDS_WITHIN_S = 65.0  # the longest that one request to a server takes: connect and read timeout, `filesystems.s3`
_ASKED_EVERY_S = 0.2
_WAIT_S = 3600.0  # of a publication for the collector, which takes minutes


class Claim:
    """A collector's right to delete; made by `collecting`."""

    def __init__(self, store: Store, dataset: str, collector: str) -> None:
        self._store = store
        self._dataset = dataset
        self.key = f"{names.collecting_prefix(dataset)}/{collector}.{uuid.uuid4().hex[:8]}"  # a retry has its own
        self._renewed_at = _clock()
        self._refusal: FleetmarkError | None = None

    def require(self) -> None:
        """To be called right before each deletion.

        Raises:
            StillCollecting: a publication has come, or might have: nothing more may be deleted.
            StoreUnreachable, StoreRefused: the claim could not be renewed.
        """
        if self._refusal is not None:
            raise self._refusal
        if _clock() - self._renewed_at > _VALID_S:
            raise self._lapsed()

    def renew(self) -> datetime:
        """Say that the collector is alive, then look for publications; the time by the store. Raises: see `require`."""
        began = _clock()
        self._store.replace(self.key, b"")
        if _clock() - self._renewed_at > _VALID_S:  # a publication may have taken it for dead meanwhile
            raise self._lapsed()
        now = _listed_at(self._store, self.key)
        for flag in publications(self._store, self._dataset):
            if now - flag.modified_at < ABANDONED:
                raise StillCollecting(self._dataset, f"publication {flag.key.rpartition('/')[2]}")
        self._renewed_at = began
        return now

    def keep(self, until: threading.Event) -> None:
        """Renew it, in a thread of its own, until the event; at the first refusal it is lost for good."""
        while not until.wait(_RENEWED_EVERY_S):
            try:
                self.renew()
            except FleetmarkError as e:
                self._refusal = e
                return

    def _lapsed(self) -> StillCollecting:
        return StillCollecting(self._dataset, f"this collector could not say so for {_VALID_S:.0f} s; somebody else")


@contextmanager
def collecting(store: Store, dataset: str, collector: str) -> Iterator[tuple[Claim, datetime]]:
    """The collector's claim for the time of the block, renewed all along, and when it began by the store's clock.

    Raises:
        StillCollecting: a publication is under way; nothing may be deleted.
    """
    claim, over = Claim(store, dataset, collector), threading.Event()
    keeper = threading.Thread(target=claim.keep, args=(over,), name=f"claim on {dataset}", daemon=True)
    try:
        now = claim.renew()
        keeper.start()
        yield claim, now
    finally:
        over.set()
        if keeper.is_alive():
            keeper.join()
        store.delete(claim.key)


def publishing(store: Store, dataset: str, publication: str, wait_s: float = _WAIT_S) -> None:
    """Put up, or renew, the flag of a publication; then wait until no collector is at work.

    Raises:
        StillCollecting: one still was after `wait_s`; safe to try again.
    """
    store.replace(names.publisher_key(dataset, publication), b"")
    dead_after_s = _VALID_S + (_ASKED_EVERY_S if store.is_local else store.retry_s + _ENDS_WITHIN_S)
    began = time.monotonic()
    since: dict[Stored, float] = {}  # a flag as it was last renewed, and since when it is known so
    while True:
        asked = time.monotonic()
        flags = store.objects_under(names.collecting_prefix(dataset))
        known = time.monotonic()
        since = {flag: since.get(flag, known) for flag in flags}
        alive = [flag for flag in flags if asked - since[flag] <= dead_after_s]
        for flag in flags:
            if flag not in alive:
                store.delete(flag.key)
        if not alive:
            return
        if asked - began >= wait_s:
            raise StillCollecting(dataset, f"the collector {alive[0].key.rpartition('/')[2]}")
        time.sleep(_ASKED_EVERY_S)


def published(store: Store, dataset: str, publication: str) -> None:
    """Take the flag of a publication down."""
    store.delete(names.publisher_key(dataset, publication))


def publications(store: Store, dataset: str) -> list[Stored]:
    """The flags of publications, of those long abandoned, too; the last segment of a key is the publication's id."""
    return store.objects_under(names.publishers_prefix(dataset))


def stands(store: Store, dataset: str, publication: str) -> bool:
    """Whether the flag of a publication is up: no collector has taken it for abandoned, nor has it been committed."""
    return store.exists(names.publisher_key(dataset, publication))


def store_time(store: Store) -> datetime:
    """The time by the store's own clock."""
    key = f"probe/{uuid.uuid4().hex}"
    store.replace(key, b"")
    try:
        return _listed_at(store, key)
    finally:
        store.delete(key)


def _listed_at(store: Store, key: str) -> datetime:
    """When an object was written, as listings say: on some servers (Ceph) finer than what `Store.stat` says.

    Raises:
        KeyNotFound: it is gone.
    """
    for each in store.objects_under(key.rpartition("/")[0]):
        if each.key == key:
            return each.modified_at
    raise KeyNotFound(store.url(key))


def _clock() -> float:
    """Monotonic, and it goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
