"""`fleetmark bench new`: what it writes works as it stands, and it overwrites nothing."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines import process, scaffold
from pipelines.cli import main

ROOT = Path(__file__).parents[2]
SHORTEST, LONGEST = "qq", "a_name_of_the_forty_letters_that_it_may_"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders of a checkout that the verb writes to, empty."""
    for folder in ("pipelines/benchmarks", "tests/benchmarks", "tests/samples"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.integration
def test_what_it_writes_passes_every_check_and_measures(tmp_path: Path) -> None:
    for part in ("pipelines", "tests", "infra"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    python = (sys.executable, "-m")
    fleetmark = (sys.executable, "-c", "from pipelines.cli import main; main()")
    short, long = (f"pipelines/benchmarks/{name}.py" for name in (SHORTEST, LONGEST))
    tests = tuple(f"tests/benchmarks/test_{name}.py" for name in (SHORTEST, LONGEST))
    environ = {**os.environ, "FLEETMARK_HOME": str(tmp_path / "home"), "FLEETMARK_LEASE_DIR": str(tmp_path)}
    for argv in (
        (*fleetmark, "bench", "new", SHORTEST),
        (*fleetmark, "bench", "new", LONGEST),
        (*python, "ruff", "format", "--check", short, long, *tests),
        (*python, "ruff", "check", short, long, *tests),
        (*python, "pytest", "-q", *tests, "tests/benchmarks/test_contract.py", "-k", f"{SHORTEST} or {LONGEST}"),
        (*fleetmark, "bench", "run", LONGEST, "--param", "mib=16"),
    ):
        passed = ("FLEETMARK_HOME", "FLEETMARK_LEASE_DIR")
        done = process.run(argv, timeout_s=300, cwd=tmp_path, environ=environ, passed=passed)
        assert done.exit_status == 0, f"{argv}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("name", ["fio", "Has-Dash", "../up", "class", "match", "9lives", "a" * 41, "x"])
def test_a_name_that_is_taken_or_is_none_is_refused_and_nothing_is_written(name: str, checkout: Path) -> None:
    done = CliRunner().invoke(main, ["bench", "new", name])
    assert done.exit_code == 2
    assert repr(name) in done.stderr
    assert [path for path in checkout.rglob("*") if path.is_file()] == []


def test_a_file_that_is_there_is_not_overwritten(checkout: Path) -> None:
    mine = checkout / "tests/benchmarks/test_mine.py"
    mine.write_text("mine")
    done = CliRunner().invoke(main, ["bench", "new", "mine"])
    assert done.exit_code == 1
    assert "tests/benchmarks/test_mine.py is there already" in done.stderr
    assert [path for path in checkout.rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "mine"


def test_outside_a_checkout_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["bench", "new", "mine"])
    assert done.exit_code == 1
    assert "it is no checkout of fleetmark" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_says_what_to_do_next(checkout: Path) -> None:
    done = CliRunner().invoke(main, ["bench", "new", "mine"])
    assert done.exit_code == 0
    assert all(path in done.stdout for path in scaffold.files("mine"))
    assert "make check" in done.stdout
