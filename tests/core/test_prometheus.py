"""Prometheus' histograms: read, subtracted, and quantiles as PromQL computes them."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from pipelines.errors import UnknownOutput
from pipelines.families import prometheus
from pipelines.families.prometheus import Increase, Series, Snapshot

NAME = "latency_seconds"


def snapshot(*series: dict[str, float], started_at: float | None = None) -> Snapshot:
    each = tuple(Series(labels={"engine": str(number)}, buckets=buckets) for number, buckets in enumerate(series))
    return Snapshot(histograms={NAME: each}, started_at=started_at)


@pytest.mark.parametrize(
    ("buckets", "q", "expected"),
    [
        (((0.1, 5), (0.2, 7), (1.0, 10), (math.inf, 12)), 0.5, 0.15),
        (((0.1, 5), (0.2, 7), (1.0, 10), (math.inf, 12)), 0.25, 0.06),
        (((0.1, 5), (0.2, 7), (1.0, 10), (math.inf, 12)), 0.8, 0.2 + 0.8 * (9.6 - 7) / 3),
        (((0.1, 5), (0.2, 7), (1.0, 10), (math.inf, 12)), 0.9, 1.0),  # in the last bucket: the highest finite bound
        (((-0.2, 1), (-0.1, 2), (math.inf, 2)), 0.25, -0.2),  # a first bucket with a bound of 0 or less is that bound
        (((1.0, 0), (2.0, 10), (math.inf, 10)), 0.5, 1.5),
        (((1.0, 0), (math.inf, 4)), 0.5, 1.0),
    ],
)
def test_a_quantile_is_that_of_histogram_quantile(
    buckets: tuple[tuple[float, float], ...], q: float, expected: float
) -> None:
    assert prometheus.quantile(q, Increase(buckets)) == pytest.approx(expected)


@given(st.lists(st.floats(0.001, 9.9), min_size=1, max_size=50), st.sampled_from([0.5, 0.9, 0.99, 0.999]))
def test_a_quantile_lies_in_the_bucket_of_the_observation_of_its_rank(observed: list[float], q: float) -> None:
    bounds = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, math.inf)
    histogram = Increase(tuple((bound, sum(value <= bound for value in observed)) for bound in bounds))
    exact = sorted(observed)[math.ceil(q * len(observed)) - 1]
    above = next(number for number, bound in enumerate(bounds) if exact <= bound)
    low = bounds[above - 1] if above else 0.0
    assert low <= prometheus.quantile(q, histogram) <= bounds[above] * (1 + 1e-9)
    assert not prometheus.is_beyond(q, histogram)


def test_what_was_observed_before_is_not_counted_and_all_series_are_one() -> None:
    registry = CollectorRegistry()
    histogram = Histogram(NAME, "help", ["engine"], registry=registry, buckets=(1, 2, 4))
    histogram.labels("0").observe(100)
    before = prometheus.read(generate_latest(registry).decode(), {NAME})
    for engine, value in (("0", 0.5), ("0", 1.5), ("1", 1.5), ("1", 3)):
        histogram.labels(engine).observe(value)
    after = prometheus.read(generate_latest(registry).decode(), {NAME})
    assert not prometheus.is_reset(before, after)
    seen = prometheus.increase(before, after, NAME)
    assert seen == Increase(((1.0, 1.0), (2.0, 3.0), (4.0, 4.0), (math.inf, 4.0)))


def test_what_is_not_there_or_was_not_observed_is_none_and_not_zero() -> None:
    registry = CollectorRegistry()
    Histogram(NAME, "help", registry=registry)
    Counter("others", "help", registry=registry).inc()
    text = generate_latest(registry).decode()
    there = prometheus.read(text, {NAME, "missing"})
    assert set(there.histograms) == {NAME}
    assert prometheus.increase(there, there, NAME) is None
    assert prometheus.increase(there, there, "missing") is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (snapshot({"1": 5, "+Inf": 9}), snapshot({"1": 5, "+Inf": 8})),
        (snapshot({"1": 5, "+Inf": 9}), snapshot({"1": 4, "+Inf": 9})),
        (snapshot({"1": 5, "+Inf": 9}, {"1": 0, "+Inf": 0}), snapshot({"1": 5, "+Inf": 9})),
        (snapshot({"1": 5, "+Inf": 9}), snapshot({"2": 5, "+Inf": 9})),
        (snapshot({"1": 5, "+Inf": 9}, started_at=1.0), snapshot({"1": 50, "+Inf": 90}, started_at=2.0)),
    ],
    ids=["a count", "a bucket", "a series", "the bounds", "the process"],
)
def test_a_server_that_began_anew_is_known_by(before: Snapshot, after: Snapshot) -> None:
    assert prometheus.is_reset(before, after)
    assert not prometheus.is_reset(before, before)


@pytest.mark.parametrize(
    "buckets", [{"1": 3.0, "2": 2.0, "+Inf": 4.0}, {"1": 1.0, "2": 2.0}, {"+Inf": 2.0}, {"x": 1.0, "+Inf": 1.0}]
)
def test_buckets_that_are_no_histogram_are_none(buckets: dict[str, float]) -> None:
    assert prometheus.increase(Snapshot(), snapshot(buckets), NAME) is None


def test_series_of_different_bounds_are_not_added_up() -> None:
    assert prometheus.increase(Snapshot(), snapshot({"1": 1, "+Inf": 1}, {"2": 1, "+Inf": 1}), NAME) is None


NUMBERS = st.one_of(st.floats(), st.integers(), st.sampled_from(["NaN", "+Inf", "", "x"]))


@given(st.lists(st.tuples(st.sampled_from(["1", "2", "+Inf", "NaN", "-Inf", "1e999", ""]), NUMBERS), max_size=6))
def test_any_buckets_are_honest_or_refused(lines: list[tuple[str, object]]) -> None:
    text = "".join(f'{NAME}_bucket{{le="{bound}"}} {value}\n' for bound, value in lines)
    try:
        after = prometheus.read(f"# TYPE {NAME} histogram\n{text}", {NAME})
    except UnknownOutput:
        return
    seen = prometheus.increase(Snapshot(), after, NAME)
    if seen is not None:
        assert all(math.isfinite(prometheus.quantile(q, seen)) for q in (0.5, 0.9, 0.99, 0.999))


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        prometheus.read(text, {NAME})
    except UnknownOutput:
        return


def test_a_servers_own_text_is_read_as_it_stands(tmp_path: Path) -> None:
    text = (
        "# HELP vllm:e2e_request_latency_seconds Histogram of end to end request latency in seconds.\n"
        "# TYPE vllm:e2e_request_latency_seconds histogram\n"
        'vllm:e2e_request_latency_seconds_sum{engine="0",model_name="m/x"} 12.5\n'
        'vllm:e2e_request_latency_seconds_bucket{engine="0",le="0.3",model_name="m/x"} 1.0\n'
        'vllm:e2e_request_latency_seconds_bucket{engine="0",le="+Inf",model_name="m/x"} 3.0\n'
        'vllm:e2e_request_latency_seconds_count{engine="0",model_name="m/x"} 3.0\n'
        "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds 1.7e+09\n"
    )
    name = "vllm:e2e_request_latency_seconds"
    labels = {"engine": "0", "model_name": "m/x"}
    expected = Snapshot(histograms={name: (Series(labels=labels, buckets={"0.3": 1, "+Inf": 3}),)}, started_at=1.7e9)
    assert prometheus.read(text, {name}) == expected
