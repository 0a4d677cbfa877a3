"""Reading a version's samples: from the node's cache where it has the shard, else from the store, some time ahead."""

from collections.abc import Generator, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import NonNegativeInt, ValidationError

from pipelines import bulk, storage
from pipelines.datasets import catalog
from pipelines.datasets.manifest import Manifest, VersionId
from pipelines.datasets.order import Order
from pipelines.datasets.readahead import Pass
from pipelines.datasets.samples import Sample
from pipelines.datasets.shardbytes import NodeCache, Place
from pipelines.errors import WrongState
from pipelines.records import Name, Record
from pipelines.settings import Settings
from pipelines.storage import Store


class State(Record):
    """Where a reader is. `position` counts the samples of its slice of the epoch that it has given."""

    schema_version: Literal[1] = 1
    dataset: Name
    version: VersionId
    order: Order
    epoch: NonNegativeInt = 0
    position: NonNegativeInt = 0


def open_version(
    settings: Settings,
    reference: str,
    *,
    shuffle_seed: int | None = None,
    window: int = 8,
    rank: int = 0,
    world: int = 1,
    worker: int = 0,
    workers: int = 1,
) -> "Reader":
    """A reader of `NAME[@TAG|@ID]`, for a `with`. This node's cache is used where there is one.

    Processes that read together must all be given the same id, not a tag: that may be moved between one and the next.

    Raises:
        BadReference, Unknown, CorruptObject: see `catalog.load`.
        CacheUnusable: there is a cache, and it cannot be used.
        ValueError: there is no such rank or worker.
    """
    how = Order(seed=shuffle_seed, window=window, rank=rank, world=world, worker=worker, workers=workers)
    store = storage.open_store(settings)
    return Reader(store, catalog.load(store, reference), how, _cache(settings))


def _cache(settings: Settings) -> NodeCache | None:
    if not settings.cache_root.is_dir():
        return None
    from pipelines.datasets.cache import Cache

    return Cache.of(settings)


class Reader:
    """The samples of a version, epoch by epoch, from one thread at a time.

    Of format tar a sample is `{"__key__": key, ending: bytes, ..}`, grouped as WebDataset does: the ending is what
    follows the first dot of a file's name. Of parquet it is a row, as a dict. Of blob it is a file or a range of one:
    `{"__key__": path, "__at__": offset in the file, "data": bytes}`.
    """

    def __init__(self, store: Store, manifest: Manifest, how: Order, cache: NodeCache | None = None) -> None:
        self.manifest = manifest
        self.damaged: list[str] = []
        """sha256 of shards that were damaged in the cache: they are quarantined there and were read from the store."""
        self._place = Place(store, bulk.of(store), cache, self.damaged.append)
        self._order = how
        self._first, self._end = how.bounds(manifest.samples)
        self._state = State(dataset=manifest.dataset, version=manifest.version, order=how)
        self._running: Epoch | None = None

    def __len__(self) -> int:
        """The samples of an epoch that are this reader's."""
        return self._end - self._first

    def epoch(self, number: int) -> "Epoch":
        """This reader's samples of an epoch; after `load_state_dict` with a state of that epoch, those still to come.

        An epoch that was begun before, and not read to its end, ends here.

        Raises, while iterating:
            DamagedShard: the store has other bytes than the manifest says.
            KeyNotFound: the store has not a shard, or its index.
            CorruptObject: an index is damaged.
            AmbiguousSample: two files of a sample have the same name in it.
            NotInstalled: Parquet is read by pyarrow.
            StoreUnreachable, StoreRefused.
        """
        position = self._state.position if self._running is None and self._state.epoch == number else 0
        self.close()
        state = self._state.model_copy(update={"epoch": number, "position": position})
        reading = Pass(self._place, self.manifest, self._order, number)
        self._running = Epoch(state, reading.samples(self._first + position, self._end))
        return self._running

    def state_dict(self) -> dict[str, Any]:
        """Where the reader is, for JSON: the next sample is the one after the last that was given."""
        state = self._running.state if self._running is not None else self._state
        return state.model_dump(mode="json")

    def load_state_dict(self, state: Mapping[str, Any]) -> int:
        """Go on from there: the epoch to ask for next.

        Raises:
            WrongState: it is of another version, seed, window or slice, or it is no state.
        """
        try:
            given = State.model_validate(state)
        except ValidationError as e:
            raise WrongState("form", "what state_dict() gives", str(e.errors()[0]["msg"])) from e
        for what in ("dataset", "version"):
            _require_same(what, getattr(self._state, what), getattr(given, what))
        for what in Order.model_fields:
            _require_same(what, getattr(self._order, what), getattr(given.order, what))
        if given.position > len(self):
            raise WrongState("slice", f"{len(self)} samples", f"after {given.position}")
        self.close()
        self._running, self._state = None, given
        return given.epoch

    def close(self) -> None:
        """End the epoch under way. What it holds open is closed, and nothing is loaded any more, when this returns."""
        if self._running is not None:
            self._running.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Epoch(Iterator[Sample]):
    """The samples of one epoch that are still to come. What ended early says so and does not look like the end."""

    def __init__(self, state: State, samples: Generator[Sample, None, None]) -> None:
        self._begun_at = state
        self._samples = samples
        self._given = 0
        self._broken: BaseException | None = None

    @property
    def state(self) -> State:
        return self._begun_at.model_copy(update={"position": self._begun_at.position + self._given})

    def __next__(self) -> Sample:
        if self._broken is not None:
            raise self._broken
        try:
            sample = next(self._samples)
        except StopIteration:
            raise
        except BaseException as e:
            self._broken = e
            raise
        self._given += 1
        return sample

    def close(self) -> None:
        self._samples.close()
        if self._broken is None:
            self._broken = ValueError("this epoch was ended: its reader was closed, or began another one")


def _require_same(what: str, expected: object, got: object) -> None:
    if expected != got:
        raise WrongState(what, str(expected), str(got))
