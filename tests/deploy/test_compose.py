"""docker-compose.yaml: refuses to start without secrets, and a run goes through it to a table."""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines import process
from pipelines.embedded.api import Airflow
from pipelines.process import Completed
from tests.following import wait_for
from tests.servers import free_port

ROOT = Path(__file__).parents[2]
SECRETS = (
    "POSTGRES_PASSWORD",
    "JWT_SECRET",
    "API_SECRET_KEY",
    "FERNET_KEY",
    "S3_SECRET_KEY",
    "ADMIN_PASSWORD",
    "VIEWER_PASSWORD",
)
BASES = ("python:3.11-slim-bookworm", "postgres:15-bookworm", "rustfs/rustfs:1.0.0")
LASTING = ("api-server", "scheduler", "dag-processor", "triggerer", "node")
SUITE = """
description = "tiny"

[[benchmarks]]
benchmark = "fio"
repeats = 2
params = { profile = "rand_read", runtime_s = 0.2, ramp_s = 0.0, size_bytes = 4194304 }
"""
BUILD = """
services:
  api-server: { build: { network: host } }
  node: { build: { network: host } }
"""
_UP_WITHIN_S = 900.0
_BUILT_WITHIN_S = 1800.0


@dataclass(frozen=True)
class Compose:
    """The stack with an environment file of its own; `values` is what is in there."""

    env_file: Path
    values: dict[str, str]
    files: tuple[Path, ...] = (ROOT / "docker-compose.yaml",)

    def __call__(self, *argv: str, timeout_s: float = 120.0) -> Completed:
        files = [word for file in self.files for word in ("-f", str(file))]
        return docker("compose", "--env-file", str(self.env_file), *files, *argv, timeout_s=timeout_s)

    def config(self) -> dict[str, Any]:
        return dict(json.loads(done(self("config", "--format", "json"))))


def docker(*argv: str, timeout_s: float = 60.0) -> Completed:
    return process.run(("docker", *argv), timeout_s=timeout_s, cwd=ROOT, passed=tuple(os.environ))


def done(completed: Completed) -> str:
    assert completed.exit_status == 0, f"{completed.argv}: {completed.stdout[-2000:]}{completed.stderr[-4000:]}"
    return completed.stdout


def compose(folder: Path, **other: str) -> Compose:
    """With secrets as infra/docker/make-env.sh makes them, and `other` values than its."""
    env_file = folder / ".env"
    done(process.run((str(ROOT / "infra/docker/make-env.sh"), str(env_file)), timeout_s=60))
    lines = [line for line in env_file.read_text().splitlines() if line and not line.startswith("#")]
    values = dict(line.split("=", 1) for line in lines) | other
    env_file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    return Compose(env_file, values)


@pytest.fixture
def described(tmp_path: Path) -> Compose:
    if shutil.which("docker") is None or docker("compose", "version").exit_status:
        pytest.skip("docker compose is not installed")
    return compose(tmp_path)


@pytest.fixture(scope="module")
def stack() -> Iterator[Compose]:
    if shutil.which("docker") is None or docker("compose", "version").exit_status:
        pytest.skip("docker compose is not installed")
    if docker("info").exit_status:
        pytest.skip("there is no Docker daemon")
    for image in BASES:
        if docker("image", "inspect", image).exit_status and docker("pull", image, timeout_s=600.0).exit_status:
            pytest.skip(f"the image {image} is not here, and cannot be pulled")
    folder = Path(tempfile.mkdtemp(prefix="fleetmark-compose-", dir="/tmp"))  # containers' user cannot enter pytest's
    try:
        folder.chmod(0o755)
        (folder / "config/suites").mkdir(parents=True)
        (folder / "config/suites/tiny.toml").write_text(SUITE)
        for file in ("hot.toml", "docker/fleet.toml"):
            shutil.copy(ROOT / "infra" / file, folder / "config")
        (folder / "build.yaml").write_text(BUILD)
        (folder / "backup").mkdir()
        (folder / "backup").chmod(0o777)
        made = compose(
            folder,
            PROJECT=f"fleetmark-test-{os.getpid()}",
            CONFIG=str(folder / "config"),
            INVENTORY="fleet.toml",
            NIGHTLY="",
            PORT=str(free_port()),
            S3_PORT=str(free_port()),
        )
        made = Compose(made.env_file, made.values, (*made.files, folder / "build.yaml"))
        done(made("build", "api-server", "node", timeout_s=_BUILT_WITHIN_S))
        try:
            up = made("up", "--detach", "--wait", *LASTING, timeout_s=_UP_WITHIN_S)
            assert up.exit_status == 0, f"{up.stderr[-2000:]}{made('logs', '--tail', '30').stdout}"
            yield made
        finally:
            done(made("down", "--volumes", "--remove-orphans", "--timeout", "10"))
    finally:
        shutil.rmtree(folder)


def test_the_environment_file_is_made_once_with_a_secret_for_each_name_and_for_its_owner_alone(tmp_path: Path) -> None:
    made = compose(tmp_path)
    secrets = {made.values[name] for name in SECRETS}
    assert len(secrets) == len(SECRETS)
    assert min(map(len, secrets)) >= 40
    assert stat.S_IMODE(made.env_file.stat().st_mode) == 0o600
    before = made.env_file.read_text()
    again = process.run((str(ROOT / "infra/docker/make-env.sh"), str(made.env_file)), timeout_s=60)
    assert (again.exit_status, made.env_file.read_text()) == (1, before)


@pytest.mark.integration
@pytest.mark.parametrize("name", [*SECRETS, "S3_ACCESS_KEY"])
@pytest.mark.parametrize("line", ["", "{name}=\n"])
def test_nothing_starts_while_a_secret_is_missing(described: Compose, name: str, line: str) -> None:
    others = "".join(f"{key}={value}\n" for key, value in described.values.items() if key != name)
    described.env_file.write_text(others + line.format(name=name))
    refused = described("config", "--quiet")
    assert refused.exit_status != 0
    assert f"{name} is missing" in refused.stderr


@pytest.mark.integration
def test_no_service_is_root_or_writes_in_its_image_or_has_no_limits_or_listens_beyond_loopback(
    described: Compose,
) -> None:
    services = described.config()["services"]
    assert set(LASTING) < set(services)
    for name, service in services.items():
        assert service["user"] not in {"", "root", "0", "0:0"}, name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"memory", "pids"} <= set(service["deploy"]["resources"]["limits"]), name
        assert {port["host_ip"] for port in service.get("ports", [])} <= {"127.0.0.1"}, name
        assert not service.get("privileged"), name


@pytest.mark.integration
def test_with_the_override_the_node_has_the_machines_gpus_and_its_lease_directory(
    described: Compose, tmp_path: Path
) -> None:
    files = (*described.files, ROOT / "docker-compose.gpu.yaml")
    node = Compose(described.env_file, described.values, files)
    assert "SCRATCH is missing" in node("config", "--quiet").stderr
    with described.env_file.open("a") as file:
        file.write(f"SCRATCH={tmp_path}\n")
    service = node.config()["services"]["node"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    mounts = {mount["target"]: mount["source"] for mount in service["volumes"]}
    assert mounts["/scratch"] == str(tmp_path)
    assert mounts["/run/lock"] == "/run/lock"
    assert service["tmpfs"] == ["/tmp"]


@pytest.mark.integration
def test_a_run_goes_through_the_stack_to_a_queried_table(stack: Compose) -> None:
    url = f"http://127.0.0.1:{stack.values['PORT']}"
    airflow = Airflow(url, "admin", stack.values["ADMIN_PASSWORD"], "the stack's")
    wait_for(lambda: airflow.has_dag("fleet_benchmark") or None, _UP_WITHIN_S)
    run = airflow.trigger("fleet_benchmark", {"suite": "tiny"})
    ended = wait_for(lambda: now if (now := airflow.run(run)).ended else None, _UP_WITHIN_S)
    assert ended.state == "success", [task for task in airflow.tasks(run) if task.state == "failed"]
    sql = "SELECT node, outcome, reason, count(*) AS jobs FROM runs GROUP BY ALL"
    answered = json.loads(done(stack("exec", "-T", "scheduler", "fleetmark", "query", "--json", sql)))
    assert answered == [{"node": "demo", "outcome": "ok", "reason": None, "jobs": 2}]


@pytest.mark.integration
def test_no_process_of_the_stack_is_root(stack: Compose) -> None:
    for name in (*LASTING, "postgres", "s3"):
        assert done(stack("exec", "-T", name, "id", "-u")).strip() != "0", name


@pytest.mark.integration
def test_the_node_has_no_secret_of_the_control_plane_and_does_not_reach_its_database(stack: Compose) -> None:
    seen = done(stack("exec", "-T", "node", "env"))
    theirs = [name for name in SECRETS if name != "S3_SECRET_KEY"]
    assert [name for name in theirs if stack.values[name] in seen] == []
    asked = stack(
        "exec", "-T", "node", "python", "-c", "import socket; socket.create_connection(('postgres', 5432), 9)"
    )
    assert asked.exit_status == 1
    assert "gaierror" in asked.stderr


@pytest.mark.integration
def test_the_runbooks_commands_add_list_and_revoke_a_node(stack: Compose, tmp_path: Path) -> None:
    credentials = ("exec", "-T", "scheduler", "python", "-m", "fleetmark_airflow.credentials")
    done(process.run(("openssl", "genpkey", "-algorithm", "ed25519", "-out", str(tmp_path / "key")), timeout_s=60))
    public = done(process.run(("openssl", "pkey", "-in", str(tmp_path / "key"), "-pubout"), timeout_s=60))
    (tmp_path / "gpu-01.pub").write_text(public)
    add = ("docker", "compose", "--env-file", str(stack.env_file), *credentials, "add", "gpu-01")
    argv = ("sh", "-c", 'exec "$@" <"$0"', str(tmp_path / "gpu-01.pub"), *add, "--public", "/dev/stdin")
    done(process.run(argv, timeout_s=60, cwd=ROOT, passed=tuple(os.environ)))
    assert [line.split()[0] for line in done(stack(*credentials, "list")).splitlines()] == ["demo", "gpu-01"]
    done(stack(*credentials, "revoke", "gpu-01"))
    assert [line.split()[0] for line in done(stack(*credentials, "list")).splitlines()] == ["demo"]


@pytest.mark.integration
def test_the_runbooks_command_backs_up_store_and_database(stack: Compose) -> None:
    volume = f"{stack.env_file.with_name('backup')}:/backup"
    fleetmark = ("run", "--rm", "-T", "--no-deps", "--volume", volume, "--entrypoint", "fleetmark", "scheduler")
    made = json.loads(done(stack(*fleetmark, "backup", "/backup", "--json", timeout_s=_UP_WITHIN_S)))
    assert made["objects"] > 0
    assert made["database"]
    done(stack(*fleetmark, "restore", "/backup", "--check", timeout_s=_UP_WITHIN_S))
