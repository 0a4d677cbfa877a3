"""Whether real work runs on the node: with real locks, and stand-ins that print what squeue and kubectl print."""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import busy, keys, lease, node, plan, settings
from pipelines.errors import BadSettings
from pipelines.records import Outcome, Plan, RawOutput, Scalar, Suite, SuiteEntry
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tables import rows
from tests import make

SMALL: dict[str, Scalar] = {"profile": "rand_read", "size_bytes": 2**20, "runtime_s": 0.1, "ramp_s": 0.0}


@pytest.fixture
def bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def _tool(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _ask(text: str, environ: Mapping[str, str] = os.environ) -> busy.Answer:
    return busy.ask(busy.parsed(text), environ)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("pbs", "'pbs' is no way to tell; known: none, lock-file, flock, slurm, kubernetes, command"),
        ("lock-file", "lock-file takes 1 word, got 0"),
        ("lock-file run/lock", "lock-file takes an absolute path, got 'run/lock'"),
        ("slurm a b", "slurm takes at most 1 word, got 2"),
        ("command", "command takes at least 1 word, got 0"),
        ("none please", "none takes nothing more, got 1"),
        ("command 'a", "No closing quotation"),
    ],
)
def test_setting_that_names_no_way_is_refused_with_what_is_known(text: str, problem: str) -> None:
    with pytest.raises(BadSettings) as failure:
        settings.load({"FLEETMARK_BUSY": text})
    assert str(failure.value) == f"setting FLEETMARK_BUSY: {problem}"


def test_words_of_a_command_are_split_and_never_reach_a_shell(tmp_path: Path) -> None:
    _tool(tmp_path / "ask", f'printf "%s\\n" "$@" > {tmp_path}/seen')
    assert _ask(f"command {tmp_path}/ask 'a b' '$(touch {tmp_path}/bad)' '; true'") == busy.FREE
    assert (tmp_path / "seen").read_text() == f"a b\n$(touch {tmp_path}/bad)\n; true\n"
    assert not (tmp_path / "bad").exists()


def test_machine_is_free_where_nobody_says_how_to_ask() -> None:
    assert _ask("none") == _ask("") == busy.FREE


def test_lock_file_means_busy_while_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "gpu.lock"
    assert _ask(f"lock-file {path}") == busy.FREE
    path.symlink_to("alice@gpu-01:123")  # leads nowhere: how many programs write their locks
    assert _ask(f"lock-file {path}").reason == f"busy with other work: lock file {path} is there"
    path.unlink()
    assert _ask(f"lock-file {path}") == busy.FREE


@pytest.mark.parametrize("how", [fcntl.LOCK_EX, fcntl.LOCK_SH])
def test_flock_means_busy_while_another_process_has_the_lock(tmp_path: Path, how: int) -> None:
    path = tmp_path / "gpu.lock"
    assert _ask(f"flock {path}") == busy.FREE
    with path.open("w") as held:
        assert _ask(f"flock {path}") == busy.FREE
        fcntl.flock(held, how)
        assert _ask(f"flock {path}").reason == f"busy with other work: {path} is locked"
    assert _ask(f"flock {path}") == busy.FREE


@pytest.mark.parametrize("way", ["lock-file", "flock"])
def test_lock_whose_directory_is_missing_cannot_be_told(tmp_path: Path, way: str) -> None:
    answer = _ask(f"{way} {tmp_path}/none/gpu.lock")
    assert (answer.state, "its directory is not there" in answer.what) == ("unknown", True)


def test_command_tells_by_its_exit_status_and_its_first_line(tmp_path: Path) -> None:
    _tool(tmp_path / "free", "echo all quiet")
    _tool(tmp_path / "busy", "echo; echo vLLM serves; echo more; exit 3")
    _tool(tmp_path / "killed", "kill -9 $$")
    assert _ask(f"command {tmp_path}/free") == busy.FREE
    answer = _ask(f"command {tmp_path}/busy")
    assert answer == busy.Answer(state="busy", what=f"{tmp_path}/busy ended with status 3 and said vLLM serves")
    assert _ask(f"command {tmp_path}/killed").state == "unknown"
    missing = _ask(f"command {tmp_path}/none")
    assert missing.reason.startswith("whether real work runs here cannot be told: ")


def test_command_that_hangs_cannot_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "_TIMEOUT_S", 0.2)
    _tool(tmp_path / "hangs", "exec sleep 300")
    answer = _ask(f"command {tmp_path}/hangs")
    assert answer == busy.Answer(state="unknown", what=f"{tmp_path}/hangs did not answer within 0 s")


def test_slurm_is_asked_for_this_host_in_all_partitions_with_its_own_configuration(bin_dir: Path) -> None:
    _tool(bin_dir / "squeue", f'{{ echo "$@"; echo "$SLURM_CONF"; }} > {bin_dir}/asked')
    assert _ask("slurm", {**os.environ, "SLURM_CONF": "/opt/slurm.conf"}) == busy.FREE
    asked, conf = (bin_dir / "asked").read_text().splitlines()
    here = os.uname().nodename.partition(".")[0]
    assert asked.split() == [
        "--all", "--noheader", f"--nodelist={here}", "--states=RUNNING,SUSPENDED,COMPLETING,CONFIGURING",
        "--format=%A|%T|%u",
    ]  # fmt: skip
    assert conf == "/opt/slurm.conf"
    _ask("slurm n017")
    assert "--nodelist=n017" in (bin_dir / "asked").read_text()


def test_slurm_job_of_another_is_busy_and_our_own_is_not(bin_dir: Path) -> None:
    _tool(bin_dir / "squeue", "echo '122|RUNNING|fleetmark'; echo '123|RUNNING|alice'")
    assert _ask("slurm").reason == "busy with other work: slurm job 122 of fleetmark, running"
    within = {**os.environ, "SLURM_JOB_ID": "122"}
    assert _ask("slurm", within).reason == "busy with other work: slurm job 123 of alice, running"
    _tool(bin_dir / "squeue", "echo '122|RUNNING|fleetmark'")
    assert _ask("slurm", within) == busy.FREE


@pytest.mark.parametrize(
    "script",
    [
        "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
        "echo 'squeue: error: Invalid node name gpu-01' >&2; exit 1",
        "echo 'squeue: error: Invalid node name gpu-01' >&2",  # a status of 0 does not make it an answer
        "echo '             JOBID PARTITION     NAME     USER ST       TIME  NODES NODELIST(REASON)'",
    ],
)
def test_answer_that_slurm_does_not_give_is_not_free(bin_dir: Path, script: str) -> None:
    _tool(bin_dir / "squeue", script)
    assert _ask("slurm").state == "unknown"


@pytest.mark.parametrize("way", ["slurm", "kubernetes"])
def test_scheduler_whose_command_is_not_installed_cannot_be_told(tmp_path: Path, way: str) -> None:
    answer = busy.ask(busy.parsed(way), {"PATH": str(tmp_path)})
    assert (answer.state, "is not installed on this node" in answer.what) == ("unknown", True)


def _pod(name: str, phase: str = "Running", requests: Any = None, **spec: Any) -> dict[str, Any]:
    resources = {"limits": requests, "requests": {"cpu": "4", **requests}} if requests else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "ml", "uid": "0b1e9d0c-6b0a-4a52-9a4e-0a1d5d3c7f11"},
        "spec": {
            "containers": [{"image": "busybox", "name": "main", "resources": resources}],
            "nodeName": "n1",
            **spec,
        },
        "status": {"phase": phase, "qosClass": "Burstable"},
    }


def _kubectl(folder: Path, *pods: dict[str, Any], node_says: str = "echo node/n1") -> None:
    listed = {"apiVersion": "v1", "items": list(pods), "kind": "List", "metadata": {"resourceVersion": ""}}
    (folder / "pods.json").write_text(json.dumps(listed, indent=4) + "\n")
    script = f"""echo "$@" >> {folder}/asked; case $2 in node) {node_says};; *) cat {folder}/pods.json;; esac"""
    _tool(folder / "kubectl", script)


def test_kubernetes_pod_that_holds_gpus_is_busy(bin_dir: Path) -> None:
    _kubectl(bin_dir, _pod("kube-proxy"), _pod("train-0", requests={"nvidia.com/gpu": "8"}))
    assert _ask("kubernetes n1").reason == "busy with other work: kubernetes pod ml/train-0 with 8 nvidia.com/gpu"
    known, asked = (bin_dir / "asked").read_text().splitlines()
    assert known == "get node n1 --output=name --request-timeout=10s"
    assert asked == ("get pods --all-namespaces --field-selector=spec.nodeName=n1 --output=json --request-timeout=10s")


@pytest.mark.parametrize(
    ("pod", "is_busy"),
    [
        (_pod("kube-proxy"), False),
        (_pod("done", "Succeeded", {"nvidia.com/gpu": "8"}), False),
        (_pod("failed", "Failed", {"nvidia.com/gpu": "8"}), False),
        (_pod(os.uname().nodename, requests={"nvidia.com/gpu": "8"}), False),
        (_pod("none", requests={"nvidia.com/gpu": "0"}), False),
        (_pod("coming", "Pending", {"nvidia.com/gpu": "1"}), True),
        (_pod("slice", requests={"nvidia.com/mig-1g.5gb": "1"}), True),
        (_pod("amd", requests={"amd.com/gpu": "1"}), True),
        (_pod("claims", resourceClaims=[{"name": "gpu", "resourceClaimTemplateName": "single-gpu"}]), True),
        (_pod("inits", initContainers=_pod("x", requests={"nvidia.com/gpu": "1"})["spec"]["containers"]), True),
    ],
    ids=lambda value: value["metadata"]["name"] if isinstance(value, dict) else "",
)
def test_pods_are_busy_by_the_devices_that_they_hold(bin_dir: Path, pod: dict[str, Any], is_busy: bool) -> None:
    _kubectl(bin_dir, pod)
    assert _ask("kubernetes n1").state == ("busy" if is_busy else "free")


def test_node_that_kubernetes_does_not_have_is_not_free_for_having_no_pods(bin_dir: Path) -> None:
    not_found = """{ echo 'Error from server (NotFound): nodes "n1" not found' >&2; exit 1; }"""
    _kubectl(bin_dir, node_says=not_found)
    answer = _ask("kubernetes n1")
    assert answer.what == 'kubectl ended with status 1: Error from server (NotFound): nodes "n1" not found'
    assert answer.state == "unknown"


@given(st.text(max_size=80) | st.recursive(st.none() | st.integers(), st.lists, max_leaves=4).map(json.dumps))
def test_garbage_for_a_list_of_pods_or_jobs_is_never_busy_and_raises_nothing(printed: str) -> None:
    assert busy.device_pods(printed, "own").state == "unknown"
    assert busy.slurm_jobs(printed, None).state in ({"busy", "unknown"} if printed.splitlines() else {"free"})


def _plan(jobs: int) -> Plan:
    entries = tuple(SuiteEntry(benchmark="fio", params={**SMALL, "iodepth": depth + 1}) for depth in range(jobs))
    suite = Suite(name="test", description="", entries=entries)
    nodes = (make.node(free_floor_bytes=0),)
    return plan.make(suite, nodes, run_id=make.RUN_ID, created_at=make.AT, trigger="cli")


def _run(
    watched: Settings, store: Store, made: Plan, say: Any = lambda _: None
) -> list[tuple[RawOutput, rows.Attempt]]:
    found = []
    for key in node.run_jobs(watched, store, made, "gpu-01", 1, say):
        data = store.read(key)
        found.append((RawOutput.model_validate_json(data), rows.read(key, data, key)))
    return found


def test_busy_node_is_contended_without_its_lease_being_taken(settings: Settings, store: Store, tmp_path: Path) -> None:
    (tmp_path / "gpu.lock").touch()
    watched = settings.model_copy(update={"busy": f"lock-file {tmp_path}/gpu.lock", "lease_wait_s": 600.0})
    with lease.held(settings.lease_dir, "nightly", "gpu-01", 0.0, lambda _: None):
        found = _run(watched, store, _plan(2))
    for raw, attempt in found:
        reason = f"busy with other work: lock file {tmp_path}/gpu.lock is there"
        assert (raw.refusal and raw.refusal.reason, raw.argv, raw.facts["busy"]) == (reason, (), reason)
        assert (attempt.parsed.outcome, attempt.parsed.reason) == (Outcome.CONTENDED, reason)


def test_work_that_comes_during_a_job_makes_it_contended_and_refuses_the_next_until_it_goes(
    settings: Settings, store: Store, tmp_path: Path, bin_dir: Path
) -> None:
    lock, count, fio = tmp_path / "gpu.lock", tmp_path / "count", shutil.which("fio")
    second_begins = f"echo >> {count}; test $(wc -l < {count}) = 2 && touch {lock}"
    _tool(bin_dir / "fio", f'test "$1" = --version || {{ {second_begins}; }}; exec {fio} "$@"')

    def say(line: str) -> None:
        if line.startswith("4/4") and "about" in line:
            lock.unlink()

    found = _run(settings.model_copy(update={"busy": f"lock-file {lock}"}), store, _plan(4), say)
    outcomes = [attempt.parsed.outcome for _, attempt in found]
    assert outcomes == [Outcome.OK, Outcome.CONTENDED, Outcome.CONTENDED, Outcome.OK]
    second, third = found[1][0], found[2][0]
    reason = f"busy with other work: lock file {lock} is there"
    assert (second.exit_status, second.facts["busy_after"], second.refusal) == (0, reason, None)
    assert found[1][1].parsed.measurements == ()
    assert (third.argv, third.facts["busy"]) == ((), reason)


def test_busy_node_leaves_nothing_undone_for_a_retry(settings: Settings, store: Store, tmp_path: Path) -> None:
    (tmp_path / "gpu.lock").touch()
    watched = settings.model_copy(update={"busy": f"lock-file {tmp_path}/gpu.lock"})
    made = _plan(1)
    _run(watched, store, made)
    (tmp_path / "gpu.lock").unlink()
    assert len(_run(watched, store, made)) == 1
    assert store.keys_under("raw") == [keys.raw_key(made.run_id, "gpu-01", made.jobs[0].job_id, 1)]
