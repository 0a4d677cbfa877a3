"""Damaged documents of the probes: parsed honestly or refused with the one documented error, whatever is in them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import benchmark
from pipelines.errors import UnknownOutput
from pipelines.records import Outcome
from tests import make
from tests.benchmarks.placed import ENDED, assert_honest_or_unknown, each_altered

SAMPLES = Path(__file__).parents[1] / "samples"
GIVEN: dict[str, dict[str, Any]] = {"serving_latency": {"mix": "short", "steps": "1,4"}}
NAMES = ("checkpoint", "small_files", "storage_stage", "serving_latency")
THOROUGH = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _texts(name: str) -> list[str]:
    paths = sorted((SAMPLES / name).glob("*.json"))
    return [path.read_text() for path in paths if ".golden" not in path.name]


def _is_honest_or_unknown(name: str, text: str, ended: dict[str, Any]) -> None:
    each = benchmark.get(name)
    params = each.checked_params(GIVEN.get(name, {}))
    job = make.job(benchmark=name, params=params.model_dump(mode="json", exclude_none=True))
    assert_honest_or_unknown(each, make.raw(job, tool=each.tool, stdout=text, **ended))


@pytest.mark.parametrize("name", NAMES)
def test_a_document_with_a_wrong_value_is_parsed_honestly_or_refused(name: str) -> None:
    for document in map(json.loads, _texts(name)):
        for altered in each_altered(document, document):
            _is_honest_or_unknown(name, json.dumps(altered), {})


@pytest.mark.parametrize("name", NAMES)
@THOROUGH
@given(st.data(), st.text(max_size=20), ENDED)
def test_a_text_that_is_cut_or_altered_is_parsed_honestly_or_refused(
    name: str, data: st.DataObject, put: str, ended: dict[str, Any]
) -> None:
    text = data.draw(st.sampled_from(_texts(name)))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    _is_honest_or_unknown(name, data.draw(st.sampled_from([text[:start] + put + text[end:], text[:start]])), ended)


@pytest.mark.parametrize("name", NAMES)
@given(st.text(), st.text())
def test_any_text_that_ended_well_is_refused(name: str, stdout: str, stderr: str) -> None:
    each = benchmark.get(name)
    with pytest.raises(UnknownOutput):
        each.parse(make.raw(make.job(benchmark=name), tool=each.tool, stdout=stdout, stderr=stderr))


@pytest.mark.parametrize("name", NAMES)
def test_the_document_of_another_probe_is_refused(name: str) -> None:
    other = NAMES[NAMES.index(name) - 1]
    each = benchmark.get(name)
    with pytest.raises(UnknownOutput):
        each.parse(make.raw(make.job(benchmark=name), tool=each.tool, stdout=_texts(other)[0]))


@pytest.mark.parametrize(
    ("status", "outcome"), [(1, Outcome.TOOL_FAILED), (69, Outcome.NOT_MEASURED), (78, Outcome.CONFIG)]
)
@pytest.mark.parametrize("name", NAMES)
def test_a_probe_that_failed_says_why_with_its_last_line(name: str, status: int, outcome: Outcome) -> None:
    each = benchmark.get(name)
    raw = make.raw(make.job(benchmark=name), tool=each.tool, exit_status=status, stderr="warning\nit is so\n")
    parsed = each.parse(raw)
    assert (parsed.outcome, parsed.reason) == (outcome, f"the probe ended with status {status}: it is so")
