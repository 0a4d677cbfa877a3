"""numa: the probe under a stand-in of numactl with two nodes, the real one with one, and the ratio that comes of it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import benchmark, process, tools
from pipelines.benchmark import Workplace
from pipelines.families.numa_loads import LOADS, Asked
from pipelines.probes import numa as probe
from pipelines.records import Outcome, Parsed, RawOutput
from tests import make, models
from tests.benchmarks.llama_samples import UNPACKED
from tests.benchmarks.placed import STANDINS, assert_honest_or_unknown, damaged, place

FOLDER = Path(__file__).parents[1] / "samples/numa"
NUMA = benchmark.get("numa")
PROBE = "import sys; from pipelines.probes import main; sys.exit(main())"
REAL = {"processors": "one", "rounds": 1, "duration_s": 5, "array_bytes": 2**25}
SHORT = {**REAL, "duration_s": 1, "size_bytes": 2**23, "model": "tiny-q4_0.gguf"}
RUNS: dict[str, dict[str, Any]] = {
    "0.15.06-two_nodes": REAL,
    "3.33-fio_two_nodes": {**SHORT, "load": "fio"},
    "0.7.0-llama_two_nodes": {**SHORT, "load": "llama"},
}
SMALL: dict[str, Any] = {"array_bytes": 2**20}


def text(name: str) -> str:
    return (FOLDER / name).read_text()


def raw(params: dict[str, Any], **fields: Any) -> RawOutput:
    checked = NUMA.checked_params(params)
    job = make.job(benchmark="numa", case=NUMA.case(checked), params=checked.model_dump(mode="json"))
    return make.raw(job, tool="fleetmark-probe", **fields)


def probed(
    folder: Path, path: str, params: dict[str, Any], files: Path | None = None, *, direct_io: bool = True
) -> RawOutput:
    """The benchmark's own command, run in the folder."""
    place = Workplace(folder, folder / "o", direct_io=direct_io, tool_version="0.15.06", files=files)
    command = NUMA.command(NUMA.checked_params(params), place)
    argv = (sys.executable, "-c", PROBE, *command.argv[1:])
    done = process.run(argv, timeout_s=120, cwd=folder, environ={**os.environ, "PATH": path})
    return raw(params, argv=done.argv, exit_status=done.exit_status, stdout=done.stdout, stderr=done.stderr)


def with_standins(folder: Path) -> str:
    found = place(folder, "numactl")
    return f"{place(found, 'stress-ng')}:{os.environ['PATH']}"


def shares(parsed: Parsed) -> dict[str, float]:
    return {each.labels["cpu_node"]: each.value for each in parsed.measurements if each.metric == "remote_share"}


@pytest.mark.parametrize("name", RUNS)
def test_a_real_output_gives_exactly_the_golden_result(name: str) -> None:
    golden = Parsed.model_validate_json(text(f"{name}.golden.json"))
    assert golden.outcome is Outcome.OK
    assert NUMA.parse(raw(RUNS[name], stdout=text(f"{name}.json"))) == golden


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


@pytest.mark.integration
@pytest.mark.parametrize(
    ("load", "metric", "case"), [("fio", "bandwidth", "fio-all-8MiB"), ("llama", "decode_throughput", "llama-all-tiny")]
)
def test_the_same_fio_or_llama_job_is_measured_near_and_far(tmp_path: Path, load: str, metric: str, case: str) -> None:
    """The real tools; the stand-in of numactl binds nothing, so that near and far are alike."""
    params = {"load": load, "model": "tiny.gguf", "rounds": 1, "duration_s": 1, "size_bytes": 2**23}
    models.write(tmp_path / "tiny.gguf", "q4_0")
    path = f"{place(tmp_path, 'numactl')}:{os.environ['PATH']}:{UNPACKED}"
    ended = probed(tmp_path, path, params, files=tmp_path)
    parsed = NUMA.parse(ended)
    assert (parsed.outcome, parsed.reason, ended.job.case) == (Outcome.OK, "", case)
    assert set(shares(parsed)) == {"0", "1"}
    rates = [each for each in parsed.measurements if each.metric == metric]
    assert [each.labels["placement"] for each in rates] == ["local", "remote"] * 2
    assert {each.labels["instances"] for each in rates} == {"2"}, "as many as the node has processors"
    (note,) = parsed.notes
    assert re.match(r"(fio|llama-bench) \d", note)


def test_the_weights_of_a_model_are_read_and_not_mapped(tmp_path: Path) -> None:
    """A file that is mapped lies in the memory of whoever read it first, whatever numactl says."""
    asked = Asked("llama", 1, 5, 60, "all", 2**20, 2**20, direct=True, model=str(tmp_path / "m.gguf"))
    argv = LOADS["llama"].argv(asked, 4, tmp_path / "o", "  -lm, --load-mode <auto|none|mmap>\n")
    assert argv[argv.index("-lm") + 1] == "none"
    argv = LOADS["llama"].argv(asked, 4, tmp_path / "o", "  -mmp, --mmap <0|1>\n")
    assert argv[argv.index("-mmp") + 1] == "0"
    assert Asked.of(asked.words()) == asked


def test_fio_is_not_measured_through_the_page_cache(tmp_path: Path) -> None:
    """Which lies in the memory of whoever read the file first, whatever numactl says."""
    ended = probed(tmp_path, with_standins(tmp_path), {"load": "fio"}, direct_io=False)
    parsed = NUMA.parse(ended)
    assert (parsed.outcome, "takes no direct I/O" in parsed.reason) == (Outcome.CONFIG, True)


def test_a_filesystem_in_memory_is_told(tmp_path: Path) -> None:
    """It may take direct I/O, and is no disk."""
    ended = raw(RUNS["3.33-fio_two_nodes"], stdout=text("3.33-fio_two_nodes.json"), facts={"filesystem": "tmpfs"})
    assert {each.labels["filesystem"] for each in NUMA.parse(ended).measurements} == {"tmpfs"}


def test_a_model_that_fits_into_no_nodes_memory_is_a_matter_of_set_up(tmp_path: Path) -> None:
    with (tmp_path / "huge.gguf").open("wb") as file:
        file.truncate(2**36)
    parsed = NUMA.parse(probed(tmp_path, with_standins(tmp_path), {"load": "llama", "model": "huge.gguf"}, tmp_path))
    assert parsed.outcome is Outcome.CONFIG
    assert f"llama takes {2**36} B of memory" in parsed.reason


def test_a_machine_with_one_socket_is_not_measured_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "numactl").write_text("#!/bin/sh\ncat <<'END'\n" + text("0.15.06-one_node.txt") + "END\n")
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
    assert re.search(r"memory takes 51539607552 B of memory, and NUMA node [01] has \d+ B free", parsed.reason)


def test_a_tool_that_is_too_old_for_its_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "fio").write_text("#!/bin/sh\necho fio-2.21\n")
    (tmp_path / "fio").chmod(0o755)
    parsed = NUMA.parse(probed(tmp_path, with_standins(tmp_path), {"load": "fio"}))
    assert parsed.outcome is Outcome.CONFIG
    assert parsed.reason.endswith("fio 2.21 is too old: 3.16 or later is needed")


def test_memory_that_holds_only_files_is_free_for_others() -> None:
    """On a node that staged a dataset nearly all of it does."""
    seen = "Node 1 MemFree: 1048576 kB\nNode 1 Inactive(anon): 7 kB\nNode 1 Active(file): 100000 kB\n"
    seen += "Node 1 Inactive(file):  400000 kB\nNode 1 FilePages: 9 kB\n"
    assert probe.kept_for_files(seen) == 500_000 * 1024
    assert probe.kept_for_files("") == 0


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
    document = json.loads(text("0.15.06-two_nodes.json"))
    document["runs"][1] |= {"exit_status": 1, "output": None, "stderr": "set_mempolicy: Operation not permitted\n"}
    parsed = NUMA.parse(raw(REAL, stdout=json.dumps(document)))
    assert parsed.outcome is Outcome.CONFIG
    assert parsed.reason.startswith("processors of NUMA node 0, memory of 1: exit status 1: set_mempolicy")


def test_fewer_rounds_than_asked_are_truncated() -> None:
    parsed = NUMA.parse(raw({**REAL, "rounds": 2}, stdout=text("0.15.06-two_nodes.json")))
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


@pytest.mark.integration
def test_a_tool_that_hangs_does_not_keep_the_version_of_the_others(tmp_path: Path) -> None:
    """As llama-bench does where the GPU's driver is stuck."""
    (tmp_path / "llama-bench").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "llama-bench").chmod(0o755)
    found = tools.find(NUMA, {**os.environ, "PATH": with_standins(tmp_path)})
    assert found.refusal is None
    assert found.version


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_document_is_parsed_honestly_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(RUNS)))
    broken = data.draw(damaged(text(f"{name}.json")))
    assert_honest_or_unknown(NUMA, raw(RUNS[name], stdout=broken))


@settings(max_examples=200)
@given(st.data())
def test_what_a_tool_wrote_within_the_document_is_read_honestly_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(RUNS)))
    document = json.loads(text(f"{name}.json"))
    run = data.draw(st.sampled_from(document["runs"]))
    run["output"] = data.draw(damaged(run["output"]))
    assert_honest_or_unknown(NUMA, raw(RUNS[name], stdout=json.dumps(document)))
