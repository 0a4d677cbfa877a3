"""A node's environment: fleetmark without Airflow, Arrow, pandas or Great Expectations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).parent / "uv"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment made from the node's lock alone."""
    home = tmp_path_factory.mktemp("node") / "venv"
    environ = {**os.environ, "VIRTUAL_ENV": str(home)}
    for argv in (
        ("venv", "-q", "--python", sys.executable, home),
        ("pip", "sync", "-q", "--require-hashes", ROOT / "requirements/node.lock"),
        ("pip", "install", "-q", "--no-deps", ROOT),
    ):
        subprocess.run((UV, *argv), check=True, env=environ)
    return home / "bin"


def test_a_node_measures_without_airflow_or_tables(node: Path, tmp_path: Path) -> None:
    given = ("runtime_s=0.2", "ramp_s=0", "size_bytes=1048576")
    environ = {**os.environ, "FLEETMARK_HOME": str(tmp_path), "FLEETMARK_LEASE_DIR": str(tmp_path)}
    done = subprocess.run(
        (node / "fleetmark", "bench", "run", "fio", *(part for each in given for part in ("--param", each)), "--json"),
        check=True,
        capture_output=True,
        env=environ,
        cwd=tmp_path,  # which has no inventory
    )
    assert json.loads(done.stdout)["outcome"] == "ok"


def test_a_verb_that_needs_the_tables_says_what_to_install(node: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "FLEETMARK_HOME": str(tmp_path)}
    done = subprocess.run(
        (node / "fleetmark", "results"), check=False, capture_output=True, text=True, env=environ, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr == "fleetmark: this needs DuckDB; install it with: pip install 'fleetmark[tables]'\n"


def test_a_node_has_none_of_the_heavy_packages(node: Path) -> None:
    listed = subprocess.run(
        (UV, "pip", "list", "--format=json", "--python", node / "python"), check=True, capture_output=True
    )
    names = {each["name"] for each in json.loads(listed.stdout)}
    assert names.isdisjoint({"apache-airflow", "pyarrow", "pandas", "great-expectations", "deltalake", "duckdb"})
