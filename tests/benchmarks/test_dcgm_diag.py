"""dcgm_diag: what a diagnostic says of each GPU, in the forms of DCGM 3 and 4; and what says nothing about a GPU."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import benchmark, process, tools
from pipelines.benchmark import Workplace
from pipelines.errors import UnknownOutput
from pipelines.records import Outcome, Parsed
from pipelines.verdicts import judge
from tests import make
from tests.report import runs
from tests.tables import batches

DIAG = benchmark.get("dcgm_diag")
SAMPLES = Path(__file__).parents[1] / "samples/dcgm_diag"
STANDINS = Path(__file__).parents[1] / "standins/dcgm"
DOCUMENTS = sorted(path.name for path in SAMPLES.glob("*-*.json"))


def _raw(stdout: str, exit_status: int | None = 0, **fields: Any) -> Any:
    job = make.job(benchmark="dcgm_diag", case="r3", params={"level": 3})
    return make.raw(job, tool="dcgmi", tool_version="4.6.0", stdout=stdout, exit_status=exit_status, **fields)


def _sample(name: str, exit_status: int = 0) -> Parsed:
    return DIAG.parse(_raw((SAMPLES / name).read_text(), exit_status))


def _values(parsed: Parsed, metric: str) -> dict[str, float]:
    return {" ".join(each.labels.values()): each.value for each in parsed.measurements if each.metric == metric}


def test_failing_gpu_is_a_measurement_and_its_numbers_are_read() -> None:
    parsed = _sample("4.6.0-r3_memory_fails.json", 226)
    assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
    assert _values(parsed, "passed") == {
        "0 software": 1, "1 software": 1, "0 memory": 1, "1 memory": 0, "0 diagnostic": 1, "0 pcie": 1, "1 pcie": 1,
    }  # fmt: skip
    assert _values(parsed, "errors") == {"1 memory isolate memory 5": 1}
    assert _values(parsed, "flops") == {"0 diagnostic": 51234.56e9}
    assert _values(parsed, "bandwidth") == {
        "0 pcie gpu_to_host": 54.10e9,
        "0 pcie host_to_gpu": 55.32e9,
        "0 pcie bidirectional": 98.70e9,
    }
    assert parsed.notes == (
        "memory failed on gpu 1: GPU 1: An uncorrectable double-bit ECC error occurred.",
        "diagnostic was skipped on gpu 1: The test was skipped because an earlier test failed.",
    )


def test_dcgm_3_is_read_with_its_nulls_and_its_configuration_is_no_failure_of_a_gpu() -> None:
    parsed = _sample("3.3.9-r3_power_fails.json", 226)
    passed = _values(parsed, "passed")
    assert {name: value for name, value in passed.items() if name[0].isdigit()} == {
        "0 pcie": 1,
        "1 pcie": 1,
        "1 targeted_power": 0,
    }
    assert passed["inforom"] == 1
    assert not any("persistence_mode" in name for name in passed)
    assert _values(parsed, "errors") == {
        "1 persistence_mode configuration software_other 29": 1,
        "1 targeted_power monitor performance_threshold 40": 1,
    }
    assert _values(parsed, "bandwidth") == {"0 pcie gpu_to_host": 14.26e9}


def test_dcgm_4_repeats_its_warnings_in_the_summary_and_each_is_counted_once() -> None:
    parsed = _sample("4.1.0-r2_configuration.json", 226)
    assert parsed.outcome is Outcome.OK
    assert _values(parsed, "errors") == {"1 software configuration software_other 29": 1}
    assert "1 software" not in _values(parsed, "passed")
    assert "1 pcie" not in _values(parsed, "passed")
    assert all(value == 1 for value in _values(parsed, "passed").values())


def test_text_before_the_document_and_null_entries_are_passed_over() -> None:
    assert _values(_sample("3.3.9-text_and_nulls.txt"), "passed") == {"1 memory": 1}


def test_older_versions_name_several_gpus_and_warn_in_plain_text() -> None:
    parsed = _sample("3.0.4-warnings_as_text.json", 226)
    assert _values(parsed, "passed") == {"0 pulse_test": 0, "1 pulse_test": 0}
    assert _values(parsed, "errors") == {f"{gpu} pulse_test unknown unknown unknown": 1 for gpu in (0, 1)}


@pytest.mark.parametrize(
    ("name", "exit_status", "outcome", "said"),
    [
        ("4.2.3-only_configuration.json", 226, Outcome.CONFIG, "Persistence mode for GPU 0 is disabled"),
        ("4.1.0-mig_skipped.json", 0, Outcome.NOT_MEASURED, "MIG being enabled on GPU 0"),
        ("3.3.9-mig_refused.json", 226, Outcome.CONFIG, "MIG is configured"),
        ("4.6.0-runtime_error.json", 226, Outcome.TOOL_FAILED, "recommended driver"),
        ("4.6.0-already_running.json", 217, Outcome.CONTENDED, "already running"),
        ("3.3.9-no_hostengine.txt", 235, Outcome.CONFIG, "Unable to connect to host engine"),
        ("3.3.9-text_and_nulls.txt", 226, Outcome.TOOL_FAILED, "no test in its result failed"),
        ("4.6.0-r3_memory_fails.json", 203, Outcome.TRUNCATED, "exit status 203"),
    ],
)
def test_diagnostic_without_a_result_says_why_and_passes_nothing(
    name: str, exit_status: int, outcome: Outcome, said: str
) -> None:
    parsed = _sample(name, exit_status)
    assert parsed.outcome is outcome
    assert said in parsed.reason
    assert not _values(parsed, "passed")


def test_gpu_that_fails_a_test_is_a_verdict_on_the_page_which_names_it() -> None:
    diag = _raw((SAMPLES / "4.6.0-r3_memory_fails.json").read_text(), 226)
    made = batches.batch(repeats=1, instead=lambda _: diag)
    verdicts = list(judge.floors(made.plan, runs.landed(made)))
    failed = [each.reason for each in verdicts if each.verdict == "fail"]
    assert failed == ["gpu 1, test memory: median 0 % of 1 of 1 repeats is 100 % below the floor of 100 %"]
    assert [each.verdict for each in verdicts].count("pass") == 6
    assert failed[0] in runs.rendered(made)


def test_diagnostic_that_could_not_run_neither_passes_nor_fails() -> None:
    diag = _raw((SAMPLES / "3.3.9-no_hostengine.txt").read_text(), 235)
    made = batches.batch(repeats=1, instead=lambda _: diag)
    (verdict,) = judge.floors(made.plan, runs.landed(made))
    assert verdict.verdict == "not_measured"
    assert "Unable to connect to host engine" in verdict.reason


@pytest.mark.integration
@pytest.mark.parametrize(("diag", "outcome"), [("4.6.0-r3_memory_fails.json 226", "ok"), ("", "config")])
def test_command_runs_and_its_rows_are_marked_as_simulated(tmp_path: Path, diag: str, outcome: str) -> None:
    environ = {"PATH": f"{STANDINS}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    (tmp_path / "diag").write_text(diag)
    (tmp_path / "hostengine").write_text("" if diag else "down")
    found = tools.find(DIAG, environ)
    assert (found.version, found.simulated, found.refusal) == ("3.3.9", True, None)
    command = DIAG.command(DIAG.checked_params({"level": 3}), Workplace(tmp_path, tmp_path / "o", True, "3.3.9"))
    done = process.run(command.argv, timeout_s=60, environ=environ)
    assert DIAG.parse(_raw(done.stdout, done.exit_status)).outcome == outcome


def _is_honest_or_unknown(raw: Any) -> None:
    try:
        parsed = DIAG.parse(raw)
    except UnknownOutput:
        return
    assert (parsed.outcome is Outcome.OK) == (not parsed.reason)
    assert (parsed.outcome is Outcome.OK) <= any(each.metric == "passed" for each in parsed.measurements)
    for each in parsed.measurements:
        assert math.isfinite(each.value)
        assert each.unit == DIAG.metric(each.metric).unit
        assert each.metric != "passed" or each.value in (0, 1)


ENDED = st.sampled_from([0, 1, 226, 205, 203, 235])
DAMAGE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}), st.just(2**70),
    st.sampled_from(["Pass", "Fail", "Skip", "GPU to Host bandwidth:\t\t" + "9" * 400 + ".0 GB/s"]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DOCUMENTS), st.floats(0, 1), st.text(max_size=8), ENDED)
def test_text_cut_or_overwritten_anywhere_is_read_honestly_or_refused(
    name: str, where: float, put: str, ended: int
) -> None:
    text = (SAMPLES / name).read_text()
    at = int(where * len(text))
    _is_honest_or_unknown(_raw(text[:at], ended))
    _is_honest_or_unknown(_raw(text[:at] + put + text[at + len(put) :], ended))


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(DOCUMENTS), st.data(), ENDED)
def test_document_with_a_wrong_value_is_read_honestly_or_refused(name: str, data: st.DataObject, ended: int) -> None:
    document = json.loads((SAMPLES / name).read_text())
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
    _is_honest_or_unknown(_raw(json.dumps(document), ended))
