"""Which files go into which shard: the same whatever the order, balanced, and kept from one version to the next."""

import random
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.datasets import packing
from pipelines.datasets.formats import blob, tar
from pipelines.datasets.manifest import Packing
from pipelines.datasets.packing import MOST_FILES, Kept, Unit
from pipelines.datasets.source import Piece, SourceFile

SHARD_BYTES = 2**16
TAR = Packing(format="tar", shard_bytes=SHARD_BYTES)
BLOB = Packing(format="blob", shard_bytes=SHARD_BYTES)

Grouping = list[tuple[Piece, ...]]

sizes = st.one_of(st.just(0), st.integers(1, 2000), st.integers(2000, 3 * SHARD_BYTES))
paths = st.text(alphabet="ab./é-", min_size=1, max_size=8).map(lambda text: f"d/{text.replace('/', '')}x")
sources = st.dictionaries(paths, sizes, min_size=1, max_size=60).map(
    lambda files: [SourceFile(path, size, f"etag of {path}") for path, size in files.items()]
)


def units_of(files: Iterable[SourceFile], how: Packing) -> list[Unit]:
    return list(tar.units(files) if how.format == "tar" else blob.units(files, how.shard_bytes))


def grouped(files: Iterable[SourceFile], how: Packing = TAR, parent: Grouping | None = None) -> Grouping:
    """The groups of these files, given the groups of the version before."""
    kept = [Kept(piece.file.path, piece.start, n) for n, group in enumerate(parent or []) for piece in group]
    with packing.pack(units_of(files, how), kept, how) as groups:
        return list(groups)


def weight(group: Iterable[Piece]) -> int:
    return sum(unit.weight for unit in tar.units(piece.file for piece in group))


def rewritten_bytes(before: Grouping, after: Grouping) -> int:
    known = set(before)
    return sum(weight(group) for group in after if group not in known)


def photos(count: int, size_bytes: int = 1500, seed: int = 1) -> list[SourceFile]:
    """Files of names in no order, as a camera or a hash gives them."""
    chance = random.Random(seed)
    names = {"".join(chance.choices(string.ascii_lowercase, k=10)) for _ in range(count)}
    return [SourceFile(f"{name}.jpg", chance.randrange(1, 2 * size_bytes), "1") for name in sorted(names)]


# --- one packing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [TAR, BLOB], ids=["tar", "blob"])
@given(files=sources, seed=st.integers())
@settings(max_examples=60, deadline=None)
def test_every_byte_is_in_one_group_and_the_order_of_the_listing_does_not_matter(
    how: Packing, files: list[SourceFile], seed: int
) -> None:
    groups = grouped(files, how)
    covered: dict[SourceFile, list[tuple[int, int]]] = {}
    for piece in (piece for group in groups for piece in group):
        covered.setdefault(piece.file, []).append((piece.start, piece.length))
    assert set(covered) == set(files)
    for file, parts in covered.items():
        parts.sort()
        assert parts[0][0] == 0
        assert sum(parts[-1]) == file.size_bytes
        assert all(start + length == following for (start, length), (following, _) in pairwise(parts))
    random.Random(seed).shuffle(files)
    assert grouped(files, how) == groups


@given(files=sources)
@settings(max_examples=60, deadline=None)
def test_samples_stay_whole_and_groups_are_equally_full_to_one_sample(files: list[SourceFile]) -> None:
    groups = grouped(files)
    where = {(tar.sample_key(piece.file.path), n) for n, group in enumerate(groups) for piece in group}
    assert len({sample for sample, _ in where}) == len(where), "a sample lies in two groups"
    samples: Counter[str] = Counter()
    for unit in tar.units(files):
        samples[unit.sample] += max(unit.weight, SHARD_BYTES // MOST_FILES)
    total, largest = sum(samples.values()), max(samples.values())
    most = total / -(-total // SHARD_BYTES)
    assert all(weight(group) <= most + largest for group in groups)
    assert len(groups) <= -(-total // SHARD_BYTES)


def test_the_largest_of_many_groups_is_hardly_larger_than_their_mean() -> None:
    groups = grouped(photos(4000))
    weights = [weight(group) for group in groups]
    assert len(groups) > 60
    assert max(weights) <= 1.1 * sum(weights) / len(weights)
    assert max(weights) <= SHARD_BYTES + 2 * 1500 + tar.BLOCK


def test_a_group_has_no_more_files_than_its_limit_however_small_they_are() -> None:
    files = [SourceFile(f"{n:06d}", 0, "1") for n in range(MOST_FILES + 1)]
    groups = grouped(files, Packing(format="blob", shard_bytes=2**30))
    assert [len(group) for group in groups] == [MOST_FILES // 2, MOST_FILES // 2 + 1]


def test_a_file_larger_than_a_shard_is_cut_in_format_blob_and_stays_whole_in_format_tar() -> None:
    large = [SourceFile("model.bin", 5 * SHARD_BYTES + 7, "1")]
    assert [len(group) for group in grouped(large)] == [1]
    parts = [piece for group in grouped(large, BLOB) for piece in group]
    assert [piece.length for piece in parts] == [SHARD_BYTES] * 5 + [7]


def test_the_id_of_a_group_depends_on_every_file_on_its_parts_and_on_the_packing() -> None:
    group = [Piece(SourceFile("a", 10, "1"), 0, 10), Piece(SourceFile("b", 10, "1"), 0, 10)]
    others = [
        group[:1],
        [group[0], Piece(SourceFile("b", 10, "2"), 0, 10)],
        [group[0], Piece(SourceFile("b", 11, "1"), 0, 10)],
        [group[0], Piece(SourceFile("b", 10, "1"), 0, 9)],
        [group[0], Piece(SourceFile("c", 10, "1"), 0, 10)],
        group[::-1],
    ]
    ids = {packing.group_id(other, TAR) for other in (group, *others)}
    ids |= {packing.group_id(group, TAR.model_copy(update={"zstd_level": 3})), packing.group_id(group, BLOB)}
    assert len(ids) == len(others) + 3


# --- the next version ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [TAR, BLOB], ids=["tar", "blob"])
@given(files=sources, later=st.lists(sources, max_size=3))
@settings(max_examples=80, deadline=None)
def test_the_same_source_once_more_is_packed_as_it_was(
    how: Packing, files: list[SourceFile], later: Sequence[list[SourceFile]]
) -> None:
    groups = grouped(files, how)
    for listing in later:  # whatever came before
        groups = grouped(listing, how, groups)
    listing = later[-1] if later else files
    assert grouped(listing, how, groups) == groups


def test_a_large_sample_beside_others_stays_where_it_was() -> None:
    files = [SourceFile(name, int(part * SHARD_BYTES), "1") for name, part in {"a": 0.3, "b": 1.4, "c": 0.2}.items()]
    groups = grouped(files)
    assert [[piece.file.path for piece in group] for group in groups] == [["a"], ["b", "c"]]
    assert grouped(files, TAR, groups) == groups


@given(files=sources, later=sources)
@settings(max_examples=60, deadline=None)
def test_after_any_change_every_byte_is_in_one_group_and_samples_are_whole(
    files: list[SourceFile], later: list[SourceFile]
) -> None:
    groups = grouped(later, TAR, grouped(files))
    assert Counter(piece.file for group in groups for piece in group) == Counter(later)
    where = {(tar.sample_key(piece.file.path), n) for n, group in enumerate(groups) for piece in group}
    assert len({sample for sample, _ in where}) == len(where)


def test_a_hundredth_more_files_rewrite_at_most_a_twentieth_of_the_bytes() -> None:
    all_files = photos(4300)
    chance = random.Random(2)
    new = set(chance.sample(all_files, len(all_files) // 101))
    before = grouped(file for file in all_files if file not in new)
    assert len(before) >= 60
    after = grouped(all_files, TAR, before)
    assert rewritten_bytes(before, after) <= 0.05 * sum(map(weight, before))


@pytest.mark.parametrize("change", ["deleted", "changed", "grown"])
def test_one_file_that_changes_changes_one_group(change: str) -> None:
    files = photos(4300)
    before = grouped(files)
    path, size_bytes, _ = files[2000]
    changed = {
        "deleted": [],
        "changed": [SourceFile(path, size_bytes, "2")],
        "grown": [SourceFile(path, size_bytes + 5000, "2")],
    }
    after = grouped([*files[:2000], *changed[change], *files[2001:]], TAR, before)
    assert len(set(after) - set(before)) == len(set(before) - set(after)) == 1


def test_a_file_that_joins_a_sample_goes_where_the_sample_is() -> None:
    files = photos(4300)
    before = grouped(files)
    label = SourceFile(files[2000].path.replace(".jpg", ".cls"), 1, "1")
    after = grouped([*files, label], TAR, before)
    (changed,) = set(after) - set(before)
    assert {label, files[2000]} <= {piece.file for piece in changed}


def test_a_group_that_grows_with_its_samples_is_cut_again() -> None:
    files = [SourceFile(f"{n:03d}.jpg", 1000, "1") for n in range(40)]
    grown = [*files, *(SourceFile(f"{n:03d}.mask", 3000, "1") for n in range(40))]
    groups = grouped(grown, TAR, grouped(files))
    assert [len(group) for group in groups] == [20, 20, 20, 20]


@pytest.mark.parametrize("nightly", [1, 10], ids=lambda count: f"{count} files a night")
def test_a_hundred_nightly_additions_do_not_pile_up_small_shards(nightly: int) -> None:
    files = photos(300 + 100 * nightly)
    random.Random(3).shuffle(files)
    groups = grouped(files[:300])
    fresh, rewritten = sum(map(weight, groups)), 0
    for night in range(1, 101):
        after = grouped(files[: 300 + night * nightly], TAR, groups)
        rewritten += rewritten_bytes(groups, after)
        groups = after
        small = [group for group in groups if weight(group) < SHARD_BYTES / 2]
        assert len(small) <= 9, f"night {night}"
    added = sum(map(weight, groups)) - fresh
    assert rewritten <= 5 * added, f"{rewritten / added:.1f} times what was added"


def test_what_is_deleted_night_after_night_leaves_no_crowd_of_small_shards() -> None:
    files = photos(3000)
    random.Random(4).shuffle(files)
    groups = grouped(files)
    for left in range(2900, 100, -100):
        groups = grouped(files[:left], TAR, groups)
        assert sum(weight(group) < SHARD_BYTES / 2 for group in groups) <= 9, f"{left} files left"
    assert len(groups) <= 2 * sum(map(weight, groups)) // SHARD_BYTES + 9
