"""raw_device: its command, what is made of real outputs, and jobs on a real block device from plan to row."""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pipelines import approvals, benchmark, keys, plan, stages
from pipelines.approvals import Answer
from pipelines.benchmark import DEVICE_EDGE_BYTES, Workplace
from pipelines.errors import BadParameter, UnknownOutput
from pipelines.records import Name, Outcome, Parsed, RawOutput, Suite, SuiteEntry
from pipelines.settings import Settings
from pipelines.storage import Store
from tests import make
from tests.node.disks import MIB, SIZE_BYTES, Attach, attached

FOLDER = Path(__file__).parents[1] / "samples/raw_device"
RAW_DEVICE = benchmark.get("raw_device")
PLACE = Workplace(Path("/s"), Path("/s/output"), True, "3.33", device=Path("/dev/nvme0n1"))
SHORT: dict[str, Any] = {"size_bytes": 8 * MIB, "runtime_s": 0.3, "ramp_s": 0.1}
SAMPLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rand_read": ({"profile": "rand_read", **SHORT}, {}),
    "seq_write": ({"profile": "seq_write", **SHORT}, {}),
    "mixed": ({"profile": "mixed", **SHORT}, {}),
    "numjobs2": ({"profile": "rand_read", "numjobs": 2, **SHORT}, {}),
    "direct_einval": ({"profile": "rand_write", "block_size_bytes": 512, **SHORT}, {"exit_status": 1}),
    "gone": (
        {"profile": "seq_write", **SHORT},
        {"exit_status": 2, "stderr": "fio: file creation disallowed by allow_file_create=0\n"},
    ),
    "timeout": ({"profile": "rand_read", **SHORT, "runtime_s": 30}, {"exit_status": 128, "timed_out": True}),
    "timeout_in_fill": ({"profile": "rand_read", **SHORT}, {"exit_status": 128, "timed_out": True}),
}
WHOLE = pytest.mark.parametrize("name", ["rand_read", "seq_write", "mixed", "numjobs2"])
PARAMETERS = st.fixed_dictionaries(
    {"profile": st.sampled_from(["seq_read", "seq_write", "rand_read", "rand_write", "mixed"])},
    optional={
        "device": st.integers(0, 63),
        "block_size_bytes": st.sampled_from([512, 4096, 16 * 1024 * 1024 - 512, MIB]),
        "iodepth": st.integers(1, 1024),
        "numjobs": st.integers(1, 64),
        "size_bytes": st.integers(1, 2**20).map(lambda number: number * MIB),
        "read_percent": st.integers(1, 99),
        "engine": st.sampled_from(["libaio", "io_uring"]),
    },
)


def of(given: dict[str, Any], **fields: Any) -> RawOutput:
    params = RAW_DEVICE.checked_params(given)
    complete = params.model_dump(mode="json", exclude_none=True)
    job = make.job(benchmark="raw_device", case=RAW_DEVICE.case(params), params=complete, device="SERIAL-1")
    return make.raw(job, **fields)


def sample(name: str, **fields: Any) -> RawOutput:
    given, ended = SAMPLES[name]
    return of(given, **{"output": (FOLDER / f"3.33-{name}.json").read_text(), **ended, **fields})


def values(parsed: Parsed) -> dict[str, float]:
    return {measurement.metric: measurement.value for measurement in parsed.measurements}


# --- the command --------------------------------------------------------------------------------------------


def _accepted(parameters: dict[str, Any]) -> Any:
    try:
        return RAW_DEVICE.checked_params(parameters)
    except BadParameter:
        return None


@given(PARAMETERS)
def test_a_command_names_one_device_makes_no_file_and_keeps_off_the_ends_of_the_disk(
    parameters: dict[str, Any],
) -> None:
    params = _accepted(parameters)
    if params is None:
        return
    TypeAdapter(Name).validate_python(RAW_DEVICE.case(params))
    argv = RAW_DEVICE.command(params, PLACE).argv
    assert {word for word in argv if "/" in word} == {"--output=/s/output", "--filename=/dev/nvme0n1"}
    jobs = " ".join(argv).split(" --name=")[1:]
    assert [job.split()[0] for job in jobs] == ["fill", params.profile]
    ends = []
    for job in jobs:
        said = dict(re.findall(r"--(\w+)=(\S+)", job))
        assert (said["filename"], said["allow_file_create"], said["direct"]) == ("/dev/nvme0n1", "0", "1")
        assert int(said["offset"]) == DEVICE_EDGE_BYTES
        increments = (int(said.get("numjobs", 1)) - 1) * int(said.get("offset_increment", 0))
        ends.append(DEVICE_EDGE_BYTES + increments + int(said["size"]))
    assert ends[0] == ends[1] == DEVICE_EDGE_BYTES + RAW_DEVICE.cost(params).written_bytes


def test_a_block_that_does_not_fit_into_a_jobs_part_is_refused() -> None:
    with pytest.raises(BadParameter, match="multiple of block_size_bytes"):
        RAW_DEVICE.checked_params({"size_bytes": MIB, "block_size_bytes": 2 * MIB})


def test_two_devices_with_the_same_load_are_two_cases() -> None:
    cases = [RAW_DEVICE.case(RAW_DEVICE.checked_params({"device": number})) for number in (0, 1)]
    assert cases == ["rand_read", "rand_read-d1"]


# --- what is made of its output -----------------------------------------------------------------------------


@WHOLE
def test_only_the_load_is_measured_and_not_what_prepared_the_disk(name: str) -> None:
    raw = sample(name)
    parsed = RAW_DEVICE.parse(raw)
    assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
    params = RAW_DEVICE.params_of(raw.job)
    assert RAW_DEVICE.required(params) <= set(values(parsed))
    assert {histogram.metric for histogram in parsed.histograms} == {
        f"{verb}_latency" for verb, used in (("read", params.reads), ("write", params.writes)) if used
    }
    for measurement in parsed.measurements:
        metric = RAW_DEVICE.metric(measurement.metric)
        assert metric.unit == measurement.unit
        assert metric.low <= measurement.value <= metric.high
        assert measurement.labels["device"] == "SERIAL-1"


def test_a_real_output_gives_exactly_the_golden_result() -> None:
    golden = (FOLDER / "3.33-mixed.golden.json").read_text()
    assert RAW_DEVICE.parse(sample("mixed")) == Parsed.model_validate_json(golden)


@pytest.mark.parametrize(
    ("name", "outcome", "reason"),
    [
        ("direct_einval", Outcome.CONFIG, "EINVAL (Invalid argument) with direct I/O"),
        ("gone", Outcome.TOOL_FAILED, "fio ended with exit status 2: fio: file creation disallowed"),
        ("timeout", Outcome.TRUNCATED, "fio was ended after 60 s, the job's timeout"),
        ("timeout_in_fill", Outcome.TRUNCATED, "fio was ended after 60 s, the job's timeout"),
    ],
)
def test_what_did_not_end_well_has_its_reason(name: str, outcome: Outcome, reason: str) -> None:
    parsed = RAW_DEVICE.parse(sample(name))
    assert parsed.outcome is outcome
    assert parsed.reason.startswith(reason)


def test_a_document_without_the_load_is_truncated_and_measures_nothing() -> None:
    filled_only = sample("rand_read").output or ""
    parsed = RAW_DEVICE.parse(sample("rand_read", output=filled_only.replace('"rand_read"', '"another"')))
    assert (parsed.outcome, parsed.reason, parsed.measurements) == (Outcome.TRUNCATED, "0 of 1 jobs reported", ())


@given(st.sampled_from(["rand_read", "numjobs2", "gone", "timeout_in_fill"]), st.floats(0, 1), st.text(max_size=20))
def test_damaged_output_is_an_outcome_or_the_one_documented_error(name: str, where: float, put: str) -> None:
    text = sample(name).output or ""
    at = int(where * len(text))
    for damaged in (text[:at], text[:at] + put + text[at + 40 :]):
        try:
            parsed = RAW_DEVICE.parse(sample(name, output=damaged))
        except UnknownOutput:
            continue
        assert (parsed.outcome is Outcome.OK) == (not parsed.reason)
        assert all(value > 0 or metric.startswith("cpu_") for metric, value in values(parsed).items())


def test_every_sample_has_a_run_that_gave_it() -> None:
    assert {path.name for path in FOLDER.iterdir() if ".golden" not in path.name} == {
        f"3.33-{name}.json" for name in SAMPLES
    }


# --- on a real disk -----------------------------------------------------------------------------------------


@pytest.fixture
def attach(tmp_path: Path) -> Iterator[Attach]:
    with attached(tmp_path) as attach:
        yield attach


@pytest.fixture
def name() -> str:
    """One that no other loop device of this machine has."""
    return f"disk-{uuid.uuid4().hex[:12]}"


def _measured(settings: Settings, store: Store, serial: str, *profiles: str) -> list[RawOutput]:
    """The raw outputs of a run that was approved, one for each profile."""
    entry = SuiteEntry(benchmark="raw_device", params=SHORT, matrix={"profile": profiles})
    place = make.node(devices=(serial,), free_floor_bytes=0)
    made = plan.make(
        Suite(name="disks", description="", entries=(entry,)), (place,), run_id=make.RUN_ID, created_at=make.AT,
        trigger="manual",
    )  # fmt: skip
    stages.publish_plan(store, made)
    answer = Answer(granted=True, by=("bob",), asked_by="ann", at=make.AT)
    _, sha256 = approvals.record(store, make.RUN_ID, keys.sha256(store.read(keys.plan_key(make.RUN_ID))), answer)
    stored = stages.measure_devices(settings, store, make.RUN_ID, "gpu-01", 1, print, approval=sha256)
    return [RawOutput.model_validate_json(store.read(key)) for key in stored]


@pytest.mark.integration
def test_an_empty_disk_is_measured_in_its_middle_and_is_as_unsigned_as_before(
    settings: Settings, store: Store, attach: Attach, name: str
) -> None:
    disk = attach(name)
    raws = _measured(settings, store, f"loop:{name}", "rand_write", "rand_read")
    for raw in raws:
        parsed = RAW_DEVICE.parse(raw)
        assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
        assert RAW_DEVICE.required(RAW_DEVICE.params_of(raw.job)) <= set(values(parsed))
        assert (raw.facts["device"], raw.facts["device_name"]) == (f"loop:{name}", disk.name)
    data = disk.read_bytes()
    assert data[:DEVICE_EDGE_BYTES] == data[-DEVICE_EDGE_BYTES:] == bytes(DEVICE_EDGE_BYTES)
    middle = data[DEVICE_EDGE_BYTES:-DEVICE_EDGE_BYTES]
    assert len(middle) == SIZE_BYTES - 2 * DEVICE_EDGE_BYTES
    assert all(any(middle[start : start + MIB]) for start in range(0, SHORT["size_bytes"], MIB))
    assert not any(middle[SHORT["size_bytes"] :])


@pytest.mark.integration
def test_an_approved_disk_that_is_signed_is_not_touched(
    settings: Settings, store: Store, attach: Attach, name: str
) -> None:
    disk = attach(name)
    with disk.open("r+b") as file:
        file.write(b"LUKS\xba\xbe\0\x01".ljust(512, b"\0"))  # the header of an encrypted volume, cryptsetup(8)
    before = disk.read_bytes()
    (raw,) = _measured(settings, store, f"loop:{name}", "seq_write")
    assert raw.refusal is not None
    assert raw.refusal.outcome is Outcome.CONFIG
    assert f"raw device loop:{name}: {disk.name} is signed (crypto_LUKS at 0x0)" in raw.refusal.reason
    assert (raw.argv, disk.read_bytes()) == ((), before)
