"""A whole deployment in a network that has nothing but loopback: no process of it as much as tries to leave."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from playwright.sync_api import Route, sync_playwright

from pipelines import keys, stages
from pipelines.embedded.home import setting_variables
from pipelines.storage import Store
from pipelines.tables import parse, validate
from tests import make
from tests.integration.conftest import embedded_settings
from tests.tables import landings
from tests.upgrade.make_fixture import source

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.integration
_DEADLINE_S = 300
_HERE = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::", "", "None"}  # noqa: S104 - what names this machine alone
_WATCH = """
import os, sys
def watch(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        address = args[1] if event in ("socket.connect", "socket.sendto") else args
        if isinstance(address, tuple):
            with open(os.environ["ASKED_FOR"], "a") as file:
                host = address[0].decode() if isinstance(address[0], bytes) else address[0]
                file.write(f"{host} {event} by {' '.join(sys.orig_argv)[:200]!r}\\n")
sys.addaudithook(watch)
"""
_ALONE = """
ip link set lo up && "$@"; status=$?
cat /proc/net/snmp /proc/net/snmp6 > "$COUNTED"; exit $status
"""


class Alone:
    """Runs programs where loopback is the only network; knows what they asked for, those of C and Rust included."""

    def __init__(self, folder: Path, **environ: str) -> None:
        (folder / "watch").mkdir()
        (folder / "watch/sitecustomize.py").write_text(_WATCH)
        self._asked, self._counted = folder / "asked", folder / "counted"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "FLEETMARK"))}
        paths = {"PYTHONPATH": str(folder / "watch"), "ASKED_FOR": str(self._asked), "COUNTED": str(self._counted)}
        self._environ = {**kept, "HOME": str(folder), **environ, **paths}
        self.unreachable: Counter[str] = Counter()

    def __call__(self, *argv: str) -> str:
        """What it prints on stdout."""
        done = subprocess.run(
            ("unshare", "--net", "sh", "-c", _ALONE, "sh", *argv),
            check=False, capture_output=True, text=True, env=self._environ, cwd=ROOT, timeout=_DEADLINE_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        self.unreachable.update(_without_route(self._counted.read_text()))
        return done.stdout

    @property
    def asked_for(self) -> list[str]:
        """What Python asked for and is not this machine, and by whom."""
        lines = self._asked.read_text().splitlines() if self._asked.exists() else []
        return [line for line in lines if line.partition(" ")[0] not in {*_HERE, os.uname().nodename}]

    @property
    def heard(self) -> int:
        """How many addresses of this machine were asked for."""
        return len(self._asked.read_text().splitlines()) - len(self.asked_for)


def _without_route(counters: str) -> dict[str, int]:
    """How often the kernel had no route for what a process sent: IpOutNoRoutes and Ip6OutNoRoutes, proc_net(5)."""
    lines = [line.split() for line in counters.splitlines()]
    names, values = (line for line in lines if line[0] == "Ip:")
    found = dict(zip(names, values, strict=True)) | {line[0]: line[1] for line in lines if len(line) == 2}
    return {name: int(found[name]) for name in ("OutNoRoutes", "Ip6OutNoRoutes")}


@pytest.fixture
def alone(tmp_path: Path) -> Alone:
    settings = embedded_settings(tmp_path)
    return Alone(tmp_path, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}", **setting_variables(settings))


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_the_watch_sees_an_attempt_to_leave_of_any_program(alone: Alone, address: str) -> None:
    code = f"import socket\ntry: socket.create_connection(('{address}', 9), 1)\nexcept OSError: pass"
    alone(sys.executable, "-c", code)
    assert [line.split()[0] for line in alone.asked_for if "getaddrinfo" not in line] == [address]
    before = alone.unreachable.total()
    assert before > 0
    alone("bash", "-c", f"exec 3<>/dev/tcp/{address}/9 || true")
    assert alone.unreachable.total() > before


def test_a_deployment_with_its_airflow_asks_for_nothing_outside_of_this_machine(alone: Alone, tmp_path: Path) -> None:
    for name, data in source().items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(data)
    alone("fleetmark", "demo")  # through every stage, with all of Airflow's components
    alone("fleetmark", "run", "--suite", "tiny")
    assert json.loads(alone("fleetmark", "query", "SELECT count(*) AS runs FROM completed", "--json")) == [{"runs": 2}]
    alone("fleetmark", "dataset", "publish", str(tmp_path / "source"), "--name", "d", "--format", "blob")
    alone("fleetmark", "dataset", "stage", "d")
    alone("fleetmark", "backup", str(tmp_path / "backup"))
    assert alone.asked_for == []
    assert alone.unreachable == {"OutNoRoutes": 0, "Ip6OutNoRoutes": 0}
    assert alone.heard > 10  # Airflow's components talk to each other


def test_data_docs_make_the_readers_browser_ask_no_host_for_anything(store: Store) -> None:
    landings.hand_in(store, landings.raws())
    validate.validate_batch(store, parse.prepare(store, stages.load_plan(store, make.RUN_ID), make.AT))
    pages = [key for key in store.keys_under(keys.docs_prefix(make.RUN_ID)) if key.endswith(".html")]
    asked: list[str] = []

    def note(route: Route) -> None:
        asked.append(route.request.url)
        route.continue_()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        page.route("**/*", note)
        for key in pages:
            page.goto(Path(store.path(key)).as_uri(), wait_until="load")
        said = page.inner_text("body")
        browser.close()
    assert len(pages) > 3
    assert "Expectation" in said
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert sum(url.endswith(".html") for url in asked) == len(pages)
