"""What a newcomer does: `up`, `demo`, `down`, Ctrl-C; and that nothing is ever left behind."""

import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest

from pipelines import process, process_groups, servers, storage
from pipelines.embedded.home import Home
from pipelines.embedded.keeper import COMPONENTS
from pipelines.servers import Server
from pipelines.settings import Settings
from pipelines.tables.query import open_reader
from tests.integration.conftest import descendants, embedded_settings

pytestmark = pytest.mark.integration
FLEETMARK = str(Path(sys.executable).with_name("fleetmark"))


@contextmanager
def started(settings: Settings, *verb: str) -> Iterator[Server]:
    """A command in the background; everything it started is ended with the block, whatever the test found."""
    log = settings.home.parent / f"{verb[0]}.log"
    log.write_bytes(b"")
    server = servers.start(verb[0], (FLEETMARK, *verb), log=log, environ=Home(settings).environ())
    try:
        yield server
    finally:
        servers.stop((server,), 30.0)


def said(settings: Settings, *verb: str) -> str:
    """What a command that ends well printed."""
    with started(settings, *verb) as command:
        assert servers.first_to_end((command,), 180.0), f"{verb} takes too long"
        return command.log.read_text()


def wait_for_line(command: Server, text: str) -> None:
    deadline = time.monotonic() + 120
    while text not in command.log.read_text():
        assert command.running, command.log.read_text()
        assert time.monotonic() < deadline, command.log.read_text()
        time.sleep(0.1)


def assert_gone(pids: set[int]) -> None:
    """Whoever was killed with its parent is gone a moment later."""
    deadline = time.monotonic() + 15
    while alive := {pid for pid in pids if process_groups.start_ticks_of(pid) is not None}:
        assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_text() for pid in alive]
        time.sleep(0.1)


def test_up_then_two_demos_then_down_appends_two_runs_and_leaves_no_process(tmp_path: Path) -> None:
    settings = embedded_settings(tmp_path)
    try:
        assert "Airflow is up after" in said(settings, "up")
        keeper = json.loads(Home(settings).instance.read_text())["keeper"]["pid"]
        assert "Airflow is already up" in said(settings, "up")
        for runs in (1, 2):
            printed = said(settings, "demo")
            assert "report  file://" in printed
            header, row = (line for line in printed.splitlines() if line.startswith(("node ", "localhost ")))
            assert {"bandwidth", "IOPS", "p50", "p99", "p99.9"} <= set(header.split())
            assert row.split()[:4] == ["localhost", "fio", "rand_read-4MiB", "read"]
            assert "B/s" in row
            with open_reader(storage.open_store(settings)) as reader:
                assert reader.query("SELECT count(*) FROM completed").rows == ((runs,),)
        everything = descendants(keeper)
        assert len(everything) > len(COMPONENTS)
    finally:
        printed = said(settings, "down")
    assert "Airflow is stopped" in printed
    assert_gone(everything)
    assert "Airflow is not running" in said(settings, "down")


def test_ctrl_c_in_the_middle_of_a_measurement_leaves_no_process_and_no_run_to_take_up(tmp_path: Path) -> None:
    settings = embedded_settings(tmp_path, quick_s=60.0)
    with started(settings, "demo") as demo:
        wait_for_line(demo, "measure localhost: running")
        keeper = json.loads(Home(settings).instance.read_text())["keeper"]["pid"]
        fio = wait_for_fio(keeper)
        everything = descendants(keeper)
        assert fio in everything
        os.killpg(demo.pid, signal.SIGINT)
        assert servers.first_to_end((demo,), 30.0)
        assert_gone({demo.pid, *everything})
    assert "Aborted" in demo.log.read_text()
    with closing(sqlite3.connect(Home(settings).database)) as database:
        assert database.execute("SELECT state FROM dag_run").fetchall() == [("failed",)]
    assert not Home(settings).instance.exists()


def wait_for_fio(keeper: int) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for pid in descendants(keeper):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "fio":
                return pid
        time.sleep(0.1)
    raise TimeoutError("fio was not started")


@pytest.mark.parametrize("victim", ["demo", "keeper"])
def test_kill_9_while_it_starts_leaves_no_process(tmp_path: Path, victim: str) -> None:
    settings = embedded_settings(tmp_path)
    with started(settings, "demo") as demo:
        deadline = time.monotonic() + 60
        while len(everything := descendants(demo.pid)) < 2 + len(COMPONENTS):  # the demo, the keeper, its components
            assert demo.running, demo.log.read_text()
            assert time.monotonic() < deadline, demo.log.read_text()
            time.sleep(0.1)
        keeper = json.loads(Home(settings).instance.read_text())["keeper"]["pid"]
        os.kill(demo.pid if victim == "demo" else keeper, signal.SIGKILL)
        assert_gone(everything)


def test_a_stop_at_any_moment_of_starting_is_never_lost(tmp_path: Path) -> None:
    home = Home(embedded_settings(tmp_path))
    home.logs.mkdir(parents=True)
    home.database.touch()
    home.migrated.write_text(version("apache-airflow-core"))  # its components start at once
    for point in range(30):
        home.instance.unlink(missing_ok=True)
        argv = (sys.executable, "-m", "pipelines.embedded")
        keeper = servers.start("keeper", argv, log=tmp_path / "keeper.log", environ=home.environ())
        try:
            while not home.instance.exists():  # announced; now it starts its components, within 50 ms
                assert not servers.first_to_end((keeper,), 0.001), keeper.log.read_text()
            time.sleep(point * 0.0015)
            everything = descendants(keeper.pid)
            os.kill(keeper.pid, signal.SIGTERM)
            assert servers.first_to_end((keeper,), 30.0), keeper.log.read_text()
            assert "by itself" not in keeper.log.read_text()  # a component had no database; the signal was lost
            assert_gone(everything)
        finally:
            servers.stop((keeper,), 0.0)


def test_a_missing_tool_is_said_before_anything_starts(tmp_path: Path) -> None:
    settings = embedded_settings(tmp_path)
    done = process.run((FLEETMARK, "demo"), timeout_s=60, environ={"PATH": "/nowhere", "HOME": str(tmp_path)})
    assert done.exit_status == 2
    assert "fio" in done.stderr
    assert "apt" in done.stderr
    assert not settings.home.exists()


def test_an_inventory_that_cannot_be_read_is_said_before_anything_starts(tmp_path: Path) -> None:
    settings = embedded_settings(tmp_path).model_copy(update={"inventory": tmp_path / "fleet.toml"})
    settings.inventory.write_text("[[nodes]]\nname = 'a b'\n")
    printed = said(settings, "up")
    assert printed.startswith(f"fleetmark: {settings.inventory}, line 2, field nodes[0].name: ")
    assert not settings.home.exists()
