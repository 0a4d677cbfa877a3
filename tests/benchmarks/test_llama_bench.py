"""llama-bench: its parser on real documents, its command for builds of different years, and what it calls a failure."""

import json
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest

from pipelines import tools
from pipelines.benchmark import Workplace
from pipelines.errors import BadParameter, UnknownOutput
from pipelines.families import llama_tool
from pipelines.records import Outcome, Parsed, Series, Telemetry
from tests.benchmarks import llama_samples as samples
from tests.benchmarks.llama_samples import BENCH, BENCH_RUNS, BUILD

HELP = samples.text(BENCH, f"{BUILD}-help.txt")
OLDER_HELP = """usage: ./llama-bench [options]

  -o, --output <csv|json|jsonl|md|sql>      output format printed to stdout (default: md)
  -fa, --flash-attn <0|1>                   (default: 0)
  -mmp, --mmap <0|1>                        (default: 1)
"""
OLDEST_HELP = "usage: ./llama-bench [options]\n\n  -o, --output <csv|json|md|sql>      (default: md)\n"


def values(parsed: Parsed) -> dict[str, float]:
    return {each.metric: each.value for each in parsed.measurements}


def argv(tool_help: str = HELP, **params: Any) -> tuple[str, ...]:
    place = Workplace(Path("/s"), Path("/s/o"), True, BUILD, files=Path("/models"), tool_help=tool_help)
    return BENCH.command(BENCH.checked_params(params), place).argv


def follows(words: tuple[str, ...], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


@pytest.mark.parametrize("name", BENCH_RUNS)
def test_a_real_output_gives_exactly_the_golden_result(name: str) -> None:
    golden = Parsed.model_validate_json(samples.text(BENCH, f"{name.rpartition('.')[0]}.golden.json"))
    assert golden.outcome is Outcome.OK
    assert BENCH.parse(samples.raw(BENCH, name)) == golden


@pytest.mark.parametrize("name", BENCH_RUNS)
def test_every_value_lies_in_its_honest_range_in_its_metrics_unit(name: str) -> None:
    for each in BENCH.parse(samples.raw(BENCH, name)).measurements:
        metric = BENCH.metric(each.metric)
        assert metric.low <= each.value <= metric.high
        assert each.unit == metric.unit


def test_a_rate_is_the_median_of_the_durations_and_not_of_the_six_digits_that_are_printed() -> None:
    document = json.loads(samples.text(BENCH, "5163-cuda.json"))[1]
    document["samples_ts"], document["avg_ts"] = [1.0], 1.0
    got = values(BENCH.parse(samples.raw(BENCH, "5163-cuda.json", stdout=json.dumps(document))))
    assert got["decode_throughput"] == pytest.approx(128e9 / median(document["samples_ns"]))
    assert got["inter_token_latency"] == pytest.approx(1 / got["decode_throughput"])


def test_what_the_tool_prints_as_its_mean_is_near_the_median() -> None:
    document = json.loads(samples.text(BENCH, "5163-cuda.json"))[1]
    got = values(BENCH.parse(samples.raw(BENCH, "5163-cuda.json")))
    assert fmean(128e9 / sample for sample in document["samples_ns"]) == pytest.approx(document["avg_ts"])
    assert got["decode_throughput"] == pytest.approx(document["avg_ts"], rel=0.01)


def test_the_time_to_first_token_is_that_of_a_prompt_and_one_token() -> None:
    name = f"{BUILD}-first_token.jsonl"
    durations = json.loads(samples.text(BENCH, name))["samples_ns"]
    assert values(BENCH.parse(samples.raw(BENCH, name)))["time_to_first_token"] == median(durations) / 10**9
    assert "time_to_first_token" not in values(BENCH.parse(samples.raw(BENCH, f"{BUILD}-mixed.jsonl")))


def sensor(source: str, watts: float, device: str) -> Series:
    """The counter of a device that takes the same power for ten seconds, read once a second."""
    seconds = tuple(map(float, range(11)))
    used = tuple(watts * second for second in seconds)
    summary = {"count": 11, "minimum": 0.0, "mean": watts * 5, "maximum": watts * 10}
    labels = {"device": device}
    return Series(metric="energy", unit="J", source=source, labels=labels, seconds=seconds, samples=used, **summary)


def with_energy(**fields: Any) -> Parsed:
    given = Telemetry(
        series=(sensor("nvml", 300.0, "GPU-1"), sensor("nvml", 100.0, "GPU-2"), sensor("rapl", 50.0, "p"))
    )
    return BENCH.parse(samples.raw(BENCH, "5163-cuda.json", **{"telemetry": given, "duration_s": 9.5, **fields}))


def test_the_energy_of_a_token_is_what_all_gpus_took_while_the_repetitions_ran() -> None:
    parsed = with_energy()
    measured_s = sum(json.loads(samples.text(BENCH, "5163-cuda.json"))[1]["samples_ns"]) / 10**9
    got = {(each.metric, each.labels.get("energy_of")): each.value for each in parsed.measurements}
    assert got["energy_per_token", "gpu"] == pytest.approx(400.0 * measured_s / (5 * 128))
    assert got["energy_per_token", "cpu"] == pytest.approx(50.0 * measured_s / (5 * 128))
    assert got["tokens_per_joule", "gpu"] == pytest.approx(1 / got["energy_per_token", "gpu"])
    for each in parsed.measurements:
        assert each.unit == BENCH.metric(each.metric).unit


@pytest.mark.parametrize(
    "fields", [{"telemetry": None}, {"telemetry": Telemetry()}, {"duration_s": 60.0}, {"timed_out": True}]
)
def test_an_energy_that_no_sensor_covers_is_not_there(fields: dict[str, Any]) -> None:
    assert not {"energy_per_token", "tokens_per_joule"} & set(values(with_energy(**fields)))


def test_the_energy_of_a_moment_is_not_there() -> None:
    name = f"{BUILD}-prefill.jsonl"
    given = Telemetry(series=(sensor("nvml", 300.0, "GPU-1"),))
    assert "energy_per_token" not in values(BENCH.parse(samples.raw(BENCH, name, telemetry=given, duration_s=9.5)))


def test_the_test_that_was_asked_is_found_among_others() -> None:
    both = f"{BUILD}-two_tests.json"
    asked: dict[str, Any] = {"model": "tiny-f16.gguf", "repetitions": 3}
    prefill = values(BENCH.parse(samples.raw(BENCH, both, {**asked, "n_prompt": 64})))
    decode = values(BENCH.parse(samples.raw(BENCH, both, {**asked, "test": "decode", "n_gen": 16})))
    assert ("prefill_throughput" in prefill, "decode_throughput" in decode) == (True, True)
    with pytest.raises(UnknownOutput):
        BENCH.parse(samples.raw(BENCH, both, {**asked, "n_prompt": 65}))


def test_a_key_that_a_later_build_brings_or_leaves_out_is_no_error() -> None:
    document = json.loads(samples.text(BENCH, f"{BUILD}-prefill.jsonl"))
    whole = BENCH.parse(samples.raw(BENCH, f"{BUILD}-prefill.jsonl"))
    for gone in ("load_mode", "flash_attn", "backends", "gpu_info", "n_depth", "build_number"):
        del document[gone]
    parsed = BENCH.parse(samples.raw(BENCH, f"{BUILD}-prefill.jsonl", stdout=json.dumps({**document, "new": [1]})))
    assert values(parsed) == values(whole)
    assert not {"load_mode", "flash_attention", "backends"} & set(parsed.measurements[0].labels)


def test_fewer_repetitions_than_asked_are_truncated() -> None:
    parsed = BENCH.parse(samples.raw(BENCH, f"{BUILD}-prefill.jsonl", {"n_prompt": 64, "repetitions": 5}))
    assert (parsed.outcome, parsed.reason) == (Outcome.TRUNCATED, "3 of 5 repetitions were done")


@pytest.mark.parametrize("printed", ["", "[\n", '[\n  {\n    "build_commit": "8cf4'])
def test_a_job_that_was_ended_before_its_result_is_truncated(printed: str) -> None:
    raw = samples.raw(BENCH, "5163-cuda.json", stdout=printed, exit_status=None, signal=15, timed_out=True)
    reason = "llama-bench was ended after 60 s, the job's timeout, before its test was over"
    assert BENCH.parse(raw) == Parsed(outcome=Outcome.TRUNCATED, reason=reason)


def test_a_result_whose_array_was_never_closed_is_whole() -> None:
    cut = samples.text(BENCH, "5163-cuda.json").rstrip().removesuffix("]")
    parsed = BENCH.parse(samples.raw(BENCH, "5163-cuda.json", stdout=cut, exit_status=None, signal=9))
    assert (parsed.outcome, parsed.reason) == (Outcome.TRUNCATED, "llama-bench was ended by signal 9")
    assert values(parsed) == values(BENCH.parse(samples.raw(BENCH, "5163-cuda.json")))


@pytest.mark.parametrize("printed", ["", "[", "[\n"])
@pytest.mark.parametrize(
    ("name", "outcome", "said"),
    [
        ("cut_model", Outcome.TOOL_FAILED, "data is not within the file bounds, model is corrupted or incomplete"),
        ("no_memory", Outcome.CONFIG, "failed to create context with model 'tiny-f16.gguf'"),
        ("quantized_v", Outcome.CONFIG, "quantized V cache requires flash_attn to be enabled"),
        ("option", Outcome.CONFIG, "invalid parameter for argument: -mmp"),
        ("device", Outcome.CONFIG, "invalid device: CUDA0"),
    ],
)
def test_a_failure_has_the_reason_that_the_tool_gave(name: str, outcome: Outcome, said: str, printed: str) -> None:
    parsed = BENCH.parse(samples.raw(BENCH, f"{BUILD}-{name}.err", stdout=printed, exit_status=1))
    assert (parsed.outcome, parsed.measurements) == (outcome, ())
    assert parsed.reason.startswith("llama-bench ended with exit status 1: ")
    assert said in parsed.reason


def test_a_crash_is_a_failure_of_the_tool_and_no_interruption() -> None:
    said = "CUDA error: an illegal memory access was encountered\n  current device: 0, in function ggml_cuda_compute\n"
    parsed = BENCH.parse(samples.of(BENCH, {}, stderr=said, exit_status=None, signal=6))
    reason = "llama-bench crashed with signal 6: CUDA error: an illegal memory access was encountered"
    assert parsed == Parsed(outcome=Outcome.TOOL_FAILED, reason=reason)


def test_a_gpu_without_enough_memory_says_nothing_about_the_gpu() -> None:
    raw = samples.of(BENCH, {}, stderr="CUDA error: out of memory\n", exit_status=None, signal=6)
    assert BENCH.parse(raw).outcome is Outcome.CONFIG


@pytest.mark.parametrize(
    ("backends", "outcome"),
    [("CPU", Outcome.CONFIG), ("CUDA", Outcome.TOOL_FAILED), ("CUDA,BLAS", Outcome.TOOL_FAILED)],
)
@pytest.mark.parametrize("asked", [{"n_gpu_layers": 99}, {"gpu": 0}])
def test_a_run_without_the_gpu_that_was_asked_for_is_no_measurement(
    asked: dict[str, Any], backends: str, outcome: Outcome
) -> None:
    name = f"{BUILD}-prefill.jsonl"
    document = {**json.loads(samples.text(BENCH, name)), "backends": backends}
    raw = samples.raw(BENCH, name, {**BENCH_RUNS[name], **asked}, stdout=json.dumps(document))
    reason = f"a GPU was asked for, and llama-bench saw none; it was built for {backends}"
    assert BENCH.parse(raw) == Parsed(outcome=outcome, reason=reason)
    with_gpu = json.dumps({**document, "gpu_info": "NVIDIA H200"})
    assert BENCH.parse(raw.model_copy(update={"stdout": with_gpu})).outcome is Outcome.OK


@pytest.mark.parametrize("printed", ["", "[\n"])
def test_a_model_that_could_not_be_loaded_is_a_failure_although_the_exit_status_is_0(printed: str) -> None:
    parsed = BENCH.parse(samples.raw(BENCH, f"{BUILD}-cut_model.err", stdout=printed))
    assert parsed.outcome is Outcome.TOOL_FAILED
    assert parsed.reason.endswith("llama_bench: error: failed to load model 'cut.gguf'")


def test_nothing_at_all_with_exit_status_0_is_no_result() -> None:
    with pytest.raises(UnknownOutput):
        BENCH.parse(samples.of(BENCH, {}, stdout="[\n"))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, ("-p", "512", "-n", "0", "-r", "5", "-o", "jsonl")),
        ({"test": "decode", "n_gen": 32}, ("-p", "0", "-n", "32", "-r", "5", "-o", "jsonl")),
        ({"test": "mixed", "n_gen": 1}, ("-p", "0", "-n", "0", "-pg", "512,1", "-r", "5", "-o", "jsonl")),
        ({"depth": 4096, "repetitions": 2}, ("-p", "512", "-n", "0", "-d", "4096", "-r", "2", "-o", "jsonl")),
    ],
)
def test_a_command_does_one_test(params: dict[str, Any], words: tuple[str, ...]) -> None:
    given = argv(**params)
    assert given[: given.index("-p")] == (
        *("llama-bench", "-m", "/models/model.gguf", "-b", "2048", "-ub", "512", "-ctk", "f16", "-ctv", "f16"),
    )
    assert given[given.index("-p") :] == words


@pytest.mark.parametrize(
    ("tool_help", "expected"),
    [
        (HELP, {"-fa": "on", "-lm": "none", "-mmp": None, "-o": "jsonl"}),
        ("", {"-fa": "on", "-lm": "none", "-mmp": None, "-o": "jsonl"}),
        (OLDER_HELP, {"-fa": "1", "-lm": None, "-mmp": "0", "-o": "jsonl"}),
        (OLDEST_HELP, {"-fa": "on", "-lm": "none", "-mmp": None, "-o": "json"}),
    ],
)
def test_an_option_is_written_as_the_build_at_hand_knows_it(tool_help: str, expected: dict[str, str | None]) -> None:
    words = argv(tool_help, flash_attention="on", load_mode="none")
    assert {option: follows(words, option) for option in expected} == expected


def test_what_is_left_to_the_tool_is_not_written() -> None:
    assert not {"-fa", "-lm", "-mmp", "-t", "-ngl", "-sm", "-d"} & set(argv())
    chosen = argv(threads=8, n_gpu_layers=0, gpu=3)
    assert [follows(chosen, option) for option in ("-t", "-ngl", "-sm", "-mg")] == ["8", "0", "none", "3"]


def test_a_model_in_parts_is_all_of_them() -> None:
    params = BENCH.checked_params({"model": "big-00001-of-00003.gguf"})
    assert BENCH.files(params) == tuple(f"big-0000{part}-of-00003.gguf" for part in (1, 2, 3))
    assert BENCH.files(BENCH.params()) == ("model.gguf",)


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        (samples.text(BENCH, f"{BUILD}-version.txt"), BUILD),
        ("version: 5163 (8cf427ff)\nbuilt with cc\n", "5163"),
        (f"error: invalid parameter for argument: --version\n{OLDER_HELP}", "unnumbered"),
        ("bash: llama-bench: cannot execute", None),
    ],
)
def test_a_build_names_its_version_or_its_options(printed: str, version: str | None) -> None:
    assert llama_tool.version(printed) == version
    assert tools.judge(BENCH, printed).version == version


@pytest.mark.parametrize(
    ("params", "case"),
    [
        ({}, "model-pp512"),
        ({"test": "decode", "n_prompt": 9}, "model-tg128"),
        ({"test": "mixed", "n_gen": 1, "depth": 4096}, "model-pg512.1-d4096"),
        (
            {"batch": 256, "ubatch": 64, "flash_attention": "off", "type_k": "q8_0"},
            "model-pp512-b256-ub64-fa_off-k_q8_0",
        ),
        ({"n_gpu_layers": 0, "gpu": 0, "threads": 4}, "model-pp512-t4-ngl0-gpu0"),
    ],
)
def test_a_case_names_the_model_and_what_is_not_the_usual(params: dict[str, Any], case: str) -> None:
    assert BENCH.case(BENCH.checked_params(params)) == case


def test_long_names_of_different_loads_stay_different_names() -> None:
    model = f"{'x' * 60}.gguf"
    cases = {BENCH.case(BENCH.checked_params({"model": model, "threads": threads})) for threads in (1, 2)}
    assert len(cases) == 2
    assert all(len(case) <= 63 for case in cases)


@pytest.mark.parametrize(
    "params",
    [
        {"model": "../model.gguf"},
        {"model": "/models/model.gguf"},
        {"model": "-x.gguf"},
        {"model": "model.bin"},
        {"batch": 64, "ubatch": 128},
        {"type_v": "q8_0", "flash_attention": "off"},
        {"test": "decode", "n_gen": 0},
        {"repetitions": 1000, "n_prompt": 2**22},
    ],
)
def test_a_parameter_that_llama_bench_could_not_run_with_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(BadParameter):
        BENCH.checked_params(params)
