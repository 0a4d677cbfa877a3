"""What a tool, or whoever writes in a node's name, can put into raw outputs and parameters."""

import json
import resource
from pathlib import Path

import pytest

from pipelines import benchmark, keys, node, plan, process, stages, storage, tools
from pipelines.errors import BadParameter, UnknownOutput
from pipelines.records import Outcome, SuiteEntry
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tables import files, parse
from tests import make, processes

METACHARACTERS = (
    "; touch {0}",
    "$(touch {0})",
    "`touch {0}`",
    "| touch {0}",
    "&& touch {0}",
    "\n touch {0}",
    "' \" \\",
)
DEEP = "[" * 200_000


def _runs(store: Store) -> list[dict[str, object]]:
    batch = parse.prepare(store, stages.load_plan(store, make.RUN_ID), make.AT)
    return list(files.read(store, keys.parsed_key(batch, "runs")).to_pylist())


def _most_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _parsed(settings: Settings) -> tuple[list[dict[str, object]], int]:
    """A run's rows, and by how much this process grew for them."""
    store = storage.open_store(settings)
    before = _most_bytes()
    return _runs(store), _most_bytes() - before


def _printing(gigabytes: int) -> tuple[int | None, int, int]:
    before = _most_bytes()
    done = process.run(("head", "-c", f"{gigabytes}G", "/dev/zero"), timeout_s=300)
    return done.exit_status, len(done.stdout), _most_bytes() - before


@pytest.mark.parametrize("text", METACHARACTERS)
def test_a_word_of_a_command_is_a_word_whatever_it_says(tmp_path: Path, text: str) -> None:
    word = text.format(tmp_path / "made")
    assert process.run(("echo", word), timeout_s=30).stdout == f"{word}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(benchmark.discover()))
@pytest.mark.parametrize("text", [*METACHARACTERS, "--filename=/dev/sda", "../../etc", "/dev/nvme0n1", "a:b", "\0"])
def test_no_parameter_of_any_benchmark_takes_text_of_ones_own(name: str, text: str) -> None:
    for parameter in benchmark.get(name).params.model_fields:
        if (name, parameter, text) == ("serving_latency", "model", "a:b"):
            continue  # a model's name in the body of a request: "llama3:8b"
        with pytest.raises(BadParameter):
            list(plan.jobs_of_entry(make.RUN_ID, "gpu-01", SuiteEntry(benchmark=name), {parameter: text}))


@pytest.mark.parametrize("name", sorted(benchmark.discover()))
@pytest.mark.parametrize("where", ["output", "stdout", "stderr"])
@pytest.mark.parametrize(
    "text", [DEEP, '{"start": ' + DEEP, '{\n  "jobs": ' + DEEP + "\n}\n", '{"end": ' + "9" * 10_000]
)
def test_a_document_that_is_nested_without_end_is_an_outcome(store: Store, name: str, where: str, text: str) -> None:
    descriptor = benchmark.get(name)
    params = descriptor.checked_params({}).model_dump(mode="json", exclude_none=True)
    raw = make.raw(make.job(benchmark=name, params=params), tool=descriptor.tool, **{where: text})
    stages.publish_plan(store, make.plan(raw.job))
    store.create(keys.raw_key(make.RUN_ID, "gpu-01", "job-1", 1), raw.model_dump_json().encode())
    (row,) = _runs(store)
    assert row["outcome"] != Outcome.OK
    assert row["reason"]


@pytest.mark.parametrize(
    "data", [b"[" * 2_000_000, b'{"job":' * 500_000, b'"\\ud800"', b"\xff" * 1000, b"", b"9" * 100_000]
)
def test_a_raw_output_that_is_none_is_a_row(store: Store, data: bytes) -> None:
    stages.publish_plan(store, make.plan())
    store.create(keys.raw_key(make.RUN_ID, "gpu-01", "job-1", 1), data)
    (row,) = _runs(store)
    assert row["outcome"] == Outcome.TOOL_FAILED
    assert row["raw_sha256"] == keys.sha256(data)


def test_a_raw_output_of_a_gigabyte_is_a_row_and_is_not_read_into_memory(settings: Settings, store: Store) -> None:
    stages.publish_plan(store, make.plan())
    path = Path(store.path(keys.raw_key(make.RUN_ID, "gpu-01", "job-1", 1)))
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(2**30)
    (((row,), grown_bytes),) = processes.at_once(_parsed, [(settings,)])
    assert "it has 1073741824 B; it was not read" in str(row["reason"])
    assert grown_bytes < 2**28


def test_raw_outputs_are_read_together_only_as_far_as_memory_is_meant_for_it(settings: Settings, store: Store) -> None:
    jobs = [make.job(f"job-{number}") for number in range(12)]
    stages.publish_plan(store, make.plan(*jobs))
    printed = "\0" * 2**23  # six bytes each in JSON
    for job in jobs:
        body = make.raw(job, stdout=printed).model_dump_json().encode()
        store.create(keys.raw_key(make.RUN_ID, "gpu-01", job.job_id, 1), body)
    ((rows, grown_bytes),) = processes.at_once(_parsed, [(settings,)])
    assert len(rows) == len(jobs)
    assert grown_bytes < 8 * len(body)


def test_a_tool_that_prints_ten_gigabytes_costs_what_is_kept_of_it() -> None:
    ((exit_status, kept_bytes, grown_bytes),) = processes.at_once(_printing, [(10,)])
    assert (exit_status, kept_bytes) == (0, 2**24)
    assert grown_bytes < 2**28


@pytest.mark.parametrize("name", sorted(benchmark.discover()))
@pytest.mark.parametrize("number", ["9" * 5000, "3." + "9" * 5000, "1." * 5000, "\u0663.\u0663", "-1.0", "9" * 4299])
def test_a_version_of_any_length_is_a_version_or_a_refusal(name: str, number: str) -> None:
    descriptor = benchmark.get(name)
    found = tools.judge(descriptor, f"{descriptor.tool}-{number}\n{descriptor.tool} {number} (cJSON 1.7)\n")
    assert found.version is None or len(found.version) < 5100


def test_a_job_of_a_plan_cannot_lead_out_of_the_scratch_directory(settings: Settings) -> None:
    for job_id in ("../../x", "/etc", "a/b", "..", "", "a\n", "a" * 64):
        with pytest.raises(ValueError, match="job_id"):
            make.job(job_id)
    raw = node.run_once(settings, make.node(scratch="../../../../../../etc"), make.job(), say=lambda _: None)
    assert raw.refusal is not None
    assert raw.refusal.outcome is Outcome.CONFIG


@pytest.mark.parametrize("name", sorted(benchmark.discover()))
def test_a_parser_gives_nothing_of_a_job_with_parameters_that_are_not_its_own(name: str) -> None:
    raw = make.raw(make.job(benchmark=name, params={"shell": json.dumps(METACHARACTERS)}), stdout="{}")
    with pytest.raises(UnknownOutput):
        benchmark.get(name).parse(raw)


def test_a_raw_output_that_names_no_benchmark_of_ours_fails_alone_and_holds_no_run_up(store: Store) -> None:
    jobs = make.job("job-1"), make.job("job-2")
    stages.publish_plan(store, make.plan(*jobs))
    for job, benchmark_name in zip(jobs, ("no_such", "fio"), strict=True):
        forged = make.raw(job.model_copy(update={"benchmark": benchmark_name}), exit_status=1, stderr="fio: x")
        store.create(keys.raw_key(make.RUN_ID, job.node, job.job_id, 1), forged.model_dump_json().encode())
    rows = {row["job_id"]: row for row in _runs(store)}
    assert {row["outcome"] for row in rows.values()} == {Outcome.TOOL_FAILED}
    assert "unknown benchmark 'no_such'" in str(rows["job-1"]["reason"])
    assert "unknown benchmark" not in str(rows["job-2"]["reason"])
