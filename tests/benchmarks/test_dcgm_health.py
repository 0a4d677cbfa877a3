"""dcgm_health: what the watches say of the node and of each GPU that is not well; and how they are left."""

import json
import os
import queue
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import benchmark, process, tools
from pipelines.process import Completed
from pipelines.records import Outcome, Parsed
from tests import make
from tests.benchmarks.placed import assert_honest_or_unknown, damaged, each_altered
from tests.node import waiting

HEALTH = benchmark.get("dcgm_health")
SAMPLES = Path(__file__).parents[1] / "samples/dcgm_health"
STANDINS = Path(__file__).parents[1] / "standins/dcgm"
FETCHED = 'Health monitor systems report\n{"body": {"PCIe": {"value": "Off"}, "Memory": {"value": "On"}}}\n'


def _parse(stdout: str, exit_status: int | None = 0) -> Parsed:
    return HEALTH.parse(_raw(stdout, exit_status))


def _raw(stdout: str, exit_status: int | None = 0) -> Any:
    job = make.job(benchmark="dcgm_health", case="all")
    return make.raw(job, tool="fleetmark-probe", stdout=stdout, exit_status=exit_status)


def _document(*calls: tuple[str, str], exit_status: int = 0) -> str:
    ended = {"exit_status": exit_status, "timed_out": False, "stderr": ""}
    return json.dumps(
        {"probe": "dcgm_health", "calls": [{"what": what, "stdout": out, **ended} for what, out in calls]}
    )


def _checked(name: str, *more: tuple[str, str]) -> str:
    return _document(("-f", FETCHED), *more, ("-c", (SAMPLES / name).read_text()))


def _values(parsed: Parsed, metric: str) -> dict[str, float]:
    return {" ".join(each.labels.values()): each.value for each in parsed.measurements if each.metric == metric}


def test_every_part_that_is_not_well_has_its_rows_and_its_text_in_one_line() -> None:
    parsed = _parse(_checked("4.6.0-several.json"))
    assert parsed.outcome is Outcome.OK
    assert _values(parsed, "healthy") == {"": 0, "0": 0, "3": 0, "Switch 1": 0}
    assert set(_values(parsed, "incidents")) == {
        "0 pcie warning",
        "0 thermal warning",
        "3 memory failure",
        "Switch 1 nvlink failure",
    }
    assert parsed.notes[0] == (
        "gpu 0, pcie: Warning: Detected more than 8 PCIe replays per minute for GPU 0 : 32 Reconnect PCIe card. "
        "Run system side PCIE diagnostic utilities to verify hops off the GPU board."
    )


def test_healthy_node_has_one_row() -> None:
    assert _values(_parse(_checked("3.3.9-healthy.json", ("-s", "ok"))), "healthy") == {"": 1}


def test_watches_that_an_operator_left_off_are_named() -> None:
    assert _parse(_checked("3.3.9-healthy.json")).notes == (
        "somebody else has set the watches, and these are off: PCIe",
    )


@pytest.mark.parametrize(
    ("printed", "status", "outcome"),
    [
        ("Error: Unable to connect to host engine. Host engine connection invalid/disconnected.\n", 235, "config"),
        ("Error: Health watches not enabled. Please enable watches. \n", 253, "config"),
        ("Error: Unable to check health watches. Return: GPU is lost\n", 253, "tool_failed"),
    ],
)
def test_call_that_fails_gives_no_health(printed: str, status: int, outcome: str) -> None:
    parsed = _parse(_document(("-f", printed), exit_status=status))
    assert parsed.outcome == outcome
    assert printed.strip() in parsed.reason
    assert not parsed.measurements


def _run(folder: Path, watch_s: float = 0, started: Callable[[int], None] = lambda _: None) -> Completed:
    argv = ("fleetmark-probe", "dcgm_health", f"--watch-s={watch_s}")
    environ = {"PATH": f"{STANDINS}:{os.environ['PATH']}", "TMPDIR": str(folder)}
    return process.run(argv, timeout_s=60, environ=environ, started=started)


@pytest.mark.integration
def test_watches_that_were_off_are_set_asked_and_off_again(tmp_path: Path) -> None:
    (tmp_path / "health").write_text("3.3.9-memory_warning.json")
    done = _run(tmp_path)
    assert _values(_parse(done.stdout, done.exit_status), "healthy") == {"": 0, "0": 0}
    calls = ["-g 0 -f -j", "-g 0 -s a", "-g 0 -c -j", "-g 0 --clear"]
    assert (tmp_path / "calls").read_text().splitlines() == calls
    assert (tmp_path / "watches").read_text() == ""


@pytest.mark.integration
def test_watches_of_an_operator_are_asked_and_left_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "watches").write_text("pm")
    done = _run(tmp_path, watch_s=3600)
    assert _values(_parse(done.stdout, done.exit_status), "healthy") == {"": 1}
    assert (tmp_path / "watches").read_text() == "pm"


@pytest.mark.integration
def test_probe_that_is_ended_while_it_watches_leaves_no_watches(tmp_path: Path) -> None:
    groups: queue.SimpleQueue[int] = queue.SimpleQueue()
    watches = tmp_path / "watches"
    with ThreadPoolExecutor(1) as pool:
        probe = pool.submit(_run, tmp_path, 3600, groups.put)
        group = groups.get(timeout=60)
        waiting.until(lambda: watches.exists() and watches.read_text() == "a", "watches that are set")
        os.kill(group, signal.SIGTERM)
        done = probe.result()
    assert done.exit_status == 128 + signal.SIGTERM
    assert (tmp_path / "calls").read_text().splitlines()[1] == "-g 0 -s a"
    assert (tmp_path / "watches").read_text() == ""


@pytest.mark.integration
def test_version_is_that_of_dcgmi_and_a_node_without_it_is_not_measured(tmp_path: Path) -> None:
    environ = {"PATH": f"{STANDINS}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    found = tools.find(HEALTH, environ)
    assert (found.version, found.simulated) == ("3.3.9", True)
    without = tools.find(HEALTH, {"PATH": "/usr/bin:/bin"}).refusal
    assert without is not None
    assert without.outcome is Outcome.NOT_MEASURED
    assert "datacenter-gpu-manager" in without.reason


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["3.3.9-memory_warning.json", "4.6.0-several.json"]), st.data())
def test_damaged_text_is_read_honestly_or_refused(name: str, data: st.DataObject) -> None:
    text, whole = (SAMPLES / name).read_text(), _checked(name)
    broken = data.draw(damaged(text))
    assert_honest_or_unknown(HEALTH, _raw(_document(("-f", FETCHED), ("-c", broken))))
    assert_honest_or_unknown(HEALTH, _raw(_document(("-f", broken), ("-c", text))))
    assert_honest_or_unknown(HEALTH, _raw(data.draw(damaged(whole))))


def test_report_or_document_with_a_wrong_value_is_read_honestly_or_refused() -> None:
    text = (SAMPLES / "4.6.0-several.json").read_text()
    report, document = json.loads(text), json.loads(_checked("4.6.0-several.json"))
    for altered in each_altered(report, report):
        assert_honest_or_unknown(HEALTH, _raw(_document(("-f", FETCHED), ("-c", json.dumps(altered)))))
    for altered in each_altered(document, document):
        assert_honest_or_unknown(HEALTH, _raw(json.dumps(altered)))
