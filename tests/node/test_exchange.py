"""Pairs of nodes with the real iperf3: who meets whom, and what is stored when one of them is not there."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines import benchmark, exchange, isolation, keys, lease, plan, process, process_groups
from pipelines.errors import Unknown
from pipelines.node import run_jobs, run_once
from pipelines.records import Outcome, Parsed, Plan, RawOutput, Scalar, Suite, SuiteEntry
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tournament import Rules
from tests import make, servers
from tests.fleet import machines
from tests.node.waiting import runs, until

SHORT: dict[str, Scalar] = {"duration_s": 1, "omit_s": 0}
IPERF3 = benchmark.get("iperf3")
NOBODY = r"unable to connect to server(: | - .+: )Connection refused"  # with advice since iperf3 3.18
ADDRESSES = {"gpu-01": "127.0.0.1", "gpu-02": "127.0.0.2", "gpu-03": "127.0.0.3"}


def planned(count: int, wait_s: float = 20.0, addresses: dict[str, str] | None = None, **params: Scalar) -> Plan:
    nodes = tuple(
        make.node(name, address=address, free_floor_bytes=0)
        for name, address in list((addresses or ADDRESSES).items())[:count]
    )
    entry = SuiteEntry(benchmark="iperf3", params={**SHORT, **params}, pairs="all")
    return plan.make(
        Suite(name="network", description="", entries=(entry,)),
        nodes,
        run_id=make.RUN_ID,
        created_at=make.AT,
        trigger="cli",
        rules=Rules(base_port=servers.free_port(), wait_s=wait_s, ports=2),
    )


def stand(
    settings: Settings, store: Store, made: Plan, node: str, attempt: int = 1
) -> tuple[list[RawOutput], list[str]]:
    """One node's rounds, with a lease of its own as a machine of its own has."""
    said: list[str] = []
    own = settings.home / node
    own.mkdir(exist_ok=True)
    alone = settings.model_copy(update={"home": own, "lease_dir": own})
    found = exchange.run_rounds(alone, store, made, node, attempt, said.append)
    return [RawOutput.model_validate_json(store.read(key)) for key in found], said


def judged(raw: RawOutput) -> Parsed:
    return IPERF3.parse(raw)


def begun(store: Store, made: Plan, ago_s: float) -> None:
    """The rounds of the run began so long ago."""
    at = datetime.now(UTC) - timedelta(seconds=ago_s)
    store.create(keys.exchange_key(made.run_id), exchange.Beginning(node="gpu-01", at=at).model_dump_json().encode())


def test_three_nodes_meet_in_three_rounds_and_each_pair_has_one_result(settings: Settings, store: Store) -> None:
    made = planned(3)
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda name: stand(settings, store, made, name), ADDRESSES))
    raws = [raw for found, _ in results for raw in found]
    assert sorted(raw.job.job_id for raw in raws) == sorted(job.job_id for job in made.jobs)
    for raw in raws:
        assert judged(raw).outcome is Outcome.OK, raw.stdout
        assert raw.job.peer
        assert raw.facts["peer_address"] == ADDRESSES[raw.job.peer]
        assert '"server_output_json"' in raw.stdout
    assert sum(line.endswith(": served") for _, said in results for line in said) == 3


def test_a_peer_that_never_comes_is_not_measured_when_its_round_is_over(settings: Settings, store: Store) -> None:
    made = planned(2, wait_s=1.0)
    (job,) = made.jobs
    start = time.monotonic()
    (raw,), _ = stand(settings, store, made, job.node)
    assert time.monotonic() - start < (job.closes_s or 0)
    parsed = judged(raw)
    assert parsed == Parsed(outcome=Outcome.NOT_MEASURED, reason=parsed.reason)
    assert re.fullmatch(f"peer {job.peer} was not heard to come to the rounds: {NOBODY}", parsed.reason)
    assert isolation.UNANSWERED not in raw.facts


def test_a_peer_that_is_busy_makes_its_clients_row_contended_long_before_the_round_is_over(
    settings: Settings, store: Store
) -> None:
    made = planned(2, wait_s=3600.0)
    (job,) = made.jobs
    busy = settings.model_copy(update={"busy": f"lock-file {settings.home}"})
    assert stand(busy, store, made, job.peer or "") == (
        [],
        [
            f"busy with other work: lock file {settings.home} is there",
            f"round 1: iperf3 tcp repeat 1 for {job.node}: not served: "
            f"busy with other work: lock file {settings.home} is there",
        ],
    )
    (raw,), _ = stand(settings, store, made, job.node)
    assert judged(raw) == Parsed(
        outcome=Outcome.CONTENDED,
        reason=f"peer {job.peer}: busy with other work: lock file {settings.home} is there",
    )
    assert isolation.UNANSWERED not in raw.facts


def test_a_peer_that_begins_to_refuse_after_its_client_began_to_wait_is_heard(settings: Settings, store: Store) -> None:
    made = planned(2, wait_s=3600.0)
    (job,) = made.jobs
    busy = settings.model_copy(update={"busy": f"lock-file {settings.home}"})
    with ThreadPoolExecutor(1) as pool:
        client = pool.submit(stand, settings, store, made, job.node)
        until(lambda: store.exists(keys.exchange_key(made.run_id)) or None, "the rounds' beginning")
        stand(busy, store, made, job.peer or "")
        (raw,), _ = client.result()
    assert judged(raw).outcome is Outcome.CONTENDED


def test_a_peer_without_the_tool_is_named_with_what_it_lacks(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(2, wait_s=3600.0)
    (job,) = made.jobs
    with monkeypatch.context() as without:
        without.setenv("PATH", "/nowhere")
        stand(settings, store, made, job.peer or "")
    (raw,), _ = stand(settings, store, made, job.node)
    parsed = judged(raw)
    assert parsed.outcome is Outcome.NOT_MEASURED
    assert parsed.reason.startswith(f"peer {job.peer}: iperf3 is not installed")
    assert isolation.UNANSWERED not in raw.facts


def test_a_peer_that_came_and_does_not_answer_is_told_from_one_that_never_came(
    settings: Settings, store: Store
) -> None:
    made = planned(2, wait_s=1.0)
    (job,) = made.jobs
    begun(store, made, (job.closes_s or 0) - 3.0)
    attendance = exchange.Attendance(node=job.peer or "")
    store.create(keys.attendance_key(made.run_id, job.peer or ""), attendance.model_dump_json().encode())
    (raw,), _ = stand(settings, store, made, job.node)
    problem = str(raw.facts[isolation.UNANSWERED])
    assert re.fullmatch(NOBODY, problem)
    assert judged(raw) == Parsed(outcome=Outcome.NOT_MEASURED, reason=f"peer {job.peer} did not answer: {problem}")


def test_a_server_whose_client_never_comes_ends_with_its_round_and_leaves_nothing_running(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(2, wait_s=1.0)
    (job,) = made.jobs
    begun(store, made, (job.closes_s or 0) - 5.0)
    groups = _started(monkeypatch)
    raws, said = stand(settings, store, made, job.peer or "")
    assert raws == []
    assert said[-1] == f"round 1: iperf3 tcp repeat 1 for {job.node}: did not come"
    assert groups
    assert not any(map(runs, groups))


def test_a_failed_round_takes_no_other_with_it(settings: Settings, store: Store) -> None:
    made = planned(3, wait_s=2.0)
    down = "gpu-03"
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda name: stand(settings, store, made, name), ("gpu-01", "gpu-02")))
    outcomes = {frozenset((raw.job.node, raw.job.peer)): judged(raw).outcome for found, _ in results for raw in found}
    assert outcomes.pop(frozenset(("gpu-01", "gpu-02"))) is Outcome.OK
    assert all(down in pair and outcome is Outcome.NOT_MEASURED for pair, outcome in outcomes.items())


def test_a_server_killed_in_mid_test_is_a_truncated_test(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(2, duration_s=20)
    (job,) = made.jobs
    groups = _started(monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        client = pool.submit(stand, settings, store, made, job.node)
        server = pool.submit(stand, settings, store, made, job.peer or "")
        group = until(lambda: next(iter(groups), None), "the server's start")
        until(lambda: _connections(job.port or 0) >= 2 or None, "the test's connections")
        process_groups.end_left(group, process_groups.start_ticks_of(group) or 0, Path("/"))
        (raw,), _ = client.result()
        server.result()
    parsed = judged(raw)
    assert parsed.outcome in {Outcome.TRUNCATED, Outcome.TOOL_FAILED}
    assert parsed.reason.startswith("iperf3: ")
    assert not parsed.measurements


def test_a_retry_runs_nothing_that_is_done_and_its_server_goes_on(settings: Settings, store: Store) -> None:
    made = planned(2)
    with ThreadPoolExecutor(2) as pool:
        first = list(pool.map(lambda name: stand(settings, store, made, name)[0], ("gpu-01", "gpu-02")))
    (job,) = made.jobs
    again, said = stand(settings, store, made, job.node, attempt=2)
    assert [again] == [found for found in first if found]
    assert said == []
    _, said = stand(settings, store, made, job.peer or "", attempt=2)
    assert said == [f"round 1: iperf3 tcp repeat 1 for {job.node}: done before"]


def test_a_client_that_comes_after_its_round_does_not_wait(settings: Settings, store: Store) -> None:
    made = planned(2)
    (job,) = made.jobs
    begun(store, made, 3600.0)
    (raw,), _ = stand(settings, store, made, job.node, attempt=2)
    assert judged(raw) == Parsed(
        outcome=Outcome.NOT_MEASURED,
        reason=f"its round with {job.peer} was over before this node could begin",
    )


def test_a_call_from_somebody_else_does_not_take_the_clients_place(settings: Settings, store: Store) -> None:
    made = planned(2)
    (job,) = made.jobs
    with ThreadPoolExecutor(2) as pool:
        server = pool.submit(stand, settings, store, made, job.peer or "")

        def call() -> bool | None:
            try:
                socket.create_connection(("127.0.0.1", job.port or 0), 1).close()
            except OSError:
                return None
            return True

        until(call, "the server's port")
        (raw,), _ = stand(settings, store, made, job.node)
        server.result()
    assert judged(raw).outcome is Outcome.OK


def test_jobs_of_pairs_are_none_that_a_node_does_alone(settings: Settings, store: Store) -> None:
    made = planned(2)
    assert run_jobs(settings, store, made, "gpu-01", 1, lambda _: None) == ()


def test_a_node_that_is_held_by_another_run_is_contended_and_does_not_begin_the_rounds(
    settings: Settings, store: Store
) -> None:
    made = planned(2)
    (job,) = made.jobs
    own = settings.home / job.node
    own.mkdir()
    with lease.held(own, "other", job.node, 0.0, lambda _: None):
        (raw,), _ = stand(settings.model_copy(update={"lease_wait_s": 0.0}), store, made, job.node)
    assert judged(raw).outcome is Outcome.CONTENDED
    assert not store.exists(keys.exchange_key(made.run_id))


def test_a_benchmark_between_two_nodes_cannot_be_run_by_one(settings: Settings) -> None:
    made = planned(2)
    raw = run_once(settings, made.nodes[0], made.jobs[0], say=lambda _: None)
    assert judged(raw) == Parsed(
        outcome=Outcome.CONFIG,
        reason="it is measured between two nodes, and this is one; run a suite that has it on both, through Airflow",
    )


def test_a_preview_shows_the_peer_and_the_port(settings: Settings) -> None:
    (job,) = planned(2).jobs
    assert {f"--client={job.peer}", f"--port={job.port}"} <= set(plan.preview(job, settings.home))


def test_node_that_is_not_in_the_plan_is_unknown(settings: Settings, store: Store) -> None:
    with pytest.raises(Unknown, match="gpu-07"):
        exchange.run_rounds(settings, store, planned(2), "gpu-07", 1, lambda _: None)


# --- each node in a network namespace of its own ------------------------------------------------------------

_STAND = """
import sys
from pathlib import Path
from pipelines import exchange, storage
from pipelines.records import Plan
from pipelines.settings import Settings
made, node, home, url = Plan.model_validate_json(Path(sys.argv[1]).read_text()), *sys.argv[2:5]
settings = Settings(home=Path(home), store=url, lease_dir=Path(home))
exchange.run_rounds(settings, storage.open_store(settings), made, node, 1, lambda line: print(line, flush=True))
"""


@pytest.fixture
def networks(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Three namespaces on a bridge; names and addresses."""
    if not machines.have_namespaces():
        pytest.skip("network namespaces need root and ip(8)")
    with machines.network(("one", "two", "three"), tmp_path / "disks") as made:
        yield {machine.namespace: machine.address for machine in made.machines}


@pytest.mark.integration
def test_nodes_in_networks_of_their_own_meet_on_the_same_port(
    networks: dict[str, str], settings: Settings, store: Store, tmp_path: Path
) -> None:
    made = planned(3, addresses=networks, direction="both")
    (tmp_path / "plan.json").write_text(made.model_dump_json())
    started = []
    for name in networks:
        (tmp_path / name).mkdir()
        argv = (sys.executable, "-c", _STAND, tmp_path / "plan.json", name, tmp_path / name, settings.store_url)
        started.append(subprocess.Popen(("ip", "netns", "exec", name, *argv), stdout=subprocess.PIPE, text=True))
    for child in started:
        said, _ = child.communicate(timeout=60)
        assert child.returncode == 0, said
    raws = [RawOutput.model_validate_json(store.read(key)) for key in store.keys_under(keys.raw_prefix(made.run_id))]
    assert {judged(raw).outcome for raw in raws} == {Outcome.OK}
    assert len(raws) == 3


@pytest.mark.integration
def test_a_peer_at_an_address_that_stays_silent_is_not_measured_although_the_last_try_is_cut_short(
    networks: dict[str, str], settings: Settings, store: Store, tmp_path: Path
) -> None:
    made = planned(2, wait_s=1.0, addresses=networks)
    (job,) = made.jobs
    begun(store, made, 0.0)
    (tmp_path / "plan.json").write_text(made.model_dump_json())
    (tmp_path / job.node).mkdir()
    nobody = ("lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent")
    process.run(("ip", "-n", job.node, "neighbour", "replace", networks[job.peer or ""], *nobody), timeout_s=30)
    argv = (sys.executable, "-c", _STAND, tmp_path / "plan.json", job.node, tmp_path / job.node, settings.store_url)
    subprocess.run(("ip", "netns", "exec", job.node, *argv), check=True, timeout=120)
    (key,) = store.keys_under(keys.raw_prefix(made.run_id))
    parsed = judged(RawOutput.model_validate_json(store.read(key)))
    assert parsed.outcome is Outcome.NOT_MEASURED
    assert parsed.reason.startswith(f"peer {job.peer} was not heard to come to the rounds: ")


@pytest.mark.integration
def test_servers_end_with_their_node_even_if_that_is_killed(
    networks: dict[str, str], settings: Settings, tmp_path: Path
) -> None:
    made = planned(2, addresses=networks)
    (tmp_path / "plan.json").write_text(made.model_dump_json())
    name = made.jobs[0].peer or ""
    (tmp_path / name).mkdir()
    argv = (sys.executable, "-c", _STAND, tmp_path / "plan.json", name, tmp_path / name, settings.store_url)
    child = subprocess.Popen(("ip", "netns", "exec", name, *argv), stdout=subprocess.DEVNULL)
    server = until(lambda: _server_of(child.pid), "the server's start")
    child.send_signal(signal.SIGKILL)
    child.wait()
    until(lambda: not runs(server) or None, "the server's end")


def _started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The process groups of the servers that are started from now on, as they are."""
    groups: list[int] = []
    run: Callable[..., process.Completed] = process.run

    def listening(argv: tuple[str, ...], **how: object) -> process.Completed:
        if "--server" in argv:
            how["started"] = groups.append
        return run(argv, **how)

    monkeypatch.setattr(exchange.process, "run", listening)
    return groups


def _connections(port: int) -> int:
    """Established TCP connections to a local port: one for control, one for each stream (proc(5), net/tcp*)."""
    lines = [
        line.split() for file in ("tcp", "tcp6") for line in Path(f"/proc/net/{file}").read_text().splitlines()[1:]
    ]
    return sum(fields[1].endswith(f":{port:04X}") and fields[3] == "01" for fields in lines)


def _server_of(parent: int) -> int | None:
    """The child that is iperf3's server."""
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        for pid in map(int, task.read_text().split()):
            with suppress(OSError):  # another child, which has ended meanwhile
                if b"--server" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
    return None
