"""nvidia_smi: what the driver says of each GPU, by NVML and in CSV alike; what it has no value for has no row."""

import json
import os
from pathlib import Path

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import benchmark, gpus, nvml, process, tools
from pipelines.errors import UnknownOutput
from pipelines.families import nvidia_gpus
from pipelines.records import Outcome, Parsed, RawOutput
from tests import make
from tests.benchmarks import nvml_library
from tests.benchmarks.placed import assert_honest_or_unknown, damaged, each_altered

SMI = benchmark.get("nvidia_smi")
SAMPLES = Path(__file__).parents[1] / "samples/nvidia_smi"
STANDINS = Path(__file__).parents[1] / "standins/nvidia"
NAMES = sorted(path.name for path in SAMPLES.glob("*.json"))


def _raw(stdout: str, exit_status: int = 0, stderr: str = "") -> RawOutput:
    job = make.job(benchmark="nvidia_smi", case="inventory")
    return make.raw(job, tool="fleetmark-probe", stdout=stdout, exit_status=exit_status, stderr=stderr)


def _parse(stdout: str, exit_status: int = 0, stderr: str = "") -> Parsed:
    return SMI.parse(_raw(stdout, exit_status, stderr))


def _values(parsed: Parsed) -> dict[str, float]:
    return {" ".join([each.metric, *each.labels.values()]): each.value for each in parsed.measurements}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver's library, in the place where pynvml keeps the one that it has loaded."""
    monkeypatch.setattr(pynvml, "nvmlLib", nvml_library.Library())
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})


def test_nvml_is_read_into_base_units_and_a_lost_gpu_is_a_problem_and_no_numbers(library: None) -> None:
    alive, lost = nvml.read()
    assert alive.values == {
        "temperature": 31, "power": 68.72, "power_limit": 700, "sm_clock": 345e6, "sm_clock_max": 1980e6,
        "memory_clock": 2619e6, "memory_clock_max": 2619e6, "memory_total": 81559 * 2**20, "memory_used": 4 * 2**20,
        "pcie_generation": 1, "pcie_generation_max": 5, "pcie_width": 16, "pcie_width_max": 16,
        "ecc_corrected_volatile": 0, "ecc_corrected_aggregate": 0, "ecc_uncorrected_volatile": 0,
        "ecc_uncorrected_aggregate": 2, "remapped_correctable": 0, "remapped_uncorrectable": 1, "remap_pending": 0,
        "remap_failure": 0, "clocks_event_reasons": 4,
    }  # fmt: skip
    assert alive.texts["driver"] == nvml.driver() == "570.86.15"
    assert (lost.values, lost.problem) == ({}, "GPU is lost")


def test_a_driver_that_lacks_newer_functions_is_asked_by_the_older_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML before 510 counts what the driver keeps as in use; before 535 it calls events of the clocks throttling."""
    newer = frozenset({"nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetCurrentClocksEventReasons"})
    monkeypatch.setattr(pynvml, "nvmlLib", nvml_library.Library(lacks=newer))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    alive, _ = nvml.read()
    assert (alive.values["memory_used"], alive.values["clocks_event_reasons"]) == (604 * 2**20, 4)


def test_facts_are_the_same_by_nvml_and_by_csv(library: None) -> None:
    by_csv = gpus.parse(
        "name, driver_version, vbios_version, memory.total [MiB], power.limit [W], ecc.mode.current, mig.mode.current\n"
        "NVIDIA H100 80GB HBM3, 570.86.15, 96.00.74.00.01, 81559, 700.00, Enabled, Disabled\n"
    )
    assert gpus.told(nvml.read()[:1]) == by_csv
    assert gpus.count(gpus.told(nvml.read())) == 2


def test_what_nvml_said_becomes_rows_of_the_gpus_that_answer() -> None:
    parsed = _parse((SAMPLES / "570.86.15-nvml_lost.json").read_text())
    values = _values(parsed)
    assert (values["gpus"], values["pcie_width_share 0"], values["remapped_rows 0 uncorrectable"]) == (1, 1, 1)
    assert values["ecc_errors 0 uncorrected manufacture"] == 2
    assert {name: value for name, value in values.items() if name.startswith("throttled") and value} == {
        "throttled 0 sw_power_cap": 1
    }
    assert not any(each.labels.get("gpu") == "1" for each in parsed.measurements)
    assert parsed.notes[0] == "gpu 1 does not answer: GPU is lost"


@pytest.mark.parametrize("name", ["550.90.07-csv.json", "525.147.05-csv.json"])
def test_csv_of_old_and_new_drivers_gives_the_same_rows_and_absent_values_none(name: str) -> None:
    parsed = _parse((SAMPLES / name).read_text())
    values = _values(parsed)
    assert (values["gpus"], values["pcie_width_share 0"], values["remap_failure 0"]) == (1, 0.5, 1)
    assert (values["sm_clock 0"], values["memory_total 0"], values["memory_used 0"]) == (345e6, 81559 * 2**20, 0)
    assert {name for name, value in values.items() if name.startswith("throttled") and value} == {
        "throttled 0 sw_power_cap",
        "throttled 0 hw_thermal",
    }
    assert not any("memory_temperature" in name or "retire" in name for name in values)
    assert not any(each.labels.get("gpu") == "1" for each in parsed.measurements)
    assert parsed.notes[0] == "gpu 1 does not answer: it has no value for anything"


def test_pages_that_were_retired_are_read_by_the_name_in_the_header() -> None:
    header = "index, retired_pages.single_bit_ecc.count, retired_pages.double_bit.count, retired_pages.pending"
    parsed = _parse(json.dumps({"probe": "nvidia_smi", "source": "csv", "csv": f"{header}\n0, 3, 1, Yes\n"}))
    values = {"retired_pages 0 single_bit": 3, "retired_pages 0 double_bit": 1, "retirement_pending 0": 1}
    assert _values(parsed) == {"gpus": 1, **values}
    assert set(header.split(", ")) <= set(nvidia_gpus.FIELDS)


def test_a_zero_that_can_only_stand_for_nothing_has_no_row() -> None:
    """Of a GPU that is not on PCI Express, say, or that has no sensor in its memory."""
    header = "index, temperature.memory, pcie.link.width.current, pcie.link.width.max, memory.used [MiB]"
    parsed = _parse(json.dumps({"probe": "nvidia_smi", "source": "csv", "csv": f"{header}\n0, 0, 0, 0, 0\n"}))
    assert _values(parsed) == {"gpus": 1, "memory_used 0": 0}


def test_every_row_of_a_sample_lies_in_its_honest_range() -> None:
    for name in NAMES:
        for each in _parse((SAMPLES / name).read_text()).measurements:
            metric = SMI.metric(each.metric)
            assert each.unit == metric.unit
            assert metric.low <= each.value <= metric.high


@pytest.mark.parametrize(
    ("status", "outcome"), [(69, Outcome.NOT_MEASURED), (1, Outcome.TOOL_FAILED)], ids=["no driver", "no answer"]
)
def test_driver_that_is_not_there_is_not_measured_and_one_that_fails_has_failed(status: int, outcome: Outcome) -> None:
    parsed = _parse("", status, "nvidia-smi ended with status 9 and said: NVIDIA-SMI has failed\n")
    assert parsed.outcome is outcome
    assert "NVIDIA-SMI has failed" in parsed.reason


def test_driver_without_gpus_measures_nothing() -> None:
    assert _parse('{"probe": "nvidia_smi", "source": "nvml", "gpus": []}').outcome is Outcome.NOT_MEASURED


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The stand-in of nvidia-smi on the PATH, and no NVML, whatever this machine has."""
    (tmp_path / "libnvidia-ml.so.1").touch()
    path = f"{STANDINS}:{os.environ['PATH']}"
    return {"PATH": path, "TMPDIR": str(tmp_path), "LD_LIBRARY_PATH": str(tmp_path)}


@pytest.mark.integration
def test_only_fields_that_nvidia_smi_knows_are_asked(tmp_path: Path, environ: dict[str, str]) -> None:
    (tmp_path / "older").touch()
    done = process.run(("fleetmark-probe", "nvidia_smi"), timeout_s=60, environ=environ)
    assert done.stdout == (SAMPLES / "525.147.05-csv.json").read_text()
    assert gpus.facts(environ)["gpu_driver"] == "525.147.05"


@pytest.mark.integration
def test_rows_of_the_stand_in_are_marked_as_simulated(environ: dict[str, str]) -> None:
    found = tools.find(SMI, environ)
    assert (found.version, found.simulated, found.refusal) == ("550.90.07", True, None)


@pytest.mark.parametrize("mask", [0.5, 2.0**64])
def test_reasons_that_are_no_mask_of_bits_are_unknown(mask: float) -> None:
    document = json.loads((SAMPLES / "570.86.15-nvml_lost.json").read_text())
    document["gpus"][0]["values"]["clocks_event_reasons"] = mask
    with pytest.raises(UnknownOutput, match="bit mask"):
        _parse(json.dumps(document))


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(NAMES), st.data())
def test_damaged_text_is_read_honestly_or_refused(name: str, data: st.DataObject) -> None:
    text = (SAMPLES / name).read_text()
    document = json.loads(text)
    assert_honest_or_unknown(SMI, _raw(data.draw(damaged(text))))
    if document["source"] == "csv":
        document["csv"] = data.draw(damaged(document["csv"]))
        assert_honest_or_unknown(SMI, _raw(json.dumps(document)))


@pytest.mark.parametrize("name", NAMES)
def test_document_with_a_wrong_value_is_read_honestly_or_refused(name: str) -> None:
    document = json.loads((SAMPLES / name).read_text())
    for altered in each_altered(document, document):
        assert_honest_or_unknown(SMI, _raw(json.dumps(altered)))
