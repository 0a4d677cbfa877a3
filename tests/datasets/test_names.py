"""What a person types to name a version, and the keys that no name can lead astray."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.datasets import names
from pipelines.datasets.names import Reference
from pipelines.errors import BadKey, BadReference

good_names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


@pytest.mark.parametrize(
    ("text", "dataset", "which"),
    [("photos", "photos", "latest"), ("photos@prod", "photos", "prod"), ("a.b_c-1@1a2b3c", "a.b_c-1", "1a2b3c")],
)
def test_a_reference_is_a_name_and_perhaps_a_tag_or_an_id(text: str, dataset: str, which: str) -> None:
    assert names.parse(text) == Reference(dataset=dataset, which=which)


@given(dataset=good_names, which=good_names)
def test_a_reference_reads_back_as_it_is_written(dataset: str, which: str) -> None:
    reference = Reference(dataset=dataset, which=which)
    assert names.parse(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    ["", "@prod", "photos@", "a@b@c", "../x", "a/b", "photos@../x", ".hidden", "-x", "a b", "é", "x" * 64, "a\n"],
)
def test_what_could_not_be_a_segment_of_a_path_names_nothing(text: str) -> None:
    with pytest.raises(BadReference, match="has 1 to 63 letters, digits"):
        names.parse(text)


@pytest.mark.parametrize(
    ("which", "may_be"),
    [("1a2b3c", True), ("1a2b3", False), ("0" * 32, True), ("0" * 33, False), ("1A2B3C", False), ("latest", False)],
)
def test_six_or_more_hex_digits_may_be_an_id(which: str, may_be: bool) -> None:
    assert Reference(dataset="d", which=which).may_be_id is may_be


@given(dataset=st.text(max_size=20), part=st.text(max_size=20))
def test_every_key_stays_below_its_dataset_or_is_refused(dataset: str, part: str) -> None:
    for make in (names.shard_key, names.index_key, names.version_key, names.removed_key, names.packed_key):
        try:
            key = make(dataset, part)
        except BadKey:
            continue
        assert Path("/store", key).resolve().is_relative_to(f"/store/datasets/{dataset}")


@given(numbers=st.lists(st.integers(1, 999_999_999), min_size=2, max_size=5, unique=True))
def test_the_moves_of_a_tag_sort_by_their_number(numbers: list[int]) -> None:
    made = [names.tag_key("d", "t", number) for number in sorted(numbers)]
    assert sorted(made) == made
