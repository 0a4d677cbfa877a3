"""The rules: what passes, what fails, and that absence is neither."""

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import benchmark
from pipelines.benchmark import Floor
from pipelines.tables.repeats import Absence, Repeat, Repeats
from pipelines.verdicts import rules

FLOOR = Floor(metric="write_bandwidth", minimum=500e6, unit="B/s", source="the checkpoint profile")


def repeats(*values: float, absent: tuple[str, ...] = ()) -> Repeats:
    return Repeats(
        node="gpu-01",
        cohort="h200",
        benchmark="fio",
        case="checkpoint",
        metric="write_bandwidth",
        labels={},
        measured=tuple(Repeat(repeat=n, value=value, raw_key=f"raw/{n}") for n, value in enumerate(values, 1)),
        absent=tuple(Absence(repeat=n, reason=why) for n, why in enumerate(absent, len(values) + 1)),
    )


@pytest.mark.parametrize(
    ("values", "verdict", "reason"),
    [
        ((500e6,), "pass", "median 500 MB/s of 1 of 1 repeats reaches the floor of 500 MB/s"),
        ((400e6, 510e6, 900e6), "pass", "median 510 MB/s of 3 of 3 repeats reaches the floor of 500 MB/s"),
        ((250e6, 300e6), "fail", "median 275 MB/s of 2 of 2 repeats is 45 % below the floor of 500 MB/s"),
        ((499.9e6,), "fail", "median 500 MB/s of 1 of 1 repeats is 0.02 % below the floor of 500 MB/s"),
    ],
)
def test_a_floor_holds_for_the_median_of_the_repeats(values: tuple[float, ...], verdict: str, reason: str) -> None:
    found = rules.floor(repeats(*values), FLOOR)
    assert (found.verdict, found.reason, found.observed) == (verdict, reason, median(values))


@given(st.lists(st.floats(0, 1e12), max_size=5), st.lists(st.text(max_size=10), max_size=5))
def test_a_floor_passes_only_on_a_measured_median_that_reaches_it(values: list[float], absent: list[str]) -> None:
    found = rules.floor(repeats(*values, absent=tuple(absent)), FLOOR)
    expected = "not_measured" if not values else "pass" if median(values) >= FLOOR.minimum else "fail"
    assert found.verdict == expected


def test_what_was_not_measured_says_why_and_observes_nothing() -> None:
    found = rules.floor(repeats(absent=("not_measured: fio is not installed",) * 3), FLOOR)
    assert found.observed is None
    assert found.reason == "none of 3 planned repeats gave a value: not_measured: fio is not installed"


def test_a_verdict_keeps_the_repeats_it_saw_and_where_the_floor_comes_from() -> None:
    seen = repeats(600e6, 700e6, absent=("truncated: killed",))
    evidence = rules.floor(seen, FLOOR).evidence
    assert evidence == rules.Evidence(measured=seen.measured, absent=seen.absent, labels={}, source=FLOOR.source)


@pytest.mark.parametrize("profile", ["seq_read", "checkpoint"])
def test_every_floor_of_fio_is_on_a_required_metric_in_its_unit(profile: str) -> None:
    fio = benchmark.get("fio")
    params = fio.checked_params({"profile": profile})
    for floor in fio.floors(params):
        assert floor.unit == fio.metric(floor.metric).unit
        assert floor.metric in fio.required(params)
