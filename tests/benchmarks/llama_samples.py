"""Real outputs of llama-bench and llama-batched-bench, each with the parameters of the run that gave it."""

from pathlib import Path
from typing import Any

from pipelines import benchmark
from pipelines.records import RawOutput
from tests import make

UNPACKED = Path(__file__).parents[2] / ".venv/llama/bin"  # by infra/bootstrap.sh
SAMPLES = Path(__file__).parents[1] / "samples"
BUILD = "0.7.0-b11669"
BENCH = benchmark.get("llama_bench")
BATCHED = benchmark.get("llama_batched")

BENCH_RUNS: dict[str, dict[str, Any]] = {
    f"{BUILD}-prefill.jsonl": {"model": "tiny-q4_0.gguf", "n_prompt": 64, "repetitions": 3},
    f"{BUILD}-decode.jsonl": {
        "model": "tiny-q4_0.gguf",
        "test": "decode",
        "n_gen": 16,
        "repetitions": 3,
        "threads": 1,
        "flash_attention": "on",
        "load_mode": "mmap",
    },
    f"{BUILD}-mixed.jsonl": {
        "model": "tiny-q8_0.gguf",
        "test": "mixed",
        "n_prompt": 64,
        "n_gen": 16,
        "depth": 32,
        "repetitions": 3,
    },
    f"{BUILD}-first_token.jsonl": {
        "model": "tiny-f16.gguf",
        "test": "mixed",
        "n_prompt": 64,
        "n_gen": 1,
        "repetitions": 3,
    },
    "1275-cuda.json": {"model": "ggml-model-q4_0.gguf", "batch": 512},
    "5163-cuda.json": {"model": "Qwen2.5-7B-Instruct-Q4_K_M.gguf", "test": "decode"},
}
_ROWS: dict[str, Any] = {"model": "tiny-q4_0.gguf", "n_prompt": 32, "n_gen": 16, "latency_limit_s": 0.001}
BATCHED_RUNS: dict[str, dict[str, Any]] = {f"{BUILD}-rows.jsonl": _ROWS, f"{BUILD}-table.txt": _ROWS}


def text(each: benchmark.Benchmark, name: str) -> str:
    return (SAMPLES / each.name / name).read_text()


def raw(each: benchmark.Benchmark, name: str, params: dict[str, Any] | None = None, **fields: Any) -> RawOutput:
    """The raw output of the run that gave a sample; `params` and `fields` replace some of it."""
    given = (BENCH_RUNS if each is BENCH else BATCHED_RUNS).get(name, {}) if params is None else params
    printed = {"stderr" if name.endswith(".err") else "stdout": text(each, name)}
    return of(each, given, **{**printed, **fields})


def of(each: benchmark.Benchmark, given: dict[str, Any], **fields: Any) -> RawOutput:
    """A raw output of a job with these parameters."""
    params = each.checked_params(given)
    complete = params.model_dump(mode="json", exclude_none=True)
    job = make.job(benchmark=each.name, case=each.case(params), params=complete)
    return make.raw(job, tool=each.tool, **fields)
