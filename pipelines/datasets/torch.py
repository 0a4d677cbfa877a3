"""A version as a PyTorch dataset: `pipelines.datasets.reader` split over the workers of a DataLoader, and resumable."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines import storage
from pipelines.datasets import catalog
from pipelines.datasets.order import Order
from pipelines.datasets.reader import Reader, open_version
from pipelines.datasets.samples import Sample
from pipelines.errors import NotInstalled
from pipelines.settings import Settings

try:
    import torch
    from torch.utils.data import IterableDataset, get_worker_info
except ModuleNotFoundError as e:
    raise NotInstalled("torch", "torch") from e


class VersionDataset(IterableDataset):  # type: ignore[misc]
    """Samples as `Reader` gives them, in epochs that `set_epoch` names.

    Each worker of a DataLoader reads a slice of its own. The version is the one that the reference named when this was
    made, also where the tag moves while workers start; of several ranks give all the same id.

    `state_dict` and `load_state_dict` are of the process they are called in: what torchdata's StatefulDataLoader calls
    in each of its workers, or of this one where there are no workers.
    """

    def __init__(
        self,
        settings: Settings,
        reference: str,
        *,
        shuffle_seed: int | None = None,
        window: int = 8,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Raises: see `reader.open_version`."""
        super().__init__()
        self.version = catalog.load(storage.open_store(settings), reference).reference
        self._settings = settings
        self._order = Order(seed=shuffle_seed, window=window, rank=rank, world=world)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # which persistent workers see, too
        self._reader: Reader | None = None
        self._reader_of: tuple[int, int, int] | None = None  # process, worker, workers
        self._given: Mapping[str, Any] | None = None

    def set_epoch(self, epoch: int) -> None:
        """The epoch that is read next, also by workers that stay from one to the next."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Sample]:
        """This worker's samples. After `load_state_dict`: those still to come of the epoch that the state is of."""
        reader = self._opened()
        epoch = int(self._epoch)
        if self._given is not None:
            epoch = reader.load_state_dict(self._given)
            self._given = None
        yield from reader.epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where this process is; see `Reader.state_dict`."""
        if self._given is not None:
            return dict(self._given)
        return self._opened().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there when iterated. Raises, then: WrongState."""
        self._given = dict(state)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_reader_of": None}

    def _opened(self) -> Reader:
        """This worker's reader. A process that was forked has its parent's, which is for another slice."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        wanted = os.getpid(), worker, workers
        if self._reader is None or self._reader_of != wanted:
            how = self._order
            self._reader_of = wanted
            self._reader = open_version(
                self._settings,
                self.version,
                shuffle_seed=how.seed,
                window=how.window,
                rank=how.rank,
                world=how.world,
                worker=worker,
                workers=workers,
            )
        return self._reader
