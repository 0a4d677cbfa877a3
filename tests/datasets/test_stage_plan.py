"""What is staged: every shard once where it should be, a lost node moves its own share only, and what is evicted."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.datasets import stage_plan
from pipelines.datasets.manifest import BLOCK_BYTES, Body, Manifest, Packing, Provenance, Shard
from pipelines.datasets.stage_plan import Cached, Room
from pipelines.errors import BadReference, CacheFull, Unknown

NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
NODES = [f"gpu-{number:02d}" for number in range(20)]


def shard(number: int, size_bytes: int = 100) -> Shard:
    return Shard(
        sha256=f"{number:064x}",
        size_bytes=size_bytes,
        xxh3="0" * 16 * -(-size_bytes // BLOCK_BYTES),
        index="0" * 64,
        files=1,
        samples=1,
        content_bytes=1,
    )


def manifest(*shards: Shard, dataset: str = "d") -> Manifest:
    body = Body(dataset=dataset, packing=Packing(format="blob", shard_bytes=2**16), shards=shards)
    provenance = Provenance(
        source="file:///s",
        listing="0" * 64,
        packed=("g",) * len(shards),
        parent=None,
        code_version="1",
        environment_id="e",
        hostname="h",
        published_at=NOW,
    )
    return Manifest(version=body.version, body=body, provenance=provenance)


def cached(number: int, **fields: object) -> Cached:
    known = {"sha256": f"{number:064x}", "dataset": "d", "size_bytes": 100, "is_pinned": False, "is_in_use": False}
    return Cached(**{**known, "used_at": NOW + timedelta(seconds=number), **fields})


def room(held_bytes: int, budget_bytes: int = 1000, free_bytes: int = 10_000, floor_bytes: int = 0) -> Room:
    return Room(
        path="/cache", budget_bytes=budget_bytes, held_bytes=held_bytes, free_bytes=free_bytes, floor_bytes=floor_bytes
    )


@given(count=st.integers(1, 60), parts=st.integers(1, 9))
def test_the_parts_of_a_version_hold_every_shard_once(count: int, parts: int) -> None:
    whole = manifest(*map(shard, range(count)))
    chosen = [each for part in range(1, parts + 1) for each in stage_plan.choose(whole, f"{part}/{parts}")]
    assert sorted(each.sha256 for each in chosen) == sorted(each.sha256 for each in whole.body.shards)


def test_shards_are_chosen_by_the_first_digits_of_their_hash_and_equal_ones_count_once() -> None:
    twice = manifest(shard(1), shard(2), shard(1))
    assert [each.sha256 for each in stage_plan.choose(twice, "all")] == [shard(1).sha256, shard(2).sha256]
    assert stage_plan.choose(twice, f"{2:064x}") == (shard(2),)


@pytest.mark.parametrize("which", ["", "some", "0/3", "4/3", "1/0", "../etc", "abc", "g" * 64])
def test_anything_else_is_refused_with_a_sentence(which: str) -> None:
    with pytest.raises(BadReference):
        stage_plan.choose(manifest(shard(1)), which)


def test_digits_that_no_shard_has_are_refused_with_those_there_are() -> None:
    with pytest.raises(Unknown, match="unknown shard of"):
        stage_plan.choose(manifest(shard(1)), "ffffff")


@given(
    shards=st.integers(1, 40),
    nodes=st.sets(st.sampled_from(NODES), min_size=2),
    copies=st.integers(1, 4),
    data=st.data(),
)
def test_a_node_that_goes_moves_no_shard_but_its_own(
    shards: int, nodes: set[str], copies: int, data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(nodes)))
    for number in range(shards):
        before = stage_plan.holders(f"{number:064x}", sorted(nodes), copies)
        after = stage_plan.holders(f"{number:064x}", sorted(nodes - {gone}), copies)
        assert [node for node in before if node != gone] == list(after)[: len([n for n in before if n != gone])]
        assert len(after) == min(copies, len(nodes) - 1)


@given(copies=st.integers(1, 6), order=st.permutations(NODES))
def test_each_shard_lies_on_so_many_nodes_whatever_order_they_are_listed_in(copies: int, order: list[str]) -> None:
    shards = [shard(number) for number in range(20)]
    held = [each.sha256 for node in order for each in stage_plan.share(shards, order, node, copies)]
    assert all(held.count(each.sha256) == copies for each in shards)
    assert stage_plan.holders(shard(1).sha256, order, copies) == stage_plan.holders(shard(1).sha256, NODES, copies)


def test_shards_spread_evenly_over_the_nodes() -> None:
    shards = [shard(number) for number in range(2000)]
    loads = [len(stage_plan.share(shards, NODES, node, 1)) for node in NODES]
    assert 60 < min(loads) <= max(loads) < 140  # 100 each, five standard deviations


def test_without_copies_every_node_has_every_shard() -> None:
    shards = [shard(number) for number in range(5)]
    assert stage_plan.share(shards, NODES, "gpu-03", None) == tuple(shards)


def test_the_hottest_versions_fill_the_budget_with_what_was_used_last() -> None:
    first, second = manifest(*map(shard, range(4))), manifest(shard(2), shard(9), dataset="e")
    used_at = {shard(number).sha256: NOW + timedelta(seconds=number) for number in (1, 2)}
    chosen = stage_plan.hot((first, second), used_at, budget_bytes=350)
    names = [[each.sha256[-1] for each in shards] for _, shards in chosen]
    assert names == [["2", "1", "0"], ["2"]]


@given(
    present=st.lists(st.tuples(st.integers(1, 300), st.booleans(), st.booleans()), max_size=20),
    needed=st.integers(0, 3000),
    budget=st.integers(0, 3000),
    free=st.integers(0, 3000),
    floor=st.integers(0, 1000),
)
def test_an_eviction_makes_room_within_budget_and_floor_or_says_that_it_cannot(
    present: list[tuple[int, bool, bool]], needed: int, budget: int, free: int, floor: int
) -> None:
    cache = [
        cached(number, size_bytes=size, is_pinned=pinned, is_in_use=in_use)
        for number, (size, pinned, in_use) in enumerate(present)
    ]
    space = room(sum(each.size_bytes for each in cache), budget, free, floor)
    loose = [each for each in cache if not each.is_pinned and not each.is_in_use]
    try:
        going = set(stage_plan.evict(cache, space, needed, frozenset()))
    except CacheFull:
        assert space.lacking(needed) > sum(each.size_bytes for each in loose)
        return
    freed = sum(each.size_bytes for each in cache if each.sha256 in going)
    assert going <= {each.sha256 for each in loose}
    assert freed >= space.lacking(needed)
    kept = [each.used_at for each in loose if each.sha256 not in going]
    gone = [each.used_at for each in loose if each.sha256 in going]
    assert not kept or not gone or max(gone) < min(kept)


def test_what_is_wanted_now_is_never_evicted_for_another_of_the_same_staging() -> None:
    with pytest.raises(CacheFull, match="100 B do not fit"):
        stage_plan.evict([cached(1)], room(1000), 100, frozenset({f"{1:064x}"}))
