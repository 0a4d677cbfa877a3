"""The README keeps what it promises: every command in it runs, and prints what it says."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```console\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
SHOWN = {  # command -> the output below it
    command: output.strip("\n")
    for block in BLOCKS
    for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, flags=re.MULTILINE)
}
RUN_BY_CI = {"make test", "make check"}
FLEETMARK = [command for command in SHOWN if command.startswith(".venv/bin/fleetmark")]


def shape(text: str) -> list[str]:
    """The words of a text without what differs from run to run: numbers, units and paths."""
    words = re.sub(r"\S*\d\S*|[kMGµmn]?B?/s|±\S+|[µm]?s\b|file:\S+|─+|\s+", " ", text).split()
    return [word for word in words if word not in {"UI", "GB/s", "MB/s"}]


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An empty home for the demo; whatever still runs of it at the end is stopped."""
    home = tmp_path_factory.mktemp("home")
    given = {**os.environ, "FLEETMARK_HOME": str(home), "FLEETMARK_LEASE_DIR": str(home)}
    yield given
    subprocess.run(("make", "down"), cwd=ROOT, env=given, check=True, capture_output=True)


def run(command: str, environ: dict[str, str]) -> str:
    done = subprocess.run(command, shell=True, cwd=ROOT, env=environ, check=False, capture_output=True, text=True)  # noqa: S602
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def demonstrated(environ: dict[str, str]) -> str:
    """What `make demo` printed on stdout."""
    return run("make demo", environ)


def test_the_demo_prints_a_table_like_the_one_shown(demonstrated: str) -> None:
    cases = [line.split()[1] for line in demonstrated.splitlines() if line.startswith("localhost")]
    shown = [line.split()[1] for line in SHOWN["make demo"].splitlines() if line.startswith("localhost")]
    assert cases == shown


@pytest.mark.parametrize("command", FLEETMARK)
@pytest.mark.usefixtures("demonstrated")
def test_a_command_prints_what_the_readme_shows(command: str, environ: dict[str, str]) -> None:
    assert shape(run(command, environ)) == shape(SHOWN[command])


def test_every_command_is_run_by_a_test_or_by_ci() -> None:
    ci = (ROOT / ".ci/run").read_text()
    assert set(SHOWN) - set(FLEETMARK) - {"make demo"} <= RUN_BY_CI
    assert all(command in ci for command in RUN_BY_CI)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([a-z-]+)`", README))))
def test_every_target_that_is_named_exists(target: str, environ: dict[str, str]) -> None:
    run(f"make --dry-run {target}", environ)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_it_can_be_read_in_one_go() -> None:
    assert len(README.splitlines()) <= 150
