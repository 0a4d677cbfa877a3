"""perftest_loopback: the probe starts server and client, and ends them; its document is judged by the client's end."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from pipelines import benchmark, process, tools
from pipelines.benchmark import Workplace
from pipelines.records import Outcome, RawOutput
from tests import make
from tests.benchmarks.placed import assert_honest_or_unknown, damaged, place

FOLDER = Path(__file__).parents[1] / "samples/perftest_loopback"
LOOPBACK = benchmark.get("perftest_loopback")
PROBE = "import sys; from pipelines.probes import main; sys.exit(main())"


def raw(params: dict[str, Any] | None = None, **fields: Any) -> RawOutput:
    checked = LOOPBACK.checked_params(params or {})
    job = make.job(
        benchmark="perftest_loopback",
        case=LOOPBACK.case(checked),
        params=checked.model_dump(mode="json", exclude_none=True),
    )
    return make.raw(job, tool="fleetmark-probe", **fields)


def probed(folder: Path, params: dict[str, Any] | None = None, **how: object) -> RawOutput:
    """The benchmark's own command, run in the folder with the stand-in on its PATH."""
    found = place(folder, "perftest", *LOOPBACK_PROGRAMS, **how)
    command = LOOPBACK.command(LOOPBACK.checked_params(params or {}), Workplace(folder, folder / "o", True, "6.06"))
    argv = (sys.executable, "-c", PROBE, *command.argv[1:])
    environ = {**os.environ, "PATH": f"{found}:{os.environ['PATH']}"}
    done = process.run(argv, timeout_s=60, cwd=folder, environ=environ)
    return raw(params, argv=done.argv, exit_status=done.exit_status, stdout=done.stdout, stderr=done.stderr)


LOOPBACK_PROGRAMS = ("ib_write_bw", "ib_read_bw", "ib_send_lat")


@pytest.mark.parametrize(
    ("params", "required"),
    [
        ({}, {"bandwidth", "message_rate"}),
        ({"operation": "send", "measure": "latency"}, {"latency_p50", "latency_p999"}),
    ],
)
def test_server_and_client_meet_on_a_port_that_is_free(
    params: dict[str, Any], required: set[str], tmp_path: Path
) -> None:
    parsed = LOOPBACK.parse(probed(tmp_path, params))
    assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
    assert required <= {each.metric for each in parsed.measurements}


@pytest.mark.parametrize(
    ("fails", "params", "outcome", "said"),
    [
        ("no device", {"operation": "read"}, Outcome.NOT_MEASURED, "Did not detect devices"),
        ("port down", {}, Outcome.TOOL_FAILED, "Port number 1 state is Down"),
        ("no cuda", {"use_cuda": 0}, Outcome.CONFIG, "built without CUDA"),
        ("died", {}, Outcome.TOOL_FAILED, "Completion with error at client"),
        ("killed", {}, Outcome.TRUNCATED, "signal 9"),
    ],
)
def test_what_fails_is_told_in_the_tools_words_and_leaves_no_server(
    fails: str, params: dict[str, Any], outcome: Outcome, said: str, tmp_path: Path
) -> None:
    parsed = LOOPBACK.parse(probed(tmp_path, params, fails=fails))
    assert parsed.outcome is outcome
    assert said in parsed.reason
    assert not parsed.measurements
    assert not _running(tmp_path)


@pytest.mark.integration
def test_a_server_that_does_not_end_after_its_client_is_ended(tmp_path: Path) -> None:
    ended = probed(tmp_path, fails="server hangs")
    assert LOOPBACK.parse(ended).outcome is Outcome.OK
    assert json.loads(ended.stdout)["server"] is None
    assert not _running(tmp_path)


def test_the_version_is_perftests_own_and_tells_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = place(tmp_path, "perftest", *LOOPBACK_PROGRAMS)
    printed = subprocess.run(
        [sys.executable, "-c", PROBE, *LOOPBACK.version_argv[1:]],
        env={**os.environ, "PATH": f"{found}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert tools.judge(LOOPBACK, printed) == tools.Tool("fleetmark-probe", "6.06", simulated=True)


def test_without_perftest_the_probe_says_what_is_missing(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROBE, *LOOPBACK.version_argv[1:]],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == os.EX_UNAVAILABLE
    assert "ib_write_bw is not installed" in ended.stderr
    refusal = tools.judge(LOOPBACK, ended.stdout + ended.stderr).refusal
    assert refusal is not None
    assert refusal.outcome is Outcome.NOT_MEASURED
    assert "apt-get install perftest" in refusal.reason


def test_a_sample_of_a_machine_without_a_device_is_not_measured() -> None:
    parsed = LOOPBACK.parse(raw({"operation": "read"}, stdout=(FOLDER / "6.06-no_device.json").read_text()))
    assert parsed.outcome is Outcome.NOT_MEASURED


def test_a_server_that_crashed_is_what_is_told_where_its_client_met_none() -> None:
    document = json.loads((FOLDER / "6.06-no_device.json").read_text())
    document["client"] |= {"exit_status": 1, "stderr": "Couldn't connect to 127.0.0.1:5300\n"}
    document["server"] |= {"exit_status": None, "signal": 11, "stderr": "Couldn't allocate MR\n"}
    parsed = LOOPBACK.parse(raw({"operation": "read"}, stdout=json.dumps(document)))
    assert parsed.outcome is Outcome.TOOL_FAILED
    assert parsed.reason == "ib_read_bw ended by crashing (signal 11): Couldn't allocate MR"


@settings(max_examples=100)
@given(damaged((FOLDER / "6.06-write_bw.json").read_text()))
def test_a_damaged_document_is_parsed_honestly_or_refused(broken: str) -> None:
    assert_honest_or_unknown(LOOPBACK, raw(stdout=broken))


def _running(folder: Path) -> list[str]:
    """Processes that work in the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == folder:
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found
