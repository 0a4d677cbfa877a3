"""Damaged outputs, and text that fio never printed: parsed honestly or refused with the one documented error."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.benchmarks import fio_samples as samples
from tests.benchmarks.fio_samples import FIO
from tests.benchmarks.placed import ENDED, assert_honest_or_unknown, each_altered

PARSED = st.sampled_from(["rand_read", "mixed", "checkpoint", "numjobs2", "sigterm", "enospc", "status_interval"])
THOROUGH = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@THOROUGH
@given(PARSED, st.data(), ENDED)
def test_a_damaged_text_is_parsed_honestly_or_refused(name: str, data: st.DataObject, ended: dict[str, Any]) -> None:
    text = samples.raw(name).output or ""
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 2000)))
    put = data.draw(st.one_of(st.just(""), st.just(text[start:end] * 2), st.text(max_size=20)))
    assert_honest_or_unknown(FIO, samples.raw(name, output=text[:start] + put + text[end:], **ended))


@THOROUGH
@given(PARSED, st.floats(0, 1), ENDED)
def test_a_text_cut_anywhere_is_parsed_honestly_or_refused(name: str, where: float, ended: dict[str, Any]) -> None:
    text = samples.raw(name).output or ""
    assert_honest_or_unknown(FIO, samples.raw(name, output=text[: int(where * len(text))], **ended))


def test_a_document_with_a_wrong_value_is_parsed_honestly_or_refused() -> None:
    document = samples.document("checkpoint")
    for altered in each_altered(document["jobs"], document):
        assert_honest_or_unknown(FIO, samples.raw("checkpoint", output=samples.printed(altered)))


@THOROUGH
@given(st.text(), st.text(), ENDED)
def test_any_text_is_parsed_honestly_or_refused(output: str, stdout: str, ended: dict[str, Any]) -> None:
    assert_honest_or_unknown(FIO, samples.of({}, output=output, stdout=stdout, **ended))
