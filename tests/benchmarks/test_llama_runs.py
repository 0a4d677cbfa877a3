"""The real llama-bench and llama-batched-bench on models of random weights, run as a node runs them."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines import node, plan, suites, tools
from pipelines.benchmark import Benchmark
from pipelines.records import Outcome, Parsed, RawOutput, Scalar, SuiteEntry
from pipelines.settings import Settings
from pipelines.storage import Store
from tests import make, models
from tests.benchmarks.llama_samples import BATCHED, BENCH, UNPACKED
from tests.datasets import trees

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TINY: dict[str, Scalar] = {"model": "tiny-q4_0.gguf", "n_prompt": 32, "n_gen": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_all(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}{os.pathsep}{UNPACKED}")
    assert shutil.which("llama-batched-bench"), "run infra/bootstrap.sh dev llama"


def run(settings: Settings, folder: Path, each: Benchmark, params: dict[str, Scalar], **fields: Any) -> Parsed:
    machine = make.node(files=str(folder))
    entry = SuiteEntry(benchmark=each.name, params=params, **{"timeout_s": 300.0, **fields})
    (job,) = plan.jobs_of_entry(make.RUN_ID, machine.name, entry)
    return each.parse(node.run_once(settings, machine, job, say=lambda _: None))


@pytest.mark.parametrize("each", [BENCH, BATCHED], ids=lambda each: each.name)
def test_the_build_at_hand_names_its_version_and_its_options(each: Benchmark) -> None:
    found = tools.find(each)
    assert found.refusal is None
    assert found.version
    assert "--flash-attn" in found.help


@pytest.mark.parametrize(
    "params",
    [
        {"test": "prefill", "load_mode": "none", "type_k": "q8_0"},
        {"test": "decode", "threads": 1, "depth": 16, "flash_attention": "off"},
        {"test": "mixed", "n_gen": 1, "flash_attention": "on", "type_v": "q8_0", "n_gpu_layers": 0, "batch": 64},
    ],
    ids=lambda params: str(params["test"]),
)
def test_a_test_of_llama_bench_gives_what_it_must(settings: Settings, folder: Path, params: dict[str, Scalar]) -> None:
    asked: dict[str, Scalar] = {**TINY, "repetitions": 2, "ubatch": 32, **params}
    parsed = run(settings, folder, BENCH, asked)
    assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
    assert {each.metric for each in parsed.measurements} >= BENCH.required(BENCH.checked_params(asked))
    (labels,) = {tuple(sorted(each.labels.items())) for each in parsed.measurements}
    told = dict(labels)
    assert (told["model"], told["backends"]) == ("tiny-q4_0.gguf", "CPU")
    for name in ("depth", "threads", "flash_attention", "type_k", "type_v", "batch", "ubatch"):
        assert told[name] == str(params.get(name, told[name]))


def test_a_table_of_parallel_sequences_has_every_row_and_a_best_point(settings: Settings, folder: Path) -> None:
    parsed = run(settings, folder, BATCHED, {**TINY, "latency_limit_s": 60})
    assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
    decoded = {
        each.labels["parallel"]: each.value for each in parsed.measurements if each.metric == "decode_throughput"
    }
    assert set(decoded) == {"1", "4", "16", "64"}
    got = {each.metric: each.value for each in parsed.measurements}
    assert got["best_decode_throughput"] == decoded[f"{got['best_parallel']:.0f}"] == max(decoded.values())


def test_the_sweep_measures_the_quantizations_of_a_published_model_side_by_side(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for quantization in models.QUANTIZATIONS:
        models.write(source / f"model-{quantization}.gguf", quantization)
    version = trees.published(settings, trees.request(source, trees.BLOB, dataset="quantized")).reference
    sweep = suites.load(ROOT / "infra/suites", "quantization")
    entries = tuple(entry.model_copy(update={"dataset": "quantized"}) for entry in sweep.entries)
    made = plan.make(
        sweep.model_copy(update={"entries": entries}),
        (make.node(free_floor_bytes=0),),
        run_id=make.RUN_ID,
        created_at=make.AT,
        trigger="cli",
        overrides={"n_prompt": 32, "repetitions": 1},
        repeats=1,
        datasets={"quantized": version},
    )
    stored = node.run_jobs(settings, store, made, "gpu-01", 1, lambda _: None)
    got: dict[str, dict[str, float]] = {}
    for raw in (RawOutput.model_validate_json(store.read(key)) for key in stored):
        parsed = BENCH.parse(raw)
        assert (parsed.outcome, raw.facts["dataset"]) == (Outcome.OK, version)
        for each in parsed.measurements:
            got.setdefault(each.labels["model"], {})[each.metric] = each.value
    assert list(got) == [f"model-{quantization}.gguf" for quantization in models.QUANTIZATIONS]
    assert all({"prefill_throughput", "decode_throughput", "time_to_first_token"} <= set(each) for each in got.values())
    f16, q8_0, q4_0 = (each["model_size"] for each in got.values())
    assert f16 > 1.8 * q8_0 > 3 * q4_0


@pytest.mark.parametrize("each", [BENCH, BATCHED], ids=lambda each: each.name)
def test_a_model_that_is_cut_off_is_a_failure_with_its_reason(
    settings: Settings, tmp_path: Path, each: Benchmark
) -> None:
    whole = models.write(tmp_path / "whole.gguf", "f16").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    parsed = run(settings, tmp_path, each, {"model": "cut.gguf"})
    assert (parsed.outcome, parsed.measurements) == (Outcome.TOOL_FAILED, ())
    assert "load" in parsed.reason


def test_a_model_that_is_not_there_is_no_failure_of_the_tool(settings: Settings, folder: Path) -> None:
    parsed = run(settings, folder, BENCH, {"model": "other.gguf"})
    assert (parsed.outcome, parsed.reason) == (Outcome.CONFIG, f"it reads other.gguf, and {folder} has none")


@pytest.mark.parametrize("each", [BENCH, BATCHED], ids=lambda each: each.name)
def test_a_build_for_the_processor_alone_does_not_pass_for_a_gpu(
    settings: Settings, folder: Path, each: Benchmark
) -> None:
    parsed = run(settings, folder, each, {**TINY, "n_gpu_layers": 99})
    assert (parsed.outcome, parsed.measurements) == (Outcome.CONFIG, ())
    assert parsed.reason.startswith("a GPU was asked for, and ")


def test_a_job_that_is_ended_in_its_test_is_truncated(settings: Settings, folder: Path) -> None:
    parsed = run(settings, folder, BENCH, {**TINY, "n_prompt": 2**16, "repetitions": 1000}, timeout_s=0.5)
    assert parsed.outcome is Outcome.TRUNCATED
    assert parsed.reason == "llama-bench was ended after 0.5 s, the job's timeout, before its test was over"
