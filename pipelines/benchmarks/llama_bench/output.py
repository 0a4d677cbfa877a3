"""What a raw output of llama-bench says: an outcome, and measurements in base units."""

from collections.abc import Iterator
from math import fsum
from pathlib import PurePosixPath
from statistics import fmean, median
from typing import Literal

from pipelines import energy
from pipelines.benchmarks.llama_bench.params import Params
from pipelines.errors import UnknownOutput
from pipelines.families import asked, llama_results, llama_tool
from pipelines.families.llama_results import Result
from pipelines.records import Labels, Measurement, Outcome, Parsed, RawOutput, Unit

_NS_PER_S = 10**9
_LABEL_LENGTH = 200
_ENERGY_AFTER_S = 2.0  # sensors are read once a second; of a shorter time, what they say is chance
_LEAST_J = 0.001  # the finest counter has this step
_ENERGY_OF: tuple[Literal["gpu", "cpu"], ...] = ("gpu", "cpu")
_THROUGHPUT = {"prefill": "prefill_throughput", "decode": "decode_throughput", "mixed": "mixed_throughput"}
_FLASH_ATTENTION = {-1: "auto", 0: "off", 1: "on"}


def required(params: Params) -> frozenset[str]:
    latency = {"decode": {"inter_token_latency"}}.get(params.test, set())
    first = {"time_to_first_token"} if params.gives_first_token else set()
    return frozenset({_THROUGHPUT[params.test], "throughput_spread", "model_size"} | latency | first)


def parse(raw: RawOutput) -> Parsed:
    """Judge and read one attempt.

    Raises:
        UnknownOutput: llama-bench ended well and printed something else than the result of the test.
    """
    params = asked.params(raw, Params, "llama-bench")
    if isinstance(params, Parsed):
        return params
    result = _result(raw, params)
    interrupted = llama_tool.interrupted(raw, "llama-bench")
    if not interrupted and (failed := llama_tool.failure(raw, "llama-bench")):
        return Parsed(outcome=failed[0], reason=failed[1])
    if result is None:
        if not interrupted:
            raise UnknownOutput("llama-bench", f"a result of the test {params.test} that was asked", raw.stdout)
        return Parsed(outcome=Outcome.TRUNCATED, reason=f"{interrupted}, before its test was over")
    if params.wants_gpu and result.gpu_info == "":
        outcome = Outcome.CONFIG if result.backends == "CPU" else Outcome.TOOL_FAILED
        reason = f"a GPU was asked for, and llama-bench saw none; it was built for {result.backends}"
        return Parsed(outcome=outcome, reason=reason)
    measurements = tuple(_measurements(raw, params, result))
    done, wanted = len(result.samples_ns), params.repetitions
    reason = interrupted or (f"{done} of {wanted} repetitions were done" if done < wanted else "")
    return Parsed(outcome=Outcome.TRUNCATED if reason else Outcome.OK, reason=reason, measurements=measurements)


def _result(raw: RawOutput, params: Params) -> Result | None:
    """The one test that was asked; None where nothing whole was printed of it."""
    test = (params.n_prompt or 0, params.n_gen or 0, params.depth)
    found = [each for each in llama_results.results(raw.stdout) if (each.n_prompt, each.n_gen, each.n_depth) == test]
    if len(found) != 1 or abs(fmean(found[0].samples_ns) - found[0].avg_ns) > 1 + found[0].avg_ns / 10**9:
        return None
    return found[0]


def _measurements(raw: RawOutput, params: Params, result: Result) -> Iterator[Measurement]:
    labels = _labels(result)
    seconds = [sample / _NS_PER_S for sample in result.samples_ns]
    yield _value(_THROUGHPUT[params.test], params.tokens / median(seconds), "tok/s", labels)
    yield _value("throughput_spread", 1 - min(seconds) / max(seconds), "ratio", labels)
    if params.test == "decode":
        yield _value("inter_token_latency", median(seconds) / params.tokens, "s", labels)
    if params.gives_first_token:
        yield _value("time_to_first_token", median(seconds), "s", labels)
    yield _value("model_size", result.model_size, "B", labels)
    yield from _energy(raw, fsum(seconds), params.tokens * len(seconds), labels)


def _energy(raw: RawOutput, measured_s: float, tokens: int, labels: Labels) -> Iterator[Measurement]:
    """What a token took of all GPUs of the node, and of all its processors, in the time of the repetitions.

    They are the last that llama-bench does: they end as the process does, but for freeing the model. With a depth the
    KV cache is filled again between them, and there is no such time.
    """
    ended_by_itself = raw.signal is None and not raw.timed_out
    if measured_s < _ENERGY_AFTER_S or labels["depth"] != "0" or not ended_by_itself:
        return
    for of in _ENERGY_OF:
        joules = energy.taken(raw.telemetry, raw.duration_s - measured_s, raw.duration_s, of)
        if joules is not None and joules > _LEAST_J:
            yield _value("energy_per_token", joules / tokens, "J", {**labels, "energy_of": of})
            yield _value("tokens_per_joule", tokens / joules, "tok/J", {**labels, "energy_of": of})


def _labels(result: Result) -> Labels:
    """What the document says of how it was run; where the build says nothing of it, there is no label."""
    mapped = {True: "mmap", False: "none", None: None}[result.use_mmap]
    given = {
        "model": PurePosixPath(result.model_filename).name,
        "model_type": result.model_type,
        "parameters": result.model_n_params,
        "n_prompt": result.n_prompt,
        "n_gen": result.n_gen,
        "depth": result.n_depth,
        "batch": result.n_batch,
        "ubatch": result.n_ubatch,
        "threads": result.n_threads,
        "n_gpu_layers": "auto" if result.n_gpu_layers < 0 else result.n_gpu_layers,
        "flash_attention": None if result.flash_attn is None else _FLASH_ATTENTION.get(int(result.flash_attn)),
        "type_k": result.type_k,
        "type_v": result.type_v,
        "load_mode": result.load_mode or mapped,
        "backends": result.backends or ("CUDA" if result.cuda else None),
        "gpu": result.gpu_info,
    }
    return {name: str(value)[:_LABEL_LENGTH] for name, value in given.items() if value not in {None, ""}}


def _value(metric: str, value: float, unit: Unit, labels: Labels) -> Measurement:
    return Measurement(metric=metric, value=value, unit=unit, labels=labels)
