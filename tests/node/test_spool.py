"""The spool: what the store does not take is kept on the node, whole, and arrives later; nothing lost or twice."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines import keys, node, plan, spool, storage
from pipelines.cli import main
from pipelines.errors import SpoolFull, SpoolUnusable, StoreUnreachable
from pipelines.records import Environment, Plan, RawOutput, Scalar, Suite, SuiteEntry
from pipelines.settings import Settings
from pipelines.spool import Spool
from pipelines.storage import Store
from tests import conftest, make, processes, servers
from tests.node.other_user import as_nobody

STORE = "s3://bucket/results"
KEYS = [keys.raw_key(make.RUN_ID, "gpu-01", f"job-{number}", 1) for number in range(8)]
BODY = json.dumps({"stdout": "x" * 200_000}).encode()
QUICK: dict[str, Scalar] = {"profile": "rand_read", "size_bytes": 2**20, "runtime_s": 0.1, "ramp_s": 0.0}


@pytest.fixture
def here(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", STORE, 2**30)


def _quiet(_line: str) -> None:
    pass


def test_an_object_is_kept_until_it_is_sent_and_never_overwritten(here: Spool, store: Store) -> None:
    assert here.put(KEYS[0], b"first")
    assert not here.put(KEYS[0], b"second")
    assert (here.waiting(), here.read(KEYS[0])) == ([KEYS[0]], b"first")
    assert here.send(store, _quiet) == (KEYS[0],)
    assert (here.waiting(), store.read(KEYS[0])) == ([], b"first")


def test_what_the_store_has_already_stays_as_it_is(here: Spool, store: Store) -> None:
    store.create(KEYS[0], b"there before")
    here.put(KEYS[0], b"spooled")
    here.send(store, _quiet)
    assert (here.waiting(), store.read(KEYS[0])) == ([], b"there before")


def test_spools_of_different_stores_are_apart(tmp_path: Path, here: Spool) -> None:
    here.put(KEYS[0], b"body")
    assert Spool(tmp_path / "spool", "s3://other", 2**30).waiting() == []


def test_a_spool_takes_no_more_than_its_budget_and_says_what_to_do(tmp_path: Path, store: Store) -> None:
    small = Spool(tmp_path / "spool", STORE, 1000)
    small.put(KEYS[0], b"x" * 500)
    with pytest.raises(SpoolFull, match=r"564 B do not fit beside 564 B.*FLEETMARK_SPOOL_BYTES") as failure:
        small.put(KEYS[1], b"x" * 500)
    assert failure.value.retryable
    assert small.waiting() == [KEYS[0]]
    small.send(store, _quiet)
    assert small.put(KEYS[1], b"x" * 500)


def test_only_its_user_may_read_what_is_spooled(here: Spool) -> None:
    here.put(KEYS[0], b"body")
    modes = {path.stat().st_mode & 0o777 for path in (here.path, here.path.parent)}
    files = {path.stat().st_mode & 0o777 for path in here.path.iterdir()}
    assert (modes, files) == ({0o700}, {0o600})


def test_a_link_in_place_of_the_spool_is_refused(tmp_path: Path, here: Spool) -> None:
    (tmp_path / "elsewhere").mkdir()
    here.path.parent.mkdir(mode=0o700)
    here.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SpoolUnusable):
        here.put(KEYS[0], b"body")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_link_in_place_of_an_object_is_not_read(tmp_path: Path, here: Spool) -> None:
    here.put(KEYS[0], b"body")
    (file,) = here.path.iterdir()
    moved = file.rename(tmp_path / "moved")
    file.symlink_to(moved)
    with pytest.raises(SpoolUnusable):
        here.read(KEYS[0])


def test_a_spool_that_others_may_write_to_is_refused(here: Spool) -> None:
    here.put(KEYS[0], b"body")
    here.path.chmod(0o770)
    with pytest.raises(SpoolUnusable, match=r"others may write to it \(mode 770\)"):
        here.waiting()


def test_a_spool_of_another_user_is_refused(public_dir: Path) -> None:
    (public_dir / "spool").mkdir(mode=0o755)
    with pytest.raises(SpoolUnusable, match="it belongs to user 0, and this is user 65534"):
        as_nobody(Spool(public_dir / "spool", STORE, 2**30).put, KEYS[0], b"body")


def test_each_user_has_a_spool_of_his_own(settings: Settings, store: Store) -> None:
    assert Spool.of(settings, store).path.parent == settings.home / f"spool-{os.geteuid()}"


def test_a_file_that_is_not_what_was_written_is_kept_told_of_and_not_sent(here: Spool, store: Store) -> None:
    here.put(KEYS[0], BODY)
    here.put(KEYS[1], b"whole")
    damaged = here.path / KEYS[0].replace("/", ",")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    said: list[str] = []
    assert here.send(store, said.append) == (KEYS[1],)
    assert f"{KEYS[0]} is damaged; it is kept there and not sent" in said[0]
    assert [(each.key, each.is_intact) for each in here.ls()] == [(KEYS[0], False)]
    assert not store.exists(KEYS[0])


def test_verbs_list_and_send_what_is_spooled(settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETMARK_HOME", str(settings.home))
    Spool.of(settings, store).put(KEYS[0], b"body")
    listed = CliRunner().invoke(main, ["spool", "ls", "--json"])
    assert json.loads(listed.stdout) == [{"key": KEYS[0], "size_bytes": 4, "is_intact": True}]
    assert KEYS[0] in CliRunner().invoke(main, ["spool", "ls"]).stdout
    sent = CliRunner().invoke(main, ["spool", "send", "--json"])
    assert json.loads(sent.stdout) == {"sent": [KEYS[0]]}
    assert (store.read(KEYS[0]), Spool.of(settings, store).waiting()) == (b"body", [])


def _put(here: Spool, key: str, body: bytes) -> bool:
    return here.put(key, body)


def test_of_racing_processes_one_spools_a_key_and_all_spool_their_own(here: Spool) -> None:
    racing = [(here, KEYS[0], f"writer {number}".encode()) for number in range(4)]
    apart = [(here, key, BODY) for key in KEYS[1:5]]
    won = processes.at_once(_put, [*racing, *apart])
    assert (sum(won[:4]), won[4:]) == (1, [True] * 4)
    assert here.waiting() == KEYS[:5]
    assert here.read(KEYS[0]) == f"writer {won.index(True)}".encode()


def _put_all(here: Spool) -> None:
    for key in KEYS:
        here.put(key, BODY)


def test_a_process_killed_at_any_moment_leaves_whole_objects_or_none(tmp_path: Path) -> None:
    span_s = processes.duration_s(_put_all, Spool(tmp_path / "timed", STORE, 2**30))
    unfinished = 0
    for number, moment in enumerate(processes.moments(4, 30, span_s)):
        here = Spool(tmp_path / f"{number}", STORE, 2**30)
        processes.kill_after(moment, _put_all, here)
        assert all(each.is_intact for each in here.ls())
        unfinished += sum(path.name.startswith(".tmp-") for path in here.path.glob(".*"))
        _put_all(here)
        assert here.waiting() == KEYS
        assert len(list(here.path.iterdir())) == len(KEYS)
    assert unfinished > 0, "no kill met a write: the test has proved nothing"


def _send(here: Spool, settings: Settings) -> int:
    return len(here.send(storage.open_store(settings), _quiet))


def test_of_racing_senders_all_succeed_and_each_object_arrives_once(here: Spool, settings: Settings) -> None:
    _put_all(here)
    sent = processes.at_once(_send, [(here, settings)] * 4)
    store = storage.open_store(settings)
    assert sum(sent) >= len(KEYS)
    assert store.keys_under("raw") == KEYS
    assert {store.read(key) for key in KEYS} == {BODY}
    assert here.waiting() == []


def test_a_sender_killed_at_any_moment_loses_nothing(tmp_path: Path, settings: Settings) -> None:
    timed = Spool(tmp_path / "timed", STORE, 2**30)
    _put_all(timed)
    span_s = processes.duration_s(_send, timed, settings.model_copy(update={"store": f"file://{tmp_path}/timed-store"}))
    split = 0
    for number, moment in enumerate(processes.moments(5, 20, span_s)):
        here = Spool(tmp_path / f"{number}", STORE, 2**30)
        _put_all(here)
        there = settings.model_copy(update={"store": f"file://{tmp_path}/store-{number}"})
        processes.kill_after(moment, _send, here, there)
        store = storage.open_store(there)
        arrived = store.keys_under("raw")
        assert sorted({*arrived, *here.waiting()}) == KEYS
        assert {store.read(key) for key in arrived} <= {BODY}
        forgotten = set(arrived) - set(here.waiting())
        assert {keys.late_key(key) for key in forgotten} <= set(store.keys_under(keys.LATE))
        split += 0 < len(arrived) < len(KEYS)
        here.send(store, _quiet)
        assert (store.keys_under("raw"), here.waiting()) == (KEYS, [])
    assert split > 0, "no kill met a sender at work: the test has proved nothing"


class Outage:
    """A network before a real server that is there or not, as a test says; refused connections while it is not."""

    def __init__(self, target: servers.S3) -> None:
        self._target, self._port, self._proxy = target, servers.free_port(), ExitStack()
        self.come_back()

    @property
    def server(self) -> servers.S3:
        return servers.S3(f"http://127.0.0.1:{self._port}", self._target.access_key, self._target.secret_key)

    def go_away(self) -> None:
        self._proxy.close()

    def come_back(self) -> None:
        self._proxy.enter_context(servers.interfering(self._target, (), self._port))
        while not servers.listens(self._port):
            pass


@pytest.fixture(params=["moto", "ceph", "rclone"])
def outage(request: pytest.FixtureRequest) -> Iterator[Outage]:
    made = Outage(request.getfixturevalue(request.param))
    yield made
    made.go_away()


@pytest.fixture
def remote(outage: Outage, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a store behind the outage, in a bucket of its own."""
    there = conftest.on(outage.server, settings, monkeypatch)
    return there.model_copy(update={"store_retry_s": 0.2, "spool_wait_s": 20.0})


def _plan(jobs: int = 3) -> Plan:
    entries = tuple(SuiteEntry(benchmark="fio", params={**QUICK, "iodepth": depth + 1}) for depth in range(jobs))
    suite = Suite(name="test", description="", entries=entries)
    nodes = (make.node(free_floor_bytes=0),)
    return plan.make(suite, nodes, run_id=make.RUN_ID, created_at=make.AT, trigger="cli")


def _run(
    settings: Settings, made: Plan, attempt: int, when: Callable[[str], None] = _quiet
) -> tuple[list[RawOutput], list[str]]:
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        when(line)

    store = storage.open_store(settings)
    stored = node.run_jobs(settings, store, made, "gpu-01", attempt, say)
    return [RawOutput.model_validate_json(store.read(key)) for key in stored], said


def _kept(settings: Settings) -> list[str]:
    return Spool.of(settings, storage.open_store(settings)).waiting()


@pytest.mark.integration
def test_jobs_go_on_while_the_store_is_away_and_their_output_arrives_when_it_is_back(
    outage: Outage, remote: Settings
) -> None:
    def when(line: str) -> None:
        if line.startswith("2/3") and "about" in line:
            outage.go_away()
        if "trying for 20 s to send them" in line:
            outage.come_back()

    raws, said = _run(remote, _plan(), 1, when)
    assert [(raw.attempt, raw.exit_status) for raw in raws] == [(1, 0)] * 3
    assert [line for line in said if "is kept in" in line] != []
    assert any(line.startswith("2 objects are in") for line in said)
    assert _kept(remote) == []


@pytest.mark.integration
def test_environment_that_the_store_does_not_take_is_spooled_as_well(outage: Outage, remote: Settings) -> None:
    (remote.home / "scratch/fleetmark-old").mkdir(parents=True)

    def when(line: str) -> None:
        if line.startswith("reclaimed"):
            outage.go_away()
        if "trying for" in line:
            assert line.startswith("2 objects")
            outage.come_back()

    (raw,), _ = _run(remote, _plan(1), 1, when)
    there = storage.open_store(remote).read(keys.environment_key(raw.environment_id))
    assert Environment.model_validate_json(there).environment_id == raw.environment_id


@pytest.mark.integration
def test_retry_sends_what_a_task_could_not_and_does_not_run_it_again(outage: Outage, remote: Settings) -> None:
    impatient = remote.model_copy(update={"spool_wait_s": 0.2})
    made = _plan()

    def when(line: str) -> None:
        if line.startswith("2/3") and "about" in line:
            outage.go_away()

    with pytest.raises(StoreUnreachable):
        _run(impatient, made, 1, when)
    assert _kept(impatient) == sorted(keys.raw_key(made.run_id, "gpu-01", job.job_id, 1) for job in made.jobs[1:])
    with pytest.raises(StoreUnreachable):
        _run(impatient, made, 2)  # still away: the task fails, and the spool is as it was
    assert len(_kept(impatient)) == 2
    outage.come_back()
    raws, said = _run(impatient, made, 3)
    assert [(raw.attempt, raw.exit_status) for raw in raws] == [(1, 0)] * 3
    assert len(said) == 1
    assert said[0].startswith("sent to the object store")
    assert _kept(impatient) == []


@pytest.mark.integration
def test_next_run_on_the_node_sends_what_an_earlier_run_left(outage: Outage, remote: Settings) -> None:
    impatient = remote.model_copy(update={"spool_wait_s": 0.0})
    made = _plan(1)
    with pytest.raises(StoreUnreachable):
        _run(impatient, made, 1, lambda line: outage.go_away() if "about" in line else None)
    outage.come_back()
    later = _plan(1).model_copy(update={"run_id": "20261122T020000Z-bbbbbb"})
    _run(impatient, later, 1)
    store = storage.open_store(impatient)
    (left,) = store.keys_under(keys.raw_prefix(made.run_id))
    assert RawOutput.model_validate_json(store.read(left)).exit_status == 0


@pytest.mark.integration
def test_store_that_is_back_between_jobs_is_written_to_again(
    outage: Outage, remote: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_ASKED_AGAIN_AFTER_S", 0.0)

    def when(line: str) -> None:
        if line.startswith("1/3") and "about" in line:
            outage.go_away()
        if line.startswith("2/3") and "about" in line:
            outage.come_back()

    raws, said = _run(remote, _plan(), 1, when)
    assert [raw.exit_status for raw in raws] == [0, 0, 0]
    sent = next(number for number, line in enumerate(said) if line.startswith("sent to the object store"))
    assert said[sent + 1].startswith("3/3")
    assert not any("trying for" in line for line in said)


def _run_on(settings: Settings, made: Plan, log: Path) -> None:
    with log.open("a") as lines:
        node.run_jobs(
            settings, storage.open_store(settings), made, "gpu-01", 1, lambda line: print(line, file=lines, flush=True)
        )


@pytest.mark.integration
def test_task_killed_while_it_waits_for_the_store_loses_nothing(
    outage: Outage, remote: Settings, tmp_path: Path
) -> None:
    made, log = _plan(), tmp_path / "log"
    log.touch()
    store = storage.open_store(remote)
    first = keys.raw_key(made.run_id, "gpu-01", made.jobs[0].job_id, 1)

    def waits() -> bool:
        text = log.read_text()
        if "2/3" in text and servers.listens(int(outage.server.endpoint.rpartition(":")[2])):
            outage.go_away()
        return "trying for" in text

    assert processes.kill_when(waits, _run_on, remote, made, log)
    waiting = _kept(remote)
    assert waiting
    outage.come_back()
    raws, said = _run(remote, made, 2)
    assert store.exists(first)
    assert [(raw.attempt, raw.exit_status) for raw in raws] == [(1, 0)] * 3
    assert len(said) == 1
    assert _kept(remote) == []
