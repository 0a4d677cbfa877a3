"""Telemetry: what NVML and the kernel say beside a tool becomes series, bounded and honest, and never ends a job."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipelines import energy, gauges, node, plan
from pipelines.gauges import Gauge, Reading
from pipelines.records import RawOutput, Series, SuiteEntry, Telemetry
from pipelines.settings import Settings
from pipelines.telemetry import Sampler
from pipelines.tracks import MOST_SAMPLES, Track
from tests import make
from tests.node.test_node import NODE, SMALL

STANDIN = Path(__file__).parents[1] / "standins/nvidia/nvml.c"
SAMPLE = """
import threading
from pipelines.telemetry import Sampler
sampler = Sampler(0.05)
sampler.start()
threading.Event().wait(0.5)
print(sampler.stop().model_dump_json())
"""


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Telemetry:
    """Half a second beside the stand-in of NVML, in a process that finds it as it would find the driver's."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in of NVML")
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run((compiler, "-shared", "-fPIC", "-o", library, STANDIN), check=True)
    environ = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run((sys.executable, "-c", SAMPLE), env=environ, check=True, capture_output=True, timeout=60)
    return Telemetry.model_validate_json(done.stdout)


def _of(told: Telemetry, metric: str) -> dict[str, Series]:
    nvml = [each for each in told.series if each.source == "nvml" and each.metric == metric]
    return {" ".join(each.labels.values()): each for each in nvml}


def test_what_nvml_says_is_in_base_units_with_the_gpu_as_a_label(sampled: Telemetry) -> None:
    said = {(each.metric, each.unit, each.mean) for each in sampled.series if each.labels == {"device": "gpu0"}}
    assert said - {each for each in said if each[0] == "energy"} == {
        ("power", "W", 400.0),
        ("temperature", "°C", 64.0),
        ("sm_clock", "Hz", 1.98e9),
        ("memory_clock", "Hz", 2.619e9),
        ("memory_used", "B", 1e10),
        ("utilization", "ratio", 0.97),
    }
    assert all(each.count > 2 for each in sampled.series)


def test_a_gpu_is_throttled_for_a_reason_and_idling_is_none(sampled: Telemetry) -> None:
    throttled = {key: each.mean for key, each in _of(sampled, "throttled").items()}
    assert {key for key, share in throttled.items() if share} == {"gpu0 sw_power_cap"}
    assert len(throttled) == 12


def test_what_a_gpu_does_not_have_is_absent_and_what_fails_is_told(sampled: Telemetry) -> None:
    assert set(_of(sampled, "energy")) == {"gpu0"}
    assert set(_of(sampled, "temperature")) == {"gpu0"}
    assert {note for note in sampled.notes if note.startswith("nvml")} == {
        "nvml: gpu1 temperature is not read: GPU is lost",
        "nvml: gpu2 is not read: GPU is lost",
    }


def test_energy_is_that_of_the_counter_or_else_of_the_power(sampled: Telemetry) -> None:
    told = {(each.metric, each.labels.get("device")): each.value for each in energy.measurements(sampled)}
    counter, power = _of(sampled, "energy")["gpu0"], _of(sampled, "power")["gpu1"]
    took_s = counter.seconds[-1] - counter.seconds[0]
    assert counter.samples[0] == 0.0
    assert told["energy", "gpu0"] == counter.samples[-1]
    assert told["energy", "gpu0"] == pytest.approx(400 * took_s, abs=400 * 0.3)
    assert told["energy", "gpu1"] == pytest.approx(100 * (power.seconds[-1] - power.seconds[0]))
    assert (told["power_mean", "gpu0"], told["power_mean", "gpu1"]) == (400.0, 100.0)
    assert energy.taken(sampled, 0.1, 0.3) == pytest.approx(500 * 0.2, abs=400 * 0.3)


def test_sampling_takes_little_of_a_processor(sampled: Telemetry) -> None:
    """20 samples a second of two GPUs, with what loading NVML takes; a job has one a second."""
    assert 0 < sampled.cpu_s < 0.25


def test_on_a_machine_without_a_driver_nvml_says_nothing() -> None:
    sampler = Sampler(0.01)
    sampler.start()
    told = sampler.stop() or Telemetry()
    assert not [each for each in told.series if each.source == "nvml"]
    assert not [note for note in told.notes if note.startswith("nvml")]


def test_a_driver_that_does_not_answer_does_not_hold_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    stuck = Gauge("nvml", "gpu0 power", lambda: (Reading("power", "W", {}, float(os.read(reading, 1))),))
    monkeypatch.setattr(gauges, "every", lambda: ([stuck], []))
    monkeypatch.setattr("pipelines.telemetry._PATIENCE_S", 0.05)
    sampler = Sampler(1.0)
    sampler.start()
    told = sampler.stop()
    os.write(writing, b"1")
    assert told == Telemetry(notes=("telemetry: a source did not answer within 0.05 s",))


def test_a_package_counts_on_where_its_counter_begins_again(tmp_path: Path) -> None:
    zone = tmp_path / "class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("1000000\n")
    (gauge,) = gauges.packages(tmp_path)
    joules = []
    for value in ("900000\n", "100000\n", "50000\n", "60000\n"):
        (zone / "energy_uj").write_text(value)
        (reading,) = gauge.read()
        joules.append(reading.value)
    assert joules == [0.9, 1.1, 2.05, 2.06]
    assert (reading.metric, reading.unit, reading.labels) == ("energy", "J", {"device": "package-0"})


def test_a_long_job_keeps_a_bounded_number_of_samples_and_the_summary_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter(range(10**6))
    taken: list[float] = []
    enough = threading.Event()

    def read() -> tuple[Reading, ...]:
        taken.append(float(next(values)))
        if len(taken) == 40:
            enough.set()
        return (Reading("power", "W", {"device": "gpu0"}, taken[-1]),)

    monkeypatch.setattr(gauges, "every", lambda: ([Gauge("nvml", "gpu0 power", read)], []))
    sampler = Sampler(0.0001, most_samples=8)
    sampler.start()
    assert enough.wait(60)
    told = sampler.stop()
    assert told
    (series,) = told.series
    assert series.count == len(taken) >= 40
    assert len(series.samples) <= 9
    assert (series.minimum, series.maximum) == (0.0, taken[-1]) == (series.samples[0], series.samples[-1])
    assert list(series.seconds) == sorted(series.seconds)


def test_a_mean_is_over_time_and_what_never_changes_has_two_samples() -> None:
    track = Track("power", "W", {}, "nvml", 0.0, 100.0)
    track.add(9.0, 100.0)
    track.add(10.0, 300.0)
    assert track.series().mean == pytest.approx((9 * 100 + 200) / 10)
    still = Track("power", "W", {}, "nvml", 0.0, 100.0)
    for second in range(1, MOST_SAMPLES):
        still.add(float(second), 100.0)
    assert (still.series().seconds, still.series().samples) == ((0.0, MOST_SAMPLES - 1.0), (100.0, 100.0))


def _series(metric: str, device: str, seconds: tuple[float, ...], samples: tuple[float, ...]) -> Series:
    summary = {"count": len(samples), "minimum": min(samples), "mean": samples[0], "maximum": max(samples)}
    unit = {"energy": "J", "power": "W"}[metric]
    known = {"metric": metric, "unit": unit, "labels": {"device": device}, "source": "nvml", **summary}
    return Series.model_validate({**known, "seconds": seconds, "samples": samples})


def test_energy_of_a_window_is_interpolated() -> None:
    counter = _series("energy", "gpu0", (0.0, 1.0, 3.0), (0.0, 100.0, 700.0))
    power = _series("power", "gpu1", (0.0, 1.0, 3.0), (100.0, 100.0, 300.0))
    assert energy.within([counter], 0.5, 2.0) == {"gpu0": pytest.approx(400.0 - 50.0)}
    assert energy.within([power], 0.5, 2.0) == {"gpu1": pytest.approx(50.0 + 150.0)}
    assert energy.taken(Telemetry(series=(counter, power)), 0.5, 2.0) == pytest.approx(550.0)


def test_energy_of_a_window_that_was_not_sampled_is_none() -> None:
    counter = _series("energy", "gpu0", (0.0, 3.0), (0.0, 700.0))
    silent = _series("power", "gpu1", (0.0,), (100.0,))
    assert energy.taken(Telemetry(series=(counter,)), 1.0, 9.0) is None
    assert energy.taken(Telemetry(series=(counter,)), 2.0, 2.0) is None
    assert energy.taken(Telemetry(series=(counter, silent)), 1.0, 2.0) is None  # one GPU is not all of them
    assert energy.taken(None, 0.0, 1.0) is None


@pytest.mark.integration
def test_a_job_is_sampled_while_its_tool_runs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Gauge("hwmon", "a sensor", lambda: (Reading("temperature", "°C", {"device": "hwmon0"}, 41.0),))
    monkeypatch.setattr(gauges, "every", lambda: ([clock], ["rapl: it may not be read"]))
    (job,) = plan.jobs_of_entry(make.RUN_ID, NODE.name, SuiteEntry(benchmark="fio", params=SMALL))
    often = settings.model_copy(update={"telemetry_s": 0.02})
    raw = node.run_once(often, NODE, job, say=lambda _: None)
    assert raw.exit_status == 0
    assert raw.telemetry
    assert raw.telemetry.notes == ("rapl: it may not be read",)
    (series,) = raw.telemetry.series
    assert series.count >= 2
    assert series.seconds[0] >= 0
    assert series.seconds[-1] >= 0.1  # for which fio runs
    never = node.run_once(settings.model_copy(update={"telemetry_s": 0.0}), NODE, job, say=lambda _: None)
    assert never.telemetry is None


def test_a_raw_output_of_an_earlier_release_has_no_telemetry() -> None:
    document = json.loads(make.raw().model_dump_json())
    del document["telemetry"]
    assert RawOutput.model_validate_json(json.dumps(document)) == make.raw()


@pytest.mark.parametrize("metric", ["power", "energy"])
def test_what_is_too_large_to_be_added_up_gives_no_energy(metric: str) -> None:
    told = Telemetry(series=(_series(metric, "gpu0", (0.0, 1e300), (1e300, 1.7e308)),))
    overflow = Telemetry(series=(_series("energy", "gpu0", (0.0, 1.0), (-1.7e308, 1.7e308)),))
    assert {each.metric for each in energy.measurements(told)} <= {"power_mean", "energy"}
    assert energy.measurements(overflow) == ()
    assert energy.taken(overflow, 0.0, 1.0) is None
