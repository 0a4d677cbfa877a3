"""What fio is asked: parameters that are checked, and a command line that no parameter can bend."""

import re
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipelines.benchmark import Workplace
from pipelines.benchmarks.fio.params import DEFAULTS, Params
from pipelines.errors import BadParameter
from pipelines.records import Name
from tests.benchmarks.fio_samples import FIO

PLACE = Workplace(
    scratch=PurePosixPath("/mnt/scratch/job"),
    output=PurePosixPath("/mnt/scratch/output"),
    direct_io=True,
    tool_version="3.33",
)
PROFILES = st.sampled_from(tuple(DEFAULTS))
OPTIONS = re.compile(
    r"output|output-format|eta|name|thread|directory|rw|bs|iodepth|numjobs|size|ioengine|direct|randseed"
    r"|refill_buffers|scramble_buffers|time_based|runtime|ramp_time|overwrite|fsync|end_fsync|fallocate|rwmixread"
)
GOOD: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"profile": PROFILES},
    optional={
        "block_size_bytes": st.integers(1, 2**15).map(lambda blocks: blocks * 512),
        "iodepth": st.integers(1, 1024),
        "numjobs": st.integers(1, 64),
        "size_bytes": st.integers(1, 2**20).map(lambda mebibytes: mebibytes * 2**20),
        "runtime_s": st.floats(0.1, 3600),
        "ramp_s": st.floats(0, 600),
        "read_percent": st.integers(1, 99),
        "fsync_bytes": st.integers(1, 2**20).map(lambda blocks: blocks * 512),
        "engine": st.sampled_from(["libaio", "io_uring", "psync"]),
        "direct": st.sampled_from(["auto", "on", "off"]),
    },
)
ANYTHING = st.one_of(st.text(), st.integers(), st.floats(), st.booleans())
HOSTILE: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {}, optional={name: st.one_of(ANYTHING, PROFILES) for name in Params.model_fields}
)


def _argv(given: dict[str, Any], place: Workplace = PLACE) -> tuple[str, ...]:
    return FIO.command(FIO.checked_params(given), place).argv


def _accepted(given: dict[str, Any]) -> Params | None:
    try:
        return Params.model_validate(given)
    except ValidationError:
        return None


@given(st.one_of(GOOD, HOSTILE))
def test_every_argument_is_one_of_a_fixed_set_of_options_with_a_plain_value(parameters: dict[str, Any]) -> None:
    params = _accepted(parameters)
    if params is None:
        return
    tool, *arguments = FIO.command(params, PLACE).argv
    assert tool == "fio"
    for argument in arguments:
        option, value = re.fullmatch(r"--([a-z_-]+)=([A-Za-z0-9_+./-]+)", argument).groups()  # type: ignore[union-attr]
        assert OPTIONS.fullmatch(option)
        assert "/" not in value or option in {"output", "directory"}
    assert "--directory=/mnt/scratch/job" in arguments
    assert "--output=/mnt/scratch/output" in arguments


@given(st.one_of(GOOD, HOSTILE))
def test_parameters_read_back_as_they_were(parameters: dict[str, Any]) -> None:
    params = _accepted(parameters)
    if params is not None:
        assert Params.model_validate(params.model_dump(mode="json", exclude_none=True)) == params
        assert Params.model_validate_json(params.model_dump_json(exclude_none=True)) == params


@given(GOOD)
def test_a_case_is_always_a_name(parameters: dict[str, Any]) -> None:
    params = _accepted(parameters)
    if params is not None:
        TypeAdapter(Name).validate_python(FIO.case(params))


@given(GOOD, GOOD)
def test_loads_of_the_same_case_differ_in_nothing_but_their_duration(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    first, second = _accepted(one), _accepted(other)
    if first and second and FIO.case(first) == FIO.case(second):
        duration = {"runtime_s", "ramp_s"}
        assert first.model_dump(exclude=duration) == second.model_dump(exclude=duration)


@pytest.mark.parametrize("profile", DEFAULTS)
def test_the_case_of_a_profile_as_it_is_bears_its_name(profile: str) -> None:
    assert FIO.case(FIO.checked_params({"profile": profile})) == profile


def test_a_case_names_what_differs_from_its_profile() -> None:
    given: dict[str, Any] = {
        "profile": "rand_read",
        "block_size_bytes": 16384,
        "iodepth": 64,
        "numjobs": 4,
        "direct": "off",
    }
    assert FIO.case(FIO.checked_params(given)) == "rand_read-bs16KiB-qd64-j4-buffered"


@pytest.mark.parametrize(
    ("given", "parameter", "problem"),
    [
        ({"profile": "read"}, "profile", "should be"),
        ({"filename": "/dev/nvme0n1"}, "filename", "there is no such parameter"),
        ({"block_size_bytes": 1000}, "block_size_bytes", "multiple of 512"),
        ({"block_size_bytes": 0}, "block_size_bytes", "greater than or equal"),
        ({"size_bytes": 2**50}, "size_bytes", "less than or equal"),
        ({"size_bytes": 2**20 + 1}, "size_bytes", "multiple of block_size_bytes"),
        ({"iodepth": 0}, "iodepth", "greater than or equal"),
        ({"numjobs": 65}, "numjobs", "less than or equal"),
        ({"runtime_s": float("nan")}, "runtime_s", ""),
        ({"runtime_s": float("inf")}, "runtime_s", "less than or equal"),
        ({"runtime_s": None}, "runtime_s", "needs a number"),
        ({"profile": "mixed", "read_percent": 100}, "read_percent", "less than or equal"),
        ({"profile": "checkpoint", "fsync_bytes": 2**20 + 512}, "fsync_bytes", "multiple of block_size_bytes"),
        ({"engine": "psync"}, "engine", "iodepth must be 1"),
        ({"engine": "libaio --filename=/dev/sda"}, "engine", "should be"),
        ({"direct": "1"}, "direct", "should be"),
    ],
)
def test_a_parameter_that_fio_could_not_run_with_is_refused_by_name(
    given: dict[str, Any], parameter: str, problem: str
) -> None:
    with pytest.raises(BadParameter) as caught:
        FIO.checked_params(given)
    assert parameter in str(caught.value)
    assert problem in str(caught.value)


def test_a_parameter_without_use_in_a_profile_is_dropped_from_its_record() -> None:
    checkpoint = FIO.checked_params({"profile": "checkpoint", "runtime_s": 3, "read_percent": 50})
    assert checkpoint == FIO.checked_params({"profile": "checkpoint"})
    assert "runtime_s" not in checkpoint.model_dump(exclude_none=True)


@pytest.mark.parametrize(
    ("direct", "filesystem_takes_it", "expected"),
    [("auto", True, "1"), ("auto", False, "0"), ("on", False, "1"), ("off", True, "0")],
)
def test_direct_io_is_used_where_the_filesystem_takes_it_and_said(
    direct: str, filesystem_takes_it: bool, expected: str
) -> None:
    place = Workplace(PLACE.scratch, PLACE.output, direct_io=filesystem_takes_it, tool_version="3.33")
    command = FIO.command(FIO.checked_params({"direct": direct}), place)
    assert f"--direct={expected}" in command.argv
    assert command.labels["direct"] == ("true" if expected == "1" else "false")


def test_jobs_are_threads_so_that_a_killed_fio_leaves_nothing_running() -> None:
    assert "--thread=1" in _argv({})


def test_a_checkpoint_is_made_durable_as_it_goes_and_at_its_end() -> None:
    argv = _argv({"profile": "checkpoint"})
    assert {"--rw=write", "--bs=1048576", "--fsync=64", "--end_fsync=1", "--direct=0"} <= set(argv)
    assert not any(argument.startswith(("--runtime", "--time_based")) for argument in argv)


def test_a_checkpoint_has_a_floor_of_500_megabytes_per_second() -> None:
    (floor,) = FIO.floors(FIO.checked_params({"profile": "checkpoint"}))
    assert (floor.metric, floor.minimum, floor.unit) == ("write_bandwidth", 500_000_000, "B/s")
    assert not FIO.floors(FIO.checked_params({"profile": "seq_write"}))


def test_small_blocks_are_filled_anew_and_large_ones_altered() -> None:
    assert "--refill_buffers=1" in _argv({"profile": "rand_write"})
    assert {"--refill_buffers=0", "--scramble_buffers=1"} <= set(_argv({"profile": "checkpoint"}))


def test_a_cost_counts_the_files_of_every_job() -> None:
    one = FIO.cost(FIO.checked_params({"size_bytes": 2**30}))
    four = FIO.cost(FIO.checked_params({"size_bytes": 2**30, "numjobs": 4}))
    assert one.written_bytes >= 2**30
    assert four.written_bytes >= 4 * 2**30
    assert four.seconds > one.seconds


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("fio-3.33\n", "3.33"),
        ("fio-3.33-dirty\n", "3.33-dirty"),
        ("fio-3.36-5-g3d7c\n", "3.36-5-g3d7c"),
        ("fio-4.0", "4.0"),
        ("fio 3", None),
        ("bash: fio: command not found", None),
        ("", None),
    ],
)
def test_a_version_is_read_with_its_suffix(text: str, version: str | None) -> None:
    assert FIO.version(text) == version
