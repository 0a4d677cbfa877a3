"""memory_bandwidth: stress-ng's document in two versions, and stress-ng itself."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipelines import benchmark, process
from pipelines.benchmark import Workplace
from pipelines.errors import BadParameter, UnknownOutput
from pipelines.families import stream_results
from pipelines.node import run_once
from pipelines.records import Outcome, Parsed, RawOutput
from pipelines.settings import Settings
from tests import make
from tests.benchmarks.placed import assert_honest_or_unknown, damaged

FOLDER = Path(__file__).parents[1] / "samples/memory_bandwidth"
MEMORY = benchmark.get("memory_bandwidth")
MIB = 2**20
INSTANCES = {"0.15.06-all": 2, "0.15.06-one": 1, "0.19.02-all": 2}


def raw(params: dict[str, Any] | None = None, **fields: Any) -> RawOutput:
    checked = MEMORY.checked_params(params or {})
    job = make.job(benchmark="memory_bandwidth", case=MEMORY.case(checked), params=checked.model_dump(mode="json"))
    return make.raw(job, **{"tool": "stress-ng", "argv": ("stress-ng", "--stream=2"), **fields})


def sample(name: str, **fields: Any) -> RawOutput:
    params = {"processors": name.rpartition("-")[2]} if name in INSTANCES else {}
    argv = ("stress-ng", f"--stream={INSTANCES.get(name, 2)}")
    return raw(params, **{"argv": argv, "output": (FOLDER / f"{name}.yaml").read_text(), **fields})


def values(parsed: Parsed) -> dict[str, float]:
    return {each.metric: each.value for each in parsed.measurements}


def test_a_real_output_gives_exactly_the_golden_result() -> None:
    golden = Parsed.model_validate_json((FOLDER / "0.15.06-all.golden.json").read_text())
    assert golden.outcome is Outcome.OK
    assert MEMORY.parse(sample("0.15.06-all")) == golden


@pytest.mark.parametrize(
    ("name", "read_mib", "write_mib"),
    [
        ("0.15.06-one", (19615.79,), (13077.19,)),
        ("0.15.06-all", (13451.95, 13974.95), (8967.97, 9316.63)),  # as each instance printed them
        ("0.19.02-all", (11660.95, 11424.45), (7773.96, 7616.30)),
    ],
)
def test_the_bandwidth_is_the_sum_of_what_the_instances_print_in_units_of_a_mebibyte(
    name: str, read_mib: tuple[float, ...], write_mib: tuple[float, ...]
) -> None:
    got = values(MEMORY.parse(sample(name)))
    assert got["read_bandwidth"] == pytest.approx(sum(read_mib) * MIB, rel=1e-6)
    assert got["write_bandwidth"] == pytest.approx(sum(write_mib) * MIB, rel=1e-6)
    assert got["bandwidth"] == pytest.approx(got["read_bandwidth"] + got["write_bandwidth"])
    for metric, value in got.items():
        assert MEMORY.metric(metric).low <= value <= MEMORY.metric(metric).high


def test_a_run_that_was_too_short_gives_no_rate_and_no_zero() -> None:
    parsed = MEMORY.parse(sample("0.15.06-too_short"))
    assert (parsed.outcome, parsed.measurements) == (Outcome.TRUNCATED, ())


def test_an_instance_that_was_ended_makes_no_rate_of_the_others() -> None:
    """Where the kernel wants memory back it ends one of them, and stress-ng says nothing of it and ends well."""
    parsed = MEMORY.parse(sample("0.15.06-instance_ended"))
    assert (parsed.outcome, parsed.measurements) == (Outcome.TRUNCATED, ())
    assert parsed.reason == "its instances ran for 3.03189 of 6 s, in the mean: some were ended"


def test_arrays_that_the_machine_has_no_memory_for_are_refused_before_they_are_made(settings: Settings) -> None:
    params = MEMORY.checked_params({"array_bytes": 2**35})
    job = make.job(benchmark="memory_bandwidth", params=params.model_dump(mode="json"), written_bytes=0)
    ended = run_once(settings, make.node(free_floor_bytes=0), job, say=lambda _: None)
    assert ended.refusal is not None
    assert ended.refusal.outcome is Outcome.CONFIG
    assert ended.refusal.reason.startswith(f"it would take {MEMORY.memory(params, len(os.sched_getaffinity(0)))} B")


def test_too_little_memory_is_a_matter_of_set_up() -> None:
    ended = raw(stderr=(FOLDER / "0.15.06-no_memory.err").read_text(), exit_status=2)
    parsed = MEMORY.parse(ended)
    assert parsed.outcome is Outcome.CONFIG
    assert "cannot allocate 4294967296 bytes" in parsed.reason


def test_each_instance_has_arrays_of_the_size_that_was_asked_for() -> None:
    place = Workplace(Path("/s"), Path("/s/o"), True, "0.15.06", cpus=96)
    argv = MEMORY.command(MEMORY.checked_params({"array_bytes": 64 * MIB}), place).argv
    assert {"--stream=96", f"--stream-l3-size={64 * MIB * 96 // 4}", "--yaml=/s/o"} <= set(argv)
    assert "--stream=1" in MEMORY.command(MEMORY.checked_params({"processors": "one"}), place).argv


@pytest.mark.parametrize("params", [{"duration_s": 4}, {"array_bytes": 1000}, {"processors": "two"}])
def test_a_parameter_that_gives_no_number_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(BadParameter):
        MEMORY.checked_params(params)


@pytest.mark.parametrize(
    "metrics",
    [
        "- &a [*a]",
        "- stressor: stream\n- stressor: stream",
        "- 1",
        "- [",
        "? [a]\n: b",
        "- stressor: [stream]",
        "  a: b",
    ],
)
def test_metrics_that_are_not_streams_raise_the_one_documented_error(metrics: str) -> None:
    with pytest.raises(UnknownOutput):
        stream_results.read(f"---\nmetrics:\n{metrics}\n", 2)


@hypothesis_settings(max_examples=150)
@given(st.sampled_from(list(INSTANCES)), st.sampled_from([0, 1, 3, None]), st.data())
def test_a_damaged_document_is_parsed_honestly_or_refused(name: str, status: int | None, data: st.DataObject) -> None:
    broken = data.draw(damaged((FOLDER / f"{name}.yaml").read_text()))
    assert_honest_or_unknown(MEMORY, sample(name, output=broken, exit_status=status))


@pytest.mark.integration
def test_stress_ng_itself_gives_all_that_is_required_within_honest_ranges(tmp_path: Path) -> None:
    params = MEMORY.checked_params({"duration_s": 5, "array_bytes": 16 * MIB, "processors": "one"})
    place = Workplace(tmp_path, tmp_path / "output.json", True, "0.15.06")
    done = process.run(MEMORY.command(params, place).argv, timeout_s=120, cwd=tmp_path)
    parsed = MEMORY.parse(
        raw(
            params.model_dump(),
            argv=done.argv,
            exit_status=done.exit_status,
            stdout=done.stdout,
            stderr=done.stderr,
            output=(tmp_path / "output.json").read_text(),
        )
    )
    assert parsed.outcome is Outcome.OK, parsed.reason
    assert MEMORY.required(params) == set(values(parsed))
    for metric, value in values(parsed).items():
        assert MEMORY.metric(metric).low <= value <= MEMORY.metric(metric).high
