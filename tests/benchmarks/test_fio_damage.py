"""Damaged outputs, and text that fio never printed: parsed honestly or refused with the one documented error."""

import math
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.errors import UnknownOutput
from pipelines.records import Outcome
from tests.benchmarks import fio_samples as samples
from tests.benchmarks.fio_samples import FIO

PARSED = st.sampled_from(["rand_read", "mixed", "checkpoint", "numjobs2", "sigterm", "enospc", "status_interval"])
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
THOROUGH = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _is_honest_or_unknown(raw: Any) -> None:
    """Whatever is parsed is finite, above zero where a zero could only stand for nothing, and has a reason."""
    try:
        parsed = FIO.parse(raw)
    except UnknownOutput:
        return
    assert (parsed.outcome is Outcome.OK) == (not parsed.reason)
    for metric, value in samples.values(parsed).items():
        assert math.isfinite(value)
        assert value > 0 or metric.startswith("cpu_")
        FIO.metric(metric)
    if parsed.outcome is Outcome.OK:
        assert FIO.required(FIO.params_of(raw.job)) <= set(samples.values(parsed))


@THOROUGH
@given(PARSED, st.data(), ENDED)
def test_a_damaged_text_is_parsed_honestly_or_refused(name: str, data: st.DataObject, ended: dict[str, Any]) -> None:
    text = samples.raw(name).output or ""
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 2000)))
    put = data.draw(st.one_of(st.just(""), st.just(text[start:end] * 2), st.text(max_size=20)))
    _is_honest_or_unknown(samples.raw(name, output=text[:start] + put + text[end:], **ended))


@THOROUGH
@given(PARSED, st.floats(0, 1), ENDED)
def test_a_text_cut_anywhere_is_parsed_honestly_or_refused(name: str, where: float, ended: dict[str, Any]) -> None:
    text = samples.raw(name).output or ""
    _is_honest_or_unknown(samples.raw(name, output=text[: int(where * len(text))], **ended))


@THOROUGH
@given(st.sampled_from(["rand_read", "mixed", "checkpoint", "numjobs2"]), st.data(), ENDED)
def test_a_document_with_a_wrong_value_is_parsed_honestly_or_refused(
    name: str, data: st.DataObject, ended: dict[str, Any]
) -> None:
    document = samples.document(name)
    at: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], dict | list) or not at[key] or data.draw(st.integers(0, 9)) == 0:
            break
        at = at[key]
    if isinstance(at, dict) and data.draw(st.booleans()):
        del at[key]
    else:
        at[key] = data.draw(DAMAGE)
    _is_honest_or_unknown(samples.raw(name, output=samples.printed(document), **ended))


@THOROUGH
@given(st.text(), st.text(), ENDED)
def test_any_text_is_parsed_honestly_or_refused(output: str, stdout: str, ended: dict[str, Any]) -> None:
    _is_honest_or_unknown(samples.of({}, output=output, stdout=stdout, **ended))
