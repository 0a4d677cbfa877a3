"""llama-batched-bench: its rows as JSON and as a table, the best point under a limit, and rows that are not there."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.benchmark import Workplace
from pipelines.errors import BadParameter, UnknownOutput
from pipelines.records import Outcome, Parsed
from tests.benchmarks import llama_samples as samples
from tests.benchmarks.llama_samples import BATCHED, BATCHED_RUNS, BUILD

ROWS = f"{BUILD}-rows.jsonl"
BEST = ("best_decode_throughput", "best_parallel")


def values(parsed: Parsed) -> dict[tuple[str, str], float]:
    return {(each.metric, each.labels.get("parallel", "")): each.value for each in parsed.measurements}


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in samples.text(BATCHED, ROWS).splitlines() if line]


def parse(changed: list[dict[str, Any]], **params: Any) -> Parsed:
    printed = "\n".join(map(json.dumps, changed))
    return BATCHED.parse(samples.raw(BATCHED, ROWS, {**BATCHED_RUNS[ROWS], **params}, stdout=printed))


@pytest.mark.parametrize("name", BATCHED_RUNS)
def test_a_real_output_gives_exactly_the_golden_result(name: str) -> None:
    golden = Parsed.model_validate_json(samples.text(BATCHED, f"{name.rpartition('.')[0]}.golden.json"))
    assert golden.outcome is Outcome.OK
    assert BATCHED.parse(samples.raw(BATCHED, name)) == golden


@pytest.mark.parametrize("name", BATCHED_RUNS)
def test_every_value_lies_in_its_honest_range_in_its_metrics_unit(name: str) -> None:
    for each in BATCHED.parse(samples.raw(BATCHED, name)).measurements:
        metric = BATCHED.metric(each.metric)
        assert metric.low <= each.value <= metric.high
        assert each.unit == metric.unit


@pytest.mark.parametrize("row", rows(), ids=lambda row: str(row["pl"]))
def test_a_row_is_the_throughput_of_all_sequences_and_the_latency_of_one(row: dict[str, Any]) -> None:
    got = values(BATCHED.parse(samples.raw(BATCHED, ROWS)))
    name = str(row["pl"])
    assert got["prefill_throughput", name] == row["speed_pp"]
    assert got["decode_throughput", name] == row["speed_tg"]
    assert got["total_throughput", name] == pytest.approx(row["speed"], rel=1e-6)
    assert got["time_to_first_token", name] == pytest.approx(row["t_pp"], abs=1e-6)
    assert got["inter_token_latency", name] == pytest.approx(row["t_tg"] / 16, abs=1e-6)
    assert got["request_latency", name] == pytest.approx(row["t"], abs=2e-6)
    assert got["request_rate", name] == pytest.approx(row["pl"] / got["request_latency", name])


def test_the_first_row_is_asked_twice_and_the_first_time_is_no_measurement() -> None:
    """In it is what a GPU loads when it computes a whole batch for the first time."""
    cold = {**rows()[0], "t_pp": 1.0, "speed_pp": 32.0, "t": 1.0 + rows()[0]["t_tg"]}
    cold["speed"] = cold["n_kv"] / cold["t"]
    argv = ("llama-batched-bench", "-npl", "1,1,4,16,64")
    for printed, measured in (([cold, *rows()], rows()), ([cold, *rows()[1:]], rows()[1:])):
        text = "\n".join(map(json.dumps, printed))
        got = values(BATCHED.parse(samples.raw(BATCHED, ROWS, stdout=text, argv=argv)))
        prefill = {name: value for (metric, name), value in got.items() if metric == "prefill_throughput"}
        assert prefill == {str(row["pl"]): row["speed_pp"] for row in measured}


@pytest.mark.parametrize(("limit_s", "best"), [(0.0001, 1), (0.001, 4), (0.01, 4), (0.05, 4)])
def test_the_best_point_is_the_greatest_decode_throughput_within_the_limit(limit_s: float, best: int) -> None:
    row = next(row for row in rows() if row["pl"] == best)
    got = values(parse(rows(), latency_limit_s=limit_s))
    assert [got[name, ""] for name in BEST] == [row["speed_tg"], best]


def test_where_no_point_is_within_the_limit_there_is_no_best_one() -> None:
    parsed = parse(rows(), latency_limit_s=0.00001)
    assert parsed.outcome is Outcome.OK
    assert not {each.metric for each in parsed.measurements} & set(BEST)


def test_rows_that_the_tool_left_out_for_want_of_context_are_missing() -> None:
    asked = {"model": "tiny-q4_0.gguf", "n_prompt": 128, "n_gen": 128, "parallel": "1,4,64"}
    parsed = BATCHED.parse(samples.raw(BATCHED, f"{BUILD}-small_context.jsonl", asked))
    reason = "nothing was measured of 4, 64 parallel sequences"
    assert (parsed.outcome, parsed.reason) == (Outcome.TRUNCATED, reason)
    assert {each.labels["parallel"] for each in parsed.measurements} == {"1"}


def test_what_was_measured_before_the_job_was_ended_is_kept_without_a_best_point() -> None:
    first = samples.text(BATCHED, ROWS).splitlines()[0]
    parsed = BATCHED.parse(samples.raw(BATCHED, ROWS, stdout=first, exit_status=None, signal=15, timed_out=True))
    reason = (
        "llama-batched-bench was ended after 60 s, the job's timeout; "
        "nothing was measured of 4, 16, 64 parallel sequences"
    )
    assert (parsed.outcome, parsed.reason) == (Outcome.TRUNCATED, reason)
    assert {each.labels.get("parallel") for each in parsed.measurements} == {"1"}


@pytest.mark.parametrize(
    "damage", [{"t_pp": 1.0}, {"speed_tg": 1.0}, {"n_kv": 1}, {"is_pp_shared": 1}, {"is_tg_separate": 1}, {"pp": 33}]
)
def test_a_row_that_contradicts_itself_or_the_request_is_no_row(damage: dict[str, Any]) -> None:
    parsed = parse([{**rows()[3], **damage}, *rows()[:3]])
    assert parsed.reason == "nothing was measured of 64 parallel sequences"
    with pytest.raises(UnknownOutput):
        parse([{**row, **damage} for row in rows()])


@pytest.mark.parametrize(
    ("name", "outcome", "said"),
    [
        ("cut_model", Outcome.TOOL_FAILED, "model is corrupted or incomplete"),
        ("option", Outcome.CONFIG, "error: invalid argument: --nosuch"),
    ],
)
def test_a_failure_has_the_reason_that_the_tool_gave(name: str, outcome: Outcome, said: str) -> None:
    parsed = BATCHED.parse(samples.raw(BATCHED, f"{BUILD}-{name}.err", exit_status=1))
    assert (parsed.outcome, parsed.measurements) == (outcome, ())
    assert parsed.reason.startswith("llama-batched-bench ended with exit status 1: ")
    assert said in parsed.reason


@pytest.mark.parametrize(
    ("tool_help", "format_words", "flash"),
    [
        (samples.text(BATCHED, f"{BUILD}-help.txt"), ("--output-format", "jsonl"), ("-fa", "on")),
        ("", ("--output-format", "jsonl"), ("-fa", "on")),
        ("-fa,   --flash-attn        enable Flash Attention (default: disabled)\n-pps  is shared\n", (), ("-fa",)),
    ],
)
def test_a_command_is_written_as_the_build_at_hand_knows_it(
    tool_help: str, format_words: tuple[str, ...], flash: tuple[str, ...]
) -> None:
    place = Workplace(Path("/s"), Path("/s/o"), True, BUILD, files=Path("/models"), tool_help=tool_help)
    assert BATCHED.command(BATCHED.checked_params({"flash_attention": "on"}), place).argv == (
        *("llama-batched-bench", "-m", "/models/model.gguf", "-b", "2048", "-ub", "512", "-ctk", "f16", "-ctv", "f16"),
        *flash,
        *("-c", "40960", "-npp", "512", "-ntg", "128", "-npl", "1,1,4,16,64"),
        *format_words,
    )


@pytest.mark.parametrize(
    ("params", "case"),
    [
        ({}, "model-pp512-tg128"),
        ({"parallel": "1,8", "latency_limit_s": 0.1, "gpu": 1}, "model-pp512-tg128-pl1.8-limit0.1s-gpu1"),
    ],
)
def test_a_case_names_the_model_and_what_is_not_the_usual(params: dict[str, Any], case: str) -> None:
    assert BATCHED.case(BATCHED.checked_params(params)) == case


@pytest.mark.parametrize("parallel", ["", "0", "4,1", "1,1", "1;rm", "1,", "9" * 20, ",".join(map(str, range(1, 19)))])
def test_numbers_of_sequences_that_the_tool_could_not_run_are_refused(parallel: str) -> None:
    with pytest.raises(BadParameter):
        BATCHED.checked_params({"parallel": parallel})
