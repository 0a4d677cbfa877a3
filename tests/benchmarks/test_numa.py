"""numa: the probe under a stand-in of numactl with two nodes, the real one with one, and the ratio that comes of it."""

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
from pipelines.probes import numa as probe
from pipelines.records import Outcome, Parsed, RawOutput
from tests import make
from tests.benchmarks.placed import STANDINS, assert_honest_or_unknown, damaged, place

FOLDER = Path(__file__).parents[1] / "samples/numa"
NUMA = benchmark.get("numa")
PROBE = "import sys; from pipelines.probes import main; sys.exit(main())"
REAL = {"processors": "one", "rounds": 1, "duration_s": 5, "array_bytes": 2**25}
SMALL: dict[str, Any] = {"array_bytes": 2**20}


def text(name: str) -> str:
    return (FOLDER / f"0.15.06-{name}").read_text()


def raw(params: dict[str, Any], **fields: Any) -> RawOutput:
    checked = NUMA.checked_params(params)
    job = make.job(benchmark="numa", case=NUMA.case(checked), params=checked.model_dump(mode="json"))
    return make.raw(job, tool="fleetmark-probe", **fields)


def probed(folder: Path, path: str, params: dict[str, Any]) -> RawOutput:
    """The benchmark's own command, run in the folder."""
    command = NUMA.command(NUMA.checked_params(params), Workplace(folder, folder / "o", True, "0.15.06"))
    argv = (sys.executable, "-c", PROBE, *command.argv[1:])
    done = process.run(argv, timeout_s=120, cwd=folder, environ={**os.environ, "PATH": path})
    return raw(params, argv=done.argv, exit_status=done.exit_status, stdout=done.stdout, stderr=done.stderr)


def with_standins(folder: Path) -> str:
    found = place(folder, "numactl")
    return f"{place(found, 'stress-ng')}:{os.environ['PATH']}"


def shares(parsed: Parsed) -> dict[str, float]:
    return {each.labels["cpu_node"]: each.value for each in parsed.measurements if each.metric == "remote_share"}


def test_a_real_output_gives_exactly_the_golden_result() -> None:
    golden = Parsed.model_validate_json(text("two_nodes.golden.json"))
    assert golden.outcome is Outcome.OK
    assert NUMA.parse(raw(REAL, stdout=text("two_nodes.json"))) == golden


def test_local_and_across_are_measured_in_turns_and_their_ratio_is_the_tax(tmp_path: Path) -> None:
    ended = probed(tmp_path, with_standins(tmp_path), {**SMALL, "rounds": 3})
    parsed = NUMA.parse(ended)
    assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
    assert shares(parsed) == pytest.approx({"0": 0.6, "1": 0.6})
    runs = json.loads(ended.stdout)["runs"]
    order = [(run["cpu_node"], run["memory_node"]) for run in runs]
    there = [(0, 0), (0, 1), (1, 1), (1, 0)]
    back = [(0, 1), (0, 0), (1, 0), (1, 1)]
    assert order == there + back + there
    assert all(f"--membind={run['memory_node']}" in run["argv"] and "--stream=2" in run["argv"] for run in runs)
    assert len([each for each in parsed.measurements if each.metric == "bandwidth"]) == 12


def test_a_machine_with_one_socket_is_not_measured_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "numactl").write_text("#!/bin/sh\ncat <<'END'\n" + text("one_node.txt") + "END\n")
    (tmp_path / "numactl").chmod(0o755)
    parsed = NUMA.parse(probed(tmp_path, f"{tmp_path}:{os.environ['PATH']}", SMALL))
    assert parsed.outcome is Outcome.NOT_MEASURED
    assert parsed.reason.endswith(": this machine has one NUMA node with processors and memory: nothing is across")


def test_the_real_numactl_is_read(tmp_path: Path) -> None:
    seen = subprocess.run(["numactl", "--hardware"], capture_output=True, text=True, check=True).stdout
    nodes = probe.topology(seen)
    assert len(nodes) == len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))
    assert sum(node.cpus for node in nodes) == os.cpu_count()


def test_arrays_that_do_not_fit_into_a_nodes_memory_are_a_matter_of_set_up(tmp_path: Path) -> None:
    parsed = NUMA.parse(probed(tmp_path, with_standins(tmp_path), {"array_bytes": 2**33}))
    assert parsed.outcome is Outcome.CONFIG
    assert "NUMA node 0 has 17423138816 B free" in parsed.reason


def test_the_two_nodes_that_are_farthest_apart_are_compared_and_one_without_memory_is_none() -> None:
    text = (
        "available: 4 nodes (0-3)\nnode 0 cpus: 0 1\nnode 0 size: 100 MB\nnode 0 free: 90 MB\nnode 1 cpus: 2 3\n"
        "node 1 size: 100 MB\nnode 1 free: 90 MB\nnode 2 cpus: 4 5\nnode 2 size: 0 MB\nnode 2 free: 0 MB\n"
        "node 3 cpus: 6 7\nnode 3 size: 100 MB\nnode 3 free: 90 MB\nnode distances:\nnode   0   1   2   3 \n"
        "  0:  10  12  32  32 \n  1:  12  10  32  21 \n  2:  32  32  10  12 \n  3:  32  21  12  10 \n"
    )
    nodes = probe.topology(text)
    assert [node.number for node in nodes] == [0, 1, 3]
    assert [node.number for node in probe.farthest(nodes)] == [0, 3]


def test_a_run_that_failed_is_told_with_its_nodes_and_is_no_measurement() -> None:
    document = json.loads(text("two_nodes.json"))
    document["runs"][1] |= {"exit_status": 1, "output": None, "stderr": "set_mempolicy: Operation not permitted\n"}
    parsed = NUMA.parse(raw(REAL, stdout=json.dumps(document)))
    assert parsed.outcome is Outcome.CONFIG
    assert parsed.reason.startswith("processors of NUMA node 0, memory of 1: exit status 1: set_mempolicy")


def test_fewer_rounds_than_asked_are_truncated() -> None:
    parsed = NUMA.parse(raw({**REAL, "rounds": 2}, stdout=text("two_nodes.json")))
    assert (parsed.outcome, parsed.reason) == (Outcome.TRUNCATED, "4 of 8 measurements were made")


def test_the_version_is_stress_ngs_and_tells_a_stand_in_of_either_tool(tmp_path: Path) -> None:
    (tmp_path / "numactl").symlink_to(STANDINS / "numactl")
    for path, simulated in ((os.environ["PATH"], False), (f"{tmp_path}:{os.environ['PATH']}", True)):
        printed = subprocess.run(
            [sys.executable, "-c", PROBE, "numa", "--version"],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        found = tools.judge(NUMA, printed)
        assert found.refusal is None
        assert found.version
        assert found.simulated is simulated


@settings(max_examples=100)
@given(damaged(text("two_nodes.json")))
def test_a_damaged_document_is_parsed_honestly_or_refused(broken: str) -> None:
    assert_honest_or_unknown(NUMA, raw(REAL, stdout=broken))
