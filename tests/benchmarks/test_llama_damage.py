"""Damaged outputs of llama.cpp's programs, and text that none printed: parsed honestly or refused with one error."""

import json
import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import UnknownOutput
from pipelines.records import Outcome
from tests.benchmarks import llama_samples as samples
from tests.benchmarks.llama_samples import BATCHED, BATCHED_RUNS, BENCH, BENCH_RUNS

RUNS = st.sampled_from([*((BENCH, name) for name in BENCH_RUNS), *((BATCHED, name) for name in BATCHED_RUNS)])
JSON_LINES = st.sampled_from(
    [(each, name) for each, runs in ((BENCH, BENCH_RUNS), (BATCHED, BATCHED_RUNS)) for name in runs if "jsonl" in name]
)
ENDED = st.fixed_dictionaries(
    {},
    optional={
        "exit_status": st.one_of(st.none(), st.integers(-1, 255)),
        "signal": st.one_of(st.none(), st.integers(1, 31)),
        "timed_out": st.booleans(),
    },
)
DAMAGE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}), st.just(2**70)
)
THOROUGH = settings(max_examples=100)


def _is_honest_or_unknown(each: Any, raw: Any) -> None:
    """Whatever is parsed is finite, above zero where a zero could only stand for nothing, and has a reason."""
    try:
        parsed = each.parse(raw)
    except UnknownOutput:
        return
    assert (parsed.outcome is Outcome.OK) == (not parsed.reason)
    for measurement in parsed.measurements:
        assert math.isfinite(measurement.value)
        assert measurement.value > 0 or measurement.metric == "throughput_spread"
        assert measurement.unit == each.metric(measurement.metric).unit
        assert all(measurement.labels.values())
    if parsed.outcome is Outcome.OK:
        assert each.required(each.params_of(raw.job)) <= {each.metric for each in parsed.measurements}


@THOROUGH
@given(RUNS, st.data(), ENDED)
def test_a_damaged_text_is_parsed_honestly_or_refused(run: Any, data: st.DataObject, ended: dict[str, Any]) -> None:
    text = samples.text(*run)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 500)))
    put = data.draw(st.one_of(st.just(""), st.just(text[start:end] * 2), st.text(max_size=20)))
    _is_honest_or_unknown(run[0], samples.raw(*run, stdout=text[:start] + put + text[end:], **ended))


@THOROUGH
@given(RUNS, st.floats(0, 1), ENDED)
def test_a_text_cut_anywhere_is_parsed_honestly_or_refused(run: Any, where: float, ended: dict[str, Any]) -> None:
    text = samples.text(*run)
    _is_honest_or_unknown(run[0], samples.raw(*run, stdout=text[: int(where * len(text))], **ended))


@THOROUGH
@given(JSON_LINES, st.data(), ENDED)
def test_a_result_with_a_wrong_value_is_parsed_honestly_or_refused(
    run: Any, data: st.DataObject, ended: dict[str, Any]
) -> None:
    lines = [json.loads(line) for line in samples.text(*run).splitlines() if line]
    changed = data.draw(st.sampled_from(lines))
    key = data.draw(st.sampled_from(sorted(changed)))
    if data.draw(st.booleans()):
        del changed[key]
    elif isinstance(changed[key], list) and data.draw(st.booleans()):
        changed[key][0] = data.draw(DAMAGE)
    else:
        changed[key] = data.draw(DAMAGE)
    _is_honest_or_unknown(run[0], samples.raw(*run, stdout="\n".join(map(json.dumps, lines)), **ended))


@THOROUGH
@given(st.sampled_from([BENCH, BATCHED]), st.text(), st.text(), ENDED)
def test_any_text_is_parsed_honestly_or_refused(each: Any, stdout: str, stderr: str, ended: dict[str, Any]) -> None:
    _is_honest_or_unknown(each, samples.of(each, {}, stdout=stdout, stderr=stderr, **ended))
