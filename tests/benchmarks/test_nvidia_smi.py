"""nvidia_smi: what the driver says of each GPU, by NVML and in CSV alike; what it has no value for has no row."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import benchmark, gpus, nvml, process, tools
from pipelines.errors import UnknownOutput
from pipelines.records import Outcome, Parsed
from tests import make
from tests.benchmarks import nvml_library

SMI = benchmark.get("nvidia_smi")
SAMPLES = Path(__file__).parents[1] / "samples/nvidia_smi"
STANDINS = Path(__file__).parents[1] / "standins/nvidia"
NAMES = sorted(path.name for path in SAMPLES.glob("*.json"))


def _parse(stdout: str, exit_status: int = 0, stderr: str = "") -> Parsed:
    job = make.job(benchmark="nvidia_smi", case="inventory")
    return SMI.parse(make.raw(job, tool="fleetmark-probe", stdout=stdout, exit_status=exit_status, stderr=stderr))


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
        "memory_clock": 2619e6, "memory_clock_max": 2619e6, "memory_total": 81559 * 2**20, "memory_used": 600 * 2**20,
        "pcie_generation": 1, "pcie_generation_max": 5, "pcie_width": 16, "pcie_width_max": 16,
        "ecc_corrected_volatile": 0, "ecc_corrected_aggregate": 0, "ecc_uncorrected_volatile": 0,
        "ecc_uncorrected_aggregate": 2, "remapped_correctable": 0, "remapped_uncorrectable": 1, "remap_pending": 0,
        "remap_failure": 0, "clocks_event_reasons": 4,
    }  # fmt: skip
    assert alive.texts["driver"] == nvml.driver() == "570.86.15"
    assert (lost.values, lost.problem) == ({}, "GPU is lost")


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


def _is_honest_or_unknown(stdout: str) -> None:
    try:
        parsed = _parse(stdout)
    except UnknownOutput:
        return
    assert (parsed.outcome is Outcome.OK) == (not parsed.reason)
    for each in parsed.measurements:
        assert math.isfinite(each.value)
        assert each.unit == SMI.metric(each.metric).unit


DAMAGE = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.just([]), st.just({}))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(NAMES), st.floats(0, 1), st.text(max_size=12), st.data())
def test_damaged_document_is_read_honestly_or_refused(name: str, where: float, put: str, data: st.DataObject) -> None:
    text = (SAMPLES / name).read_text()
    at = int(where * len(text))
    _is_honest_or_unknown(text[:at] + put)
    _is_honest_or_unknown(text[:at] + put + text[at + len(put) :])
    document: Any = json.loads(text)
    if document.get("csv"):
        cells = document["csv"].split(", ")
        cells[data.draw(st.integers(0, len(cells) - 1))] = put
        document["csv"] = ", ".join(cells)
    else:
        values = document["gpus"][0]["values"]
        values[data.draw(st.sampled_from(sorted(values)))] = data.draw(DAMAGE)
    _is_honest_or_unknown(json.dumps(document))
    document[data.draw(st.sampled_from(sorted(document)))] = data.draw(DAMAGE)
    _is_honest_or_unknown(json.dumps(document))
