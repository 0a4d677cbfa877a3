"""dcgm_diag: what a diagnostic says of each GPU, in the forms of DCGM 3 and 4; and what says nothing about a GPU."""

import json
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
from tests.benchmarks.placed import assert_honest_or_unknown, damaged, each_altered
from tests.report import runs
from tests.tables import batches

DIAG = benchmark.get("dcgm_diag")
SAMPLES = Path(__file__).parents[1] / "samples/dcgm_diag"
STANDINS = Path(__file__).parents[1] / "standins/dcgm"
DOCUMENTS = sorted(path.name for path in SAMPLES.glob("*-*.json"))
STATUSES = st.sampled_from([0, 1, 226, 205, 203, 235])


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
    assert _values(parsed, "flops") == {"0 diagnostic": 51234.56 * 2**30}  # what DCGM calls a gigaflop
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


def _software(summary: list[dict[str, Any]], *of_gpus: list[dict[str, Any]]) -> Parsed:
    """A check of the set-up that failed, as DCGM 4 prints it: every GPU fails, whatever is warned of."""
    results: list[dict[str, Any]] = [
        {"entity_group": "GPU", "entity_group_id": 1, "entity_id": gpu, "status": "Fail", "warnings": warnings}
        for gpu, warnings in enumerate(of_gpus)
    ]
    test = {"name": "software", "results": results, "test_summary": {"status": "Fail", "warnings": summary}}
    document = {"DCGM Diagnostic": {"test_categories": [{"category": "Deployment", "tests": [test]}]}}
    return DIAG.parse(_raw(json.dumps(document), 226))


PENDING = {"warning": "Pending row remap on GPU 1.", "error_id": 74, "error_category": 10, "error_severity": 6}
VARIABLE = {"warning": "CUDA_PROFILE is set.", "error_id": 25, "error_category": 3, "error_severity": 5}


@pytest.mark.parametrize("summary", [[], [PENDING]])
def test_gpu_that_failed_with_another_is_not_to_blame_for_it(summary: list[dict[str, Any]]) -> None:
    parsed = _software(summary, [], [PENDING])
    assert _values(parsed, "passed") == {"1 software": 0}
    assert _values(parsed, "errors") == {"1 software reset memory 74": 1}


def test_what_names_no_gpu_is_about_the_node() -> None:
    parsed = _software([VARIABLE], [], [])
    assert (parsed.outcome, _values(parsed, "passed")) == (Outcome.CONFIG, {})
    assert _values(parsed, "errors") == {"software configuration software_configuration 25": 1}
    assert "CUDA_PROFILE is set" in parsed.reason
    both = _software([VARIABLE, PENDING], [], [PENDING])
    assert _values(both, "passed") == {"1 software": 0}
    assert sum(_values(both, "errors").values()) == 2


def test_errors_of_a_gpu_that_passes_for_all_that_are_kept() -> None:
    """DCGM's test of the memory passes where it could not have as much of it as it wanted."""
    text = (SAMPLES / "4.6.0-r3_memory_fails.json").read_text()
    document = json.loads(text)
    for test in document["DCGM Diagnostic"]["test_categories"][1]["tests"][:1]:
        for result in (test["test_summary"], *test["results"]):
            result["status"] = "Pass"
    parsed = DIAG.parse(_raw(json.dumps(document), 226))
    assert parsed.outcome is Outcome.OK
    assert all(value == 1 for value in _values(parsed, "passed").values())
    assert _values(parsed, "errors") == {"1 memory isolate memory 5": 1}
    assert parsed.notes[0].startswith(
        "memory passed with a warning on gpu 1: GPU 1: An uncorrectable double-bit ECC error"
    )


def test_gpus_that_all_failed_and_are_not_told_why_have_failed() -> None:
    assert _values(_software([], [], []), "passed") == {"0 software": 0, "1 software": 0}


def test_text_before_the_document_and_null_entries_are_passed_over() -> None:
    assert _values(_sample("3.3.9-text_and_nulls.txt"), "passed") == {"1 memory": 1}


def test_older_versions_name_several_gpus_and_warn_in_plain_text() -> None:
    parsed = _sample("3.0.4-warnings_as_text.json", 226)
    assert _values(parsed, "passed") == {"0 pulse_test": 0, "1 pulse_test": 0}
    assert _values(parsed, "errors") == {f"{gpu} pulse_test unknown unknown unknown": 1 for gpu in (0, 1)}


def test_number_that_names_its_gpu_is_of_that_gpu_and_of_no_other_in_the_same_result() -> None:
    document = json.loads((SAMPLES / "3.0.4-warnings_as_text.json").read_text())
    result = document["DCGM GPU Diagnostic"]["test_categories"][0]["tests"][0]["results"][0]
    result["info"] = [f"GPU {gpu} GPU to Host bandwidth:\t\t{13 + gpu}.08 GB/s" for gpu in (0, 1)]
    result["info"] += [f"GPU {gpu} calculated at approximately {gpu + 1}.50 gigaflops" for gpu in (0, 1)]
    parsed = DIAG.parse(_raw(json.dumps(document), 226))
    assert _values(parsed, "bandwidth") == {"0 pulse_test gpu_to_host": 13.08e9, "1 pulse_test gpu_to_host": 14.08e9}
    assert _values(parsed, "flops") == {"0 pulse_test": 1.5 * 2**30, "1 pulse_test": 2.5 * 2**30}


@pytest.mark.parametrize(
    ("name", "exit_status", "outcome", "said"),
    [
        ("4.2.3-only_configuration.json", 226, Outcome.CONFIG, "Persistence mode for GPU 0 is disabled"),
        ("4.1.0-mig_skipped.json", 0, Outcome.NOT_MEASURED, "MIG being enabled on GPU 0"),
        ("4.1.0-mig_skipped.json", 226, Outcome.NOT_MEASURED, "MIG being enabled on GPU 0"),  # its warnings count
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


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (-6, Outcome.CONFIG),  # not the recommended driver
        (-23, Outcome.CONFIG),  # GPUs of different models
        (-52, Outcome.CONFIG),  # the package with the diagnostic is not installed
        (-54, Outcome.CONFIG),  # paused
        (-35, Outcome.NOT_MEASURED),  # no GPU
        (-18, Outcome.TOOL_FAILED),  # a GPU is lost
    ],
)
def test_status_of_dcgm_says_whether_the_node_or_its_set_up_is_at_fault(code: int, outcome: Outcome) -> None:
    parsed = _sample("4.6.0-runtime_error.json", 256 + code)
    assert (parsed.outcome, parsed.measurements) == (outcome, ())


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


@pytest.mark.parametrize(
    ("name", "was", "put"),
    [
        ("3.3.9-r3_power_fails.json", '"gpu_id" : "0"', '"gpu_id" : "warm"'),
        ("3.3.9-r3_power_fails.json", '"status" : "Pass"', '"status" : "Passed"'),
        ("3.0.4-warnings_as_text.json", '"gpu_ids" : "0,1"', '"gpu_ids" : "0,x"'),
    ],
)
def test_gpu_without_a_number_and_status_that_dcgm_does_not_have_are_unknown(name: str, was: str, put: str) -> None:
    text = (SAMPLES / name).read_text()
    assert was in text
    with pytest.raises(UnknownOutput):
        DIAG.parse(_raw(text.replace(was, put), 226))


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(DOCUMENTS), st.data(), STATUSES)
def test_damaged_text_is_read_honestly_or_refused(name: str, data: st.DataObject, ended: int) -> None:
    assert_honest_or_unknown(DIAG, _raw(data.draw(damaged((SAMPLES / name).read_text())), ended))


@pytest.mark.parametrize(
    "name", ["3.0.4-warnings_as_text.json", "3.3.9-r3_power_fails.json", "4.6.0-r3_memory_fails.json"]
)
def test_document_with_a_wrong_value_is_read_honestly_or_refused(name: str) -> None:
    document = json.loads((SAMPLES / name).read_text())
    for altered in each_altered(document, document):
        assert_honest_or_unknown(DIAG, _raw(json.dumps(altered), 226))
