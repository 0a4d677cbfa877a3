"""The PyTorch dataset: workers of a DataLoader share an epoch, and each goes on where it was."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

from pipelines.datasets.torch import VersionDataset  # noqa: E402
from pipelines.errors import Unknown, WrongState  # noqa: E402
from pipelines.settings import Settings  # noqa: E402
from tests.datasets.trees import published, request, tree, write  # noqa: E402


def keys(samples: Any) -> list[str]:
    return [sample["__key__"] for sample in samples]


@pytest.fixture
def every(settings: Settings, tmp_path: Path) -> set[str]:
    """The keys of a published version `photos`."""
    files = tree(120)
    published(settings, request(write(tmp_path / "source", files)))
    return {path.partition(".")[0] for path in files}


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_workers_share_an_epoch_every_sample_once(settings: Settings, every: set[str], workers: int, how: str) -> None:
    data = VersionDataset(settings, "photos", shuffle_seed=1)
    assert len(keys(data)) == len(every), "this process reads first: a forked worker must not take its slice"
    context = how if workers else None
    loader = DataLoader(
        data, batch_size=None, num_workers=workers, multiprocessing_context=context, persistent_workers=bool(workers)
    )
    orders = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        orders.append(keys(loader))
        assert sorted(orders[-1]) == sorted(every)
    assert orders[0] == orders[2] != orders[1]


def test_ranks_and_workers_have_no_sample_in_common(settings: Settings, every: set[str]) -> None:
    found = [
        key
        for rank in range(2)
        for key in keys(
            DataLoader(
                VersionDataset(settings, "photos", shuffle_seed=1, rank=rank, world=2), batch_size=None, num_workers=2
            )
        )
    ]
    assert sorted(found) == sorted(every)


def test_a_batch_has_the_bytes_of_its_samples(settings: Settings, every: set[str]) -> None:
    batches = list(DataLoader(VersionDataset(settings, "photos"), batch_size=16))
    assert [len(batch["jpg"]) for batch in batches] == [16, 16, 16, 12]
    assert isinstance(batches[0]["jpg"][0], bytes)


def test_state_passes_through(settings: Settings, every: set[str]) -> None:
    data = VersionDataset(settings, "photos", shuffle_seed=1)
    data.set_epoch(2)
    whole = keys(data)
    samples = iter(data)
    before = [next(samples)["__key__"] for _ in range(7)]
    state = json.loads(json.dumps(data.state_dict()))
    again = pickle.loads(pickle.dumps(data))  # noqa: S301
    again.load_state_dict(state)
    assert again.state_dict() == state
    assert before + keys(again) == whole
    assert keys(again) == whole
    other = VersionDataset(settings, "photos", shuffle_seed=2)
    other.load_state_dict(state)
    with pytest.raises(WrongState):
        next(iter(other))


def test_all_workers_read_the_version_that_was_named_first(settings: Settings, every: set[str], tmp_path: Path) -> None:
    data = VersionDataset(settings, "photos")
    published(settings, request(write(tmp_path / "source", {"one more.txt": b""})))
    assert sorted(keys(data)) == sorted(every)
    with pytest.raises(Unknown):
        VersionDataset(settings, "nothing")
