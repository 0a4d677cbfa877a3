"""nccl_tests: table and document of three versions, stragglers, and the failures of a stand-in."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipelines import benchmark, gpus, process, tools
from pipelines.benchmark import Workplace
from pipelines.errors import BadParameter, UnknownOutput
from pipelines.node import run_once
from pipelines.records import Measurement, Outcome, Parsed, RawOutput
from pipelines.settings import Settings
from tests import make
from tests.benchmarks.placed import assert_honest_or_unknown, damaged, each_altered, each_renumbered, place

FOLDER = Path(__file__).parents[1] / "samples/nccl_tests"
NCCL = benchmark.get("nccl_tests")
PROGRAMS = ("all_reduce_perf", *NCCL.programs)
SIZES: dict[str, Any] = {"step_factor": 128, "iterations": 4, "warmup_iterations": 1, "gpus": 8}
RUNS: dict[str, dict[str, Any]] = {
    "2.0-all_reduce": {},
    "2.17.6-alltoall": {"collective": "alltoall"},
    "2.19.7-all_reduce": {},
    "2.19.7-reduce_scatter_by_rank": {"collective": "reduce_scatter", "per_rank": True},
}
LARGEST = str(2**31)


def raw(params: dict[str, Any], **fields: Any) -> RawOutput:
    checked = NCCL.checked_params({**SIZES, **params})
    job = make.job(
        benchmark="nccl_tests", case=NCCL.case(checked), params=checked.model_dump(mode="json", exclude_none=True)
    )
    return make.raw(job, tool="all_reduce_perf", **fields)


def sample(name: str, **fields: Any) -> RawOutput:
    document = FOLDER / f"{name}.json"
    both = {
        "stdout": (FOLDER / f"{name}.txt").read_text(),
        "output": document.read_text() if document.exists() else None,
    }
    return raw(RUNS.get(name, {}), **{**both, **fields})


def of(parsed: Parsed, metric: str, **labels: str) -> list[Measurement]:
    return [
        each for each in parsed.measurements if each.metric == metric and labels.items() <= dict(each.labels).items()
    ]


def only(parsed: Parsed, metric: str, **labels: str) -> float:
    (found,) = of(parsed, metric, **labels)
    return found.value


@pytest.mark.parametrize("name", ["2.0-all_reduce", "2.19.7-reduce_scatter_by_rank"])
def test_an_output_gives_exactly_the_golden_result(name: str) -> None:
    golden = Parsed.model_validate_json((FOLDER / f"{name}.golden.json").read_text())
    assert golden.outcome is Outcome.OK
    assert NCCL.parse(sample(name)) == golden


@pytest.mark.parametrize("name", RUNS)
def test_every_size_has_its_bandwidths_in_place_and_out_of_place(name: str) -> None:
    parsed = NCCL.parse(sample(name))
    assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
    for metric in ("algbw", "busbw", "collective_time"):
        assert len(of(parsed, metric, ranks="8")) == 2 * 4
    for each in parsed.measurements:
        assert NCCL.metric(each.metric).low <= each.value <= NCCL.metric(each.metric).high


@pytest.mark.parametrize("name", [name for name in RUNS if (FOLDER / f"{name}.json").exists()])
def test_table_and_document_agree_to_the_tables_digits(name: str) -> None:
    of_document, of_table = NCCL.parse(sample(name)), NCCL.parse(sample(name, output=None))
    assert of_table.outcome is Outcome.OK
    for each in of_table.measurements:
        if each.metric != "iteration_time_p50":
            assert each.value == pytest.approx(only(of_document, each.metric, **each.labels), rel=0.01)


def test_a_document_that_was_cut_off_leaves_the_table() -> None:
    document = (FOLDER / "2.17.6-alltoall.json").read_text()
    cut = sample("2.17.6-alltoall", output=document[: len(document) // 2])
    assert NCCL.parse(cut) == NCCL.parse(sample("2.17.6-alltoall", output=None))


def test_the_bandwidth_of_a_small_size_has_more_digits_than_the_table() -> None:
    parsed = NCCL.parse(sample("2.0-all_reduce"))
    algbw = only(parsed, "algbw", size="1024", in_place="false")
    assert algbw == pytest.approx(1024 / 20e-6, rel=0.01)
    assert only(parsed, "busbw", size="1024", in_place="false") == pytest.approx(algbw * 2 * 7 / 8)


def test_a_row_whose_time_does_not_make_its_bandwidth_is_no_row() -> None:
    table = (FOLDER / "2.0-all_reduce.txt").read_text()
    time = next(line for line in table.splitlines() if line.strip().startswith(LARGEST)).split()[4]
    parsed = NCCL.parse(sample("2.0-all_reduce", stdout=table.replace(time, time[:-1])))
    assert parsed.outcome is Outcome.OK
    assert not of(parsed, "algbw", size=LARGEST, in_place="false")
    assert of(parsed, "algbw", size=LARGEST, in_place="true")


def test_a_rank_that_is_late_is_seen_and_by_how_much() -> None:
    parsed = NCCL.parse(sample("2.19.7-reduce_scatter_by_rank"))
    times = {rank: only(parsed, "rank_time", size=LARGEST, in_place="false", rank=rank) for rank in map(str, range(8))}
    assert max(times, key=times.__getitem__) == "7"
    assert only(parsed, "straggler_lag", size=LARGEST, in_place="false") == pytest.approx(1 - 1 / 1.25)
    assert not of(NCCL.parse(sample("2.19.7-all_reduce")), "rank_time")


def test_a_table_whose_head_names_no_times_is_none() -> None:
    table = (FOLDER / "2.0-all_reduce.txt").read_text().replace(" time ", " tame ")
    with pytest.raises(UnknownOutput):
        NCCL.parse(sample("2.0-all_reduce", stdout=table))


def test_the_average_over_all_sizes_is_a_note_and_no_measurement() -> None:
    parsed = NCCL.parse(sample("2.0-all_reduce"))
    assert parsed.notes[0].startswith("Avg bus bandwidth : ")
    average = float(parsed.notes[0].split()[4])
    assert all(each.value != pytest.approx(average * 1e9, rel=1e-6) for each in parsed.measurements)


def test_wrong_results_are_a_failure_that_names_the_sizes() -> None:
    parsed = NCCL.parse(sample("2.19.7-wrong", exit_status=1))
    assert parsed.outcome is Outcome.TOOL_FAILED
    assert parsed.reason == f"the all_reduce gave wrong results at 16777216, {LARGEST} B"
    assert not parsed.measurements


def test_without_a_gpu_it_is_not_measured() -> None:
    parsed = NCCL.parse(sample("2.19.7-no_gpu", exit_status=2))
    assert parsed.outcome is Outcome.NOT_MEASURED
    assert "no CUDA-capable device is detected" in parsed.reason


def test_a_deviation_of_an_older_release_is_no_wrong_result() -> None:
    table = (FOLDER / "2.0-all_reduce.txt").read_text()
    assert NCCL.parse(sample("2.0-all_reduce", stdout=table.replace("0e+00", "1e-06"))) == NCCL.parse(
        sample("2.0-all_reduce")
    )


def test_one_that_aborts_over_its_document_is_judged_by_what_it_said_before() -> None:
    """Releases up to 2.19.7 do not close the document when they fail, and assert that it is closed."""
    said = "Invalid number of GPUs: 8 requested but only 4 were found.\nPlease check the number of processes.\n"
    said += (
        "all_reduce_perf: util.cu:372: void jsonOutputFinalize(): Assertion `jsonCurrState() == JSON_NONE' failed.\n"
    )
    parsed = NCCL.parse(raw({}, stderr=said, exit_status=None, signal=6))
    assert (parsed.outcome, parsed.measurements) == (Outcome.CONFIG, ())
    assert parsed.reason.startswith("nccl-tests ended by crashing (signal 6): Invalid number of GPUs: 8 requested")


def test_more_gpus_than_an_older_release_finds_are_a_matter_of_set_up() -> None:
    said = (
        (FOLDER / "2.19.7-no_gpu.txt")
        .read_text()
        .replace("no CUDA-capable device is detected", "invalid device ordinal")
    )
    parsed = NCCL.parse(raw({}, stdout=said, exit_status=2))
    assert parsed.outcome is Outcome.CONFIG
    assert "invalid device ordinal" in parsed.reason


def test_a_run_that_was_ended_keeps_the_sizes_that_it_measured() -> None:
    table = (FOLDER / "2.0-all_reduce.txt").read_text().partition(f"\n  {LARGEST} ")[0]
    parsed = NCCL.parse(sample("2.0-all_reduce", stdout=table, exit_status=None, signal=15, timed_out=True))
    assert (parsed.outcome, parsed.reason) == (Outcome.TRUNCATED, "nccl-tests was ended after 60 s")
    assert len(of(parsed, "algbw")) == 2 * 3


def test_a_size_that_did_not_fit_into_memory_is_told() -> None:
    table = (FOLDER / "2.0-all_reduce.txt").read_text()
    reduced = "\n".join(line for line in table.splitlines() if not line.strip().startswith(LARGEST))
    reduced = f"#\n# Reducing maxBytes to 1073741824 due to memory limitation\n{reduced}\n"
    parsed = NCCL.parse(sample("2.0-all_reduce", stdout=reduced))
    assert parsed.outcome is Outcome.TRUNCATED
    assert "Reducing maxBytes to 1073741824" in parsed.reason


@pytest.mark.parametrize(
    ("how", "params", "outcome", "said"),
    [
        ({"version": "2.0"}, {"gpus": 4, "collective": "all_gather"}, Outcome.OK, ""),
        ({"version": "2.17.6"}, {"collective": "alltoall", "gpus": 2, "datatype": "half"}, Outcome.OK, ""),
        ({"version": "2.19.7"}, {"gpus": 8, "per_rank": True}, Outcome.OK, ""),
        ({"fails": "no mpi"}, {"gpus": 2, "per_rank": True}, Outcome.CONFIG, "built without MPI"),
        ({"gpus": 4}, {"gpus": 8}, Outcome.CONFIG, "Invalid number of GPUs: 8 requested but only 4 were found."),
        ({"fails": "no gpu"}, {"gpus": 8}, Outcome.NOT_MEASURED, "no CUDA-capable device"),
        ({}, {}, Outcome.NOT_MEASURED, "it ran on one GPU"),
    ],
)
def test_each_version_is_asked_for_what_it_knows_and_each_failure_has_its_outcome(
    how: dict[str, Any], params: dict[str, Any], outcome: Outcome, said: str, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    path = place(tmp_path / "bin", "nccl_tests", *PROGRAMS, **how)
    environ = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    found = tools.find(NCCL, environ)
    assert found.simulated
    output = tmp_path / "output.json"
    place_of_it = Workplace(tmp_path, output, True, found.version or "")
    checked = NCCL.checked_params(params)
    done = process.run(NCCL.command(checked, place_of_it).argv, timeout_s=60, environ=environ)
    job = make.job(benchmark="nccl_tests", params=checked.model_dump(mode="json", exclude_none=True))
    written = output.read_text() if output.exists() else None
    raw = make.raw(job, exit_status=done.exit_status, stdout=done.stdout, stderr=done.stderr, output=written)
    parsed = NCCL.parse(raw)
    assert parsed.outcome is outcome, parsed.reason
    assert said in parsed.reason


def test_of_the_environment_nothing_lands_and_no_secret_is_in_the_evidence(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(place(tmp_path / "bin", "nccl_tests", *PROGRAMS)), prepend=":")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-the-evidence")
    given = NCCL.checked_params({"gpus": 8}).model_dump(mode="json", exclude_none=True)
    job = make.job(benchmark="nccl_tests", case="all_reduce-g8", params=given, written_bytes=0)
    ended = run_once(settings, make.node(free_floor_bytes=0), job, say=lambda _: None)
    parsed = NCCL.parse(ended)
    assert parsed.outcome is Outcome.OK
    assert ended.simulated
    environment = json.loads(ended.output or "")["env"]
    assert environment
    assert "not-for-the-evidence" not in ended.model_dump_json()
    assert not any(each in parsed.model_dump_json() for each in environment)


def test_options_are_given_to_versions_whose_help_lists_them_only() -> None:
    for version, has in (("2.0+", set()), ("2.17.3+", {"-J"}), ("2.18+", {"-J", "-I"})):
        place = Workplace(Path("/s"), Path("/s/output.json"), True, version, gpus=8)
        argv = NCCL.command(NCCL.checked_params({}), place).argv
        assert {"-J", "-I"} & set(argv) == has
        assert argv[argv.index("-g") + 1] == "8"


def test_the_number_of_gpus_is_what_the_node_saw_of_them() -> None:
    seen = (FOLDER.parent / "environment/nvidia-smi-550-synth-4xh100.csv").read_text()
    assert gpus.count(gpus.parse(seen)) == 4
    assert gpus.count({"gpu_problem": "nvidia-smi did not end"}) == 0


def test_a_help_without_a_version_tells_what_the_release_has_at_least() -> None:
    old = "USAGE: all_reduce_perf \n\t[-t,--nthreads <num threads>] \n"
    assert tools.judge(NCCL, old).version == "2.0+"
    assert tools.judge(NCCL, f"{old}\t[-J,--output_file <file>] \n").version == "2.17.3+"
    assert tools.judge(NCCL, f"{old}\t[-F,--output_file <CSV file path>] \n").version == "2.0+"
    assert tools.judge(NCCL, "all_reduce_perf: error while loading shared libraries: libnccl.so.2").refusal


def test_sizes_that_make_no_range_are_refused() -> None:
    with pytest.raises(BadParameter):
        NCCL.checked_params({"min_bytes": 2**20, "max_bytes": 2**10})


@hypothesis_settings(max_examples=200)
@given(st.sampled_from(list(RUNS)), st.booleans(), st.sampled_from([0, 1, None]), st.data())
def test_a_damaged_output_is_parsed_honestly_or_refused(
    name: str, of_document: bool, status: int | None, data: st.DataObject
) -> None:
    whole = sample(name)
    where = "output" if of_document and whole.output else "stdout"
    broken = data.draw(damaged(getattr(whole, where)))
    other = {} if where == "stdout" else {"stdout": data.draw(st.sampled_from(["", whole.stdout]))}
    assert_honest_or_unknown(NCCL, sample(name, **{where: broken, **other}, exit_status=status))


def test_a_number_or_a_value_that_is_wrong_is_parsed_honestly_or_refused() -> None:
    """In any cell of a row, and at any place in the document of one size."""
    name = "2.19.7-reduce_scatter_by_rank"
    whole = sample(name)
    head, row, foot = re.split(rf"(^ +{LARGEST} .*\n)", whole.stdout, flags=re.MULTILINE)
    for renumbered in each_renumbered(row):
        assert_honest_or_unknown(NCCL, sample(name, stdout=f"{head}{renumbered}{foot}", output=None))
    document = json.loads(whole.output or "")
    del document["results"][1:]
    for altered in each_altered(document["results"], document):
        assert_honest_or_unknown(NCCL, sample(name, output=json.dumps(altered)))
