"""Damaged outputs of llama.cpp's programs, and text that none printed: parsed honestly or refused with one error."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.benchmarks import llama_samples as samples
from tests.benchmarks.llama_samples import BATCHED, BATCHED_RUNS, BENCH, BENCH_RUNS
from tests.benchmarks.placed import ENDED, assert_honest_or_unknown, each_altered

RUNS = st.sampled_from([*((BENCH, name) for name in BENCH_RUNS), *((BATCHED, name) for name in BATCHED_RUNS)])
JSON_LINES = [
    (each, name) for each, runs in ((BENCH, BENCH_RUNS), (BATCHED, BATCHED_RUNS)) for name in runs if "jsonl" in name
]
THOROUGH = settings(max_examples=100)


@THOROUGH
@given(RUNS, st.data(), ENDED)
def test_a_damaged_text_is_parsed_honestly_or_refused(run: Any, data: st.DataObject, ended: dict[str, Any]) -> None:
    text = samples.text(*run)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 500)))
    put = data.draw(st.one_of(st.just(""), st.just(text[start:end] * 2), st.text(max_size=20)))
    assert_honest_or_unknown(run[0], samples.raw(*run, stdout=text[:start] + put + text[end:], **ended))


@THOROUGH
@given(RUNS, st.floats(0, 1), ENDED)
def test_a_text_cut_anywhere_is_parsed_honestly_or_refused(run: Any, where: float, ended: dict[str, Any]) -> None:
    text = samples.text(*run)
    assert_honest_or_unknown(run[0], samples.raw(*run, stdout=text[: int(where * len(text))], **ended))


@pytest.mark.parametrize("run", JSON_LINES, ids=lambda run: run[1])
def test_a_result_with_a_wrong_value_is_parsed_honestly_or_refused(run: Any) -> None:
    lines = [json.loads(line) for line in samples.text(*run).splitlines() if line]
    for altered in each_altered(lines, lines):
        assert_honest_or_unknown(run[0], samples.raw(*run, stdout="\n".join(map(json.dumps, altered))))


@THOROUGH
@given(st.sampled_from([BENCH, BATCHED]), st.text(), st.text(), ENDED)
def test_any_text_is_parsed_honestly_or_refused(each: Any, stdout: str, stderr: str, ended: dict[str, Any]) -> None:
    assert_honest_or_unknown(each, samples.of(each, {}, stdout=stdout, stderr=stderr, **ended))
