"""The order of samples: every one once, whatever the shards, the window and the number of readers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.datasets.order import HELD_BYTES, Order, Portion, permuted

SEEDS = st.none() | st.integers()
SIZES = st.sampled_from([0, 1, 1000, 2**23, 2**25, 2**28])
GOLDEN = [5, 3, 11, 8, 7, 9, 4, 2, 10, 6, 0, 1]
SHARDS = st.lists(st.lists(st.builds(Portion, st.integers(1, 5), SIZES), max_size=5), max_size=8)


@given(count=st.integers(0, 300), seed=st.integers(), epoch=st.integers(0, 5))
def test_a_permutation_has_every_number_once(count: int, seed: int, epoch: int) -> None:
    assert sorted(permuted(count, seed, epoch)) == list(range(count))


def test_the_order_of_a_seed_is_the_same_in_every_release() -> None:
    assert list(permuted(12, 7, 0)) == GOLDEN
    assert list(permuted(12, 7, 1)) != GOLDEN
    assert list(permuted(12, 8, 0)) != GOLDEN


@given(shards=SHARDS, seed=SEEDS, window=st.integers(1, 9), epoch=st.integers(0, 3), forward=st.booleans())
def test_windows_and_rounds_have_every_sample_of_an_epoch_once_and_in_one_place(
    shards: list[list[Portion]], seed: int | None, window: int, epoch: int, forward: bool
) -> None:
    order = Order(seed=seed, window=window)
    counts = [sum(portion.samples for portion in shard) for shard in shards]
    places, found = 0, []
    for each in order.windows(epoch, counts, 0, sum(counts)):
        assert each.first == places
        its_shards = [shards[shard] for shard in each.shards]
        for round_ in order.rounds(epoch, each, its_shards, forward):
            assert each.first + round_.first == places
            samples = [
                (each.shards[shard], portion, sample)
                for shard, portion in round_.portions
                for sample in range(its_shards[shard][portion].samples)
            ]
            inside = order.inside(epoch, each, round_)
            found += [samples[place] for place in inside]
            places += round_.samples
            assert len(round_.portions) == 1 or round_.size_bytes <= HELD_BYTES // 2
    every = [
        (number, place, sample)
        for number, shard in enumerate(shards)
        for place, portion in enumerate(shard)
        for sample in range(portion.samples)
    ]
    assert sorted(found) == every
    assert places == sum(counts)
    if seed is None:
        assert found == every


@given(shards=SHARDS, seed=st.integers(), window=st.integers(1, 9))
def test_a_compressed_shard_is_read_from_front_to_back(shards: list[list[Portion]], seed: int, window: int) -> None:
    order = Order(seed=seed, window=window)
    counts = [sum(portion.samples for portion in shard) for shard in shards]
    for each in order.windows(0, counts, 0, sum(counts)):
        rounds = order.rounds(0, each, [shards[shard] for shard in each.shards], forward=True)
        for shard in range(len(each.shards)):
            asked = [portion for round_ in rounds for its_shard, portion in round_.portions if its_shard == shard]
            assert asked == sorted(asked)


@given(samples=st.integers(0, 10_000), world=st.integers(1, 40), workers=st.integers(1, 9))
def test_slices_follow_one_another_and_differ_by_one_sample_at_most(samples: int, world: int, workers: int) -> None:
    slices = [
        Order(rank=rank, world=world, worker=worker, workers=workers).bounds(samples)
        for rank in range(world)
        for worker in range(workers)
    ]
    assert [first for first, _ in slices] == [0, *(end for _, end in slices[:-1])]
    assert slices[-1][1] == samples
    sizes = [end - first for first, end in slices]
    assert max(sizes) - min(sizes) <= 1


@given(counts=st.lists(st.integers(0, 9), max_size=30), seed=SEEDS, window=st.integers(1, 9), data=st.data())
def test_a_part_of_an_epoch_asks_for_no_window_that_it_has_no_sample_of(
    counts: list[int], seed: int | None, window: int, data: st.DataObject
) -> None:
    order = Order(seed=seed, window=window)
    first = data.draw(st.integers(0, sum(counts)))
    end = data.draw(st.integers(first, sum(counts)))
    asked = list(order.windows(0, counts, first, end))
    every = list(order.windows(0, counts, 0, sum(counts)))
    assert asked == [each for each in every if max(first, each.first) < min(end, each.first + each.samples)]


def test_what_is_read_at_once_gets_smaller_as_the_window_grows() -> None:
    sizes = [Order(seed=1, window=window).portion_bytes for window in (1, 4, 8, 64, 10_000)]
    assert sizes == [8 * 2**20, 8 * 2**20, 4 * 2**20, 2**19, 2**16]


@pytest.mark.parametrize("wrong", [{"rank": 2, "world": 2}, {"worker": 1}, {"window": 0}, {"rank": -1}])
def test_a_slice_that_is_not_one_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"Order"):
        Order(**wrong)
