"""infra/node: the installer, really run below a folder, and the unit, as systemd reads it."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import process
from pipelines.process import Completed

ROOT = Path(__file__).parents[2]
INSTALLER = ROOT / "infra/node/install.sh"
UNIT = ROOT / "infra/node/fleetmark-worker.service"
ARGUMENTS = (
    *("--node", "gpu-01"),
    *("--control-plane", "https://fleet.example.org:8443"),
    *("--store", "s3://bench/prod"),
    *("--s3-endpoint", "https://s3.example.org"),
    *("--scratch", "/mnt/nvme/scratch"),
)
SECRET = "the-secret-of-the-object-store"
_INSTALLED_WITHIN_S = 1200.0


def install(*argv: str) -> Completed:
    environ = {**os.environ, "AWS_ACCESS_KEY_ID": "node", "AWS_SECRET_ACCESS_KEY": SECRET}
    passed = tuple(name for name in environ if not name.startswith("FLEETMARK"))
    return process.run((str(INSTALLER), *argv), timeout_s=_INSTALLED_WITHIN_S, environ=environ, passed=passed)


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("node")
    done = install(*ARGUMENTS, "--prefix", str(folder))
    assert done.exit_status == 0, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("script", sorted(ROOT.glob("infra/**/*.sh")), ids=lambda path: path.name)
def test_shellcheck_finds_nothing_in_the_scripts(script: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    found = process.run(("shellcheck", "--severity=warning", str(script)), timeout_s=60)
    assert found.exit_status == 0, found.stdout


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ((), "--node is a name"),
        (("--node", "../../etc"), "--node is a name"),
        (("--node", "a", "--control-plane", "fleet.example.org"), "--control-plane is a URL"),
        (("--node", "a", "--control-plane", "https://x y"), "--control-plane is a URL"),
        (("--node", "a", "--control-plane", "https://x", "--store", "bench"), "--store is a URL"),
        ((*ARGUMENTS, "--scratch", "here"), "--scratch is an absolute path"),
        (("--nodes", "a"), "there is no option --nodes"),
        (("--node",), "--node needs a value"),
    ],
)
def test_a_wrong_argument_is_refused_with_a_sentence_before_anything_is_done(
    argv: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    refused = install("--prefix", str(tmp_path), *argv)
    assert refused.exit_status == 2
    assert sentence in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path: Path) -> None:
    told = install(*ARGUMENTS, "--prefix", str(tmp_path), "--dry-run")
    assert told.exit_status == 0, told.stderr
    assert f"would write: {tmp_path}/etc/fleetmark/node.env (mode 600" in told.stdout
    assert "requirements/worker.lock" in told.stdout
    assert SECRET not in told.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_the_node_has_the_worker_and_nothing_of_the_control_plane(prefix: Path) -> None:
    python = str(prefix / "opt/fleetmark/venv/bin/python")
    for module in ("fleetmark_airflow.component", "airflow.providers.edge3", "pipelines.node"):
        found = process.run((python, "-c", f"import {module}"), timeout_s=120, cwd=prefix)
        assert found.exit_status == 0, found.stderr
    for module in ("pandas", "great_expectations", "deltalake", "duckdb"):
        absent = process.run((python, "-c", f"import {module}"), timeout_s=120, cwd=prefix)
        assert "ModuleNotFoundError" in absent.stderr, module
    assert (prefix / "opt/fleetmark/dags/fleet_benchmark.py").is_file()
    files = (path for path in (prefix / "opt/fleetmark/venv").rglob("*") if path.suffix != ".pyc")
    assert sum(path.lstat().st_size for path in files) < 300 * 2**20


@pytest.mark.integration
def test_settings_and_key_are_for_the_workers_user_alone_and_hold_no_secret_of_the_control_plane(prefix: Path) -> None:
    settings = prefix / "etc/fleetmark"
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in settings.iterdir()} == {
        "node.env": 0o600,
        "node.pem": 0o600,
        "node.pub": 0o644,
    }
    lines = (line for line in (settings / "node.env").read_text().splitlines() if not line.startswith("#"))
    values = dict(line.split("=", 1) for line in lines)
    assert values["FLEETMARK_NODE"] == "gpu-01"
    assert values["FLEETMARK_S3_ENDPOINT"] == "https://s3.example.org"
    assert values["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert values["AIRFLOW__EDGE__API_URL"] == "https://fleet.example.org:8443/edge_worker/v1/rpcapi"
    assert values["AIRFLOW__API_AUTH__JWT_PRIVATE_KEY_PATH"] == str(settings / "node.pem")
    assert values["AIRFLOW__API_AUTH__JWT_SECRET"] == ""


def on_the_node(prefix: Path, *argv: str) -> Completed:
    """What a program of the node's environment does where the worker runs, with the settings that the worker has."""
    lines = (prefix / "etc/fleetmark/node.env").read_text().splitlines()
    environ = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    program = str(prefix / "opt/fleetmark/venv/bin" / argv[0])
    passed = {**environ, "PATH": os.environ["PATH"]}
    folder = prefix / "var/lib/fleetmark"
    return process.run((program, *argv[1:]), timeout_s=120, cwd=folder, environ=passed, passed=tuple(environ))


@pytest.mark.integration
def test_the_settings_are_such_that_fleetmark_takes_them(prefix: Path) -> None:
    told = on_the_node(prefix, "fleetmark", "settings", "--json")
    assert told.exit_status == 0, told.stderr
    assert "gpu-01" in told.stdout


@pytest.mark.integration
def test_the_worker_finds_the_dags_whose_tasks_it_is_given(prefix: Path) -> None:
    code = (
        "from airflow.dag_processing.dagbag import DagBag; "
        f"bag = DagBag({str(prefix / 'opt/fleetmark/dags')!r}); print(bag.import_errors, *bag.dags)"
    )
    read = on_the_node(prefix, "python", "-c", code)
    assert read.exit_status == 0, read.stderr
    assert read.stdout.splitlines()[-1].startswith("{} "), read.stdout
    assert "fleet_benchmark" in read.stdout.splitlines()[-1].split()


@pytest.mark.integration
def test_the_key_is_one_that_the_control_plane_takes(prefix: Path, tmp_path: Path) -> None:
    from fleetmark_airflow import credentials

    keys = tmp_path / "nodes.jwks"
    public = credentials.read_public(prefix / "etc/fleetmark/node.pub")
    credentials.add(keys, credentials.of_node("gpu-01", public))
    assert [key.node for key in credentials.load(keys).values()] == ["gpu-01"]


@pytest.mark.integration
def test_a_second_run_leaves_program_settings_and_key_as_they_are(prefix: Path) -> None:
    before = snapshot(prefix / "opt"), (prefix / "etc/fleetmark/node.pem").read_bytes()
    settings = (prefix / "etc/fleetmark/node.env").read_text()
    again = install(*ARGUMENTS, "--node", "gpu-02", "--prefix", str(prefix))
    assert again.exit_status == 0, again.stderr
    assert "is up to date" in again.stdout
    assert "node.env is left as it is" in again.stdout
    assert (snapshot(prefix / "opt"), (prefix / "etc/fleetmark/node.pem").read_bytes()) == before
    assert (prefix / "etc/fleetmark/node.env").read_text() == settings


@pytest.mark.integration
def test_systemd_takes_the_unit_and_its_drop_in(prefix: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = (prefix / "etc/systemd/system/fleetmark-worker.service").read_text()
    assert text == UNIT.read_text()
    drop_in = (prefix / "etc/systemd/system/fleetmark-worker.service.d/scratch.conf").read_text()
    assert drop_in == f"[Service]\nReadWritePaths={prefix}/mnt/nvme/scratch\n"
    unit = tmp_path / UNIT.name  # with the program where it is
    unit.write_text(text.replace("/opt/fleetmark", f"{prefix}/opt/fleetmark"))
    (tmp_path / f"{UNIT.name}.d").mkdir()
    (tmp_path / f"{UNIT.name}.d/scratch.conf").write_text(drop_in)
    verified = process.run(("systemd-analyze", "verify", "--man=no", str(unit)), timeout_s=60)
    assert (verified.exit_status, verified.stderr) == (0, "")


@pytest.mark.integration
def test_uninstalling_keeps_settings_and_state_until_they_are_purged(prefix: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(prefix, copy, symlinks=True)
    assert install("--uninstall", "--prefix", str(copy)).exit_status == 0
    assert not (copy / "opt/fleetmark").exists()
    assert not (copy / "etc/systemd/system/fleetmark-worker.service").exists()
    assert (copy / "etc/fleetmark/node.pem").exists()
    assert install("--uninstall", "--purge", "--prefix", str(copy)).exit_status == 0
    assert not (copy / "etc/fleetmark").exists()
    assert not (copy / "var/lib/fleetmark").exists()
    assert (copy / "mnt/nvme/scratch").is_dir()
    assert install("--uninstall", "--prefix", str(copy)).exit_status == 0, "it is safe to repeat"
