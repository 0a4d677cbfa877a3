"""Counts by bin add up, and percentiles of the sum are percentiles of all samples together."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from pipelines import histograms

SAMPLES = st.lists(st.integers(0, 50), min_size=1, max_size=300)
PERCENT = st.floats(0.001, 100)


def _bins(samples: list[int]) -> dict[int, int]:
    return {value: samples.count(value) for value in sorted(set(samples))}


@given(SAMPLES, SAMPLES)
def test_merging_counts_is_counting_all_samples(one: list[int], other: list[int]) -> None:
    assert histograms.merged([_bins(one), _bins(other)]) == _bins(one + other)


@given(SAMPLES, SAMPLES)
def test_merged_bins_ascend(one: list[int], other: list[int]) -> None:
    values = list(histograms.merged([_bins(one), _bins(other)]))
    assert values == sorted(values)


def test_a_bin_without_samples_is_left_out() -> None:
    assert histograms.merged([{1: 0, 2: 3}]) == {2: 3}


@given(SAMPLES, PERCENT)
def test_a_percentile_is_the_first_value_that_p_percent_of_the_samples_do_not_exceed(
    samples: list[int], percent: float
) -> None:
    enough = [
        value
        for value in samples
        if Fraction(sum(sample <= value for sample in samples), len(samples)) >= Fraction(percent) / 100
    ]
    assert histograms.percentiles(_bins(samples), (percent,)) == (min(enough),)


@given(SAMPLES)
def test_the_hundredth_percentile_is_the_largest_sample(samples: list[int]) -> None:
    assert histograms.percentiles(_bins(samples), (100.0,)) == (max(samples),)


@given(SAMPLES)
def test_percentiles_grow_with_p(samples: list[int]) -> None:
    found = histograms.percentiles(_bins(samples), (1.0, 50.0, 95.0, 99.0, 99.9, 100.0))
    assert list(found) == sorted(found)


def test_no_rounding_decides_between_two_bins() -> None:
    assert histograms.percentiles({1: 19, 2: 1}, (95.0,)) == (1,)
