"""A run on one screen."""

from pipelines.tables.overview import others, overview
from pipelines.tables.results import Summary


def summary(benchmark: str, metric: str, median: float, unit: str, **fields: object) -> Summary:
    given = {
        "run_id": "run-1",
        "node": "gpu-01",
        "case": "case",
        "low": median,
        "high": median,
        "repeats": 3,
        "labels": {},
        **fields,
    }
    return Summary.model_validate(given | {"benchmark": benchmark, "metric": metric, "median": median, "unit": unit})


FIO = (
    summary("fio", "read_bandwidth", 2e9, "B/s", low=1.9e9, high=2.1e9),
    summary("fio", "read_latency_p99", 1e-3, "s"),
    summary("fio", "cpu_user", 0.5, "ratio"),
)
BATCHED = tuple(
    summary(
        "llama_batched", "decode_throughput", 50.0 * parallel, "tok/s", labels={"parallel": str(parallel), "gpu": "0"}
    )
    for parallel in (1, 16)
)


def test_storage_has_a_line_per_case_and_direction() -> None:
    shown = overview((*FIO, *BATCHED))
    assert shown.rows == (("gpu-01", "fio case", "read", "2.00 GB/s ±5%", None, None, "1.00 ms ±0%", None, "3"),)


def test_cases_of_two_benchmarks_that_have_one_name_have_a_line_each() -> None:
    shown = overview((*FIO, summary("memory_bandwidth", "read_bandwidth", 2e10, "B/s")))
    assert [row[1:4] for row in shown.rows] == [
        ("fio case", "read", "2.00 GB/s ±5%"),
        ("memory_bandwidth case", "read", "20.0 GB/s ±0%"),
    ]


def test_what_has_no_such_line_is_shown_metric_by_metric_with_the_labels_that_differ() -> None:
    assert others((*FIO, *BATCHED)).rows == (
        ("gpu-01", "llama_batched", "case", "decode_throughput", "parallel=1", "50.0 tok/s ±0%", "3"),
        ("gpu-01", "llama_batched", "case", "decode_throughput", "parallel=16", "800 tok/s ±0%", "3"),
    )
