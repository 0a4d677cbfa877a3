"""The coordinates of the pictures: inside their frame, in order, and nothing invented."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.report import pictures

BINS = st.dictionaries(st.floats(1e-7, 1e2), st.integers(1, 10**6), min_size=1, max_size=50)


@given(BINS)
def test_percentiles_of_a_distribution_stand_in_order_inside_the_frame(bins: dict[float, int]) -> None:
    bins = dict(sorted(bins.items()))
    drawn = pictures.distribution(bins, pictures.decades((bins,)), "s")
    places = [mark.at for mark in drawn.marks]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)
    assert drawn.total == sum(bins.values())


def test_axis_ticks_are_powers_of_ten_in_human_units() -> None:
    drawn = pictures.distribution({2e-6: 1, 3e-3: 5}, pictures.decades(({2e-6: 1}, {3e-3: 5})), "s")
    assert [tick.text for tick in drawn.ticks] == ["1 µs", "10 µs", "100 µs", "1 ms", "10 ms"]


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=500))
def test_a_strip_starts_at_zero_ends_at_its_top_and_keeps_both_extremes(values: list[float]) -> None:
    top = max(values)
    drawn = pictures.strip(values, values[0], top, "B/s")
    assert len(drawn.dots) <= 120
    assert all(0 <= dot <= 100 for dot in drawn.dots)
    if top > 0:
        assert drawn.dots[-1] == 100
        assert drawn.dots[0] == round(100 * (min(values) / top), 2)
