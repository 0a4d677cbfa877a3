"""docker-compose.yaml brought up: with secrets, ports and configuration of its own, and gone afterwards."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines import process
from pipelines.embedded.api import Airflow, Run
from pipelines.errors import AirflowFailed
from pipelines.process import Completed
from tests.following import wait_for
from tests.servers import free_port

ROOT = Path(__file__).parents[2]
BASES = ("python:3.11-slim-bookworm", "postgres:15-bookworm", "rustfs/rustfs:1.0.0")
LASTING = ("api-server", "scheduler", "dag-processor", "triggerer", "node")
WITHIN_S = 900.0
_BUILT_WITHIN_S = 1800.0
_SUITE = """
description = "tiny"

[[benchmarks]]
benchmark = "fio"
repeats = 2
params = { profile = "rand_read", runtime_s = 0.2, ramp_s = 0.0, size_bytes = 4194304 }
"""
_OVER = """
x-short: &short # what a test cannot wait for
  AIRFLOW__EDGE__JOB_POLL_INTERVAL: "1"
  AIRFLOW__EDGE__HEARTBEAT_INTERVAL: "5"
  AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL: "1"
services:
  api-server: { build: { network: host }, environment: *short }
  scheduler: { environment: *short }
  dag-processor: { environment: *short }
  node: { build: { network: host }, environment: *short }
"""


@dataclass(frozen=True)
class Compose:
    """The stack with an environment file of its own."""

    env_file: Path
    files: tuple[Path, ...] = (ROOT / "docker-compose.yaml",)

    def __call__(self, *argv: str, timeout_s: float = WITHIN_S) -> Completed:
        return self._run("docker", "compose", *argv, timeout_s=timeout_s)

    @property
    def values(self) -> dict[str, str]:
        """What is in the environment file."""
        return dict(line.split("=", 1) for line in self.env_file.read_text().splitlines())

    def change(self, **values: str) -> None:
        changed = self.values | values
        self.env_file.write_text("".join(f"{name}={value}\n" for name, value in changed.items()))

    def config(self) -> dict[str, Any]:
        return dict(json.loads(done(self("config", "--format", "json"))))

    @property
    def folder(self) -> Path:
        return self.env_file.parent

    @property
    def inventory(self) -> Path:
        return self.folder / "config/fleet.toml"

    def follow(self, words: str, **instead: str) -> Completed:
        """What the command of the runbook does that has these words, with other words `instead` of some of its own."""
        command = _command(words)
        for old, new in {"/backup:": f"{self.folder}/backup:", **instead}.items():
            command = command.replace(old, new)
        return self._run("bash", "-ec", command)

    def airflow(self, user: str = "admin") -> Airflow:
        values = self.values
        url = f"http://127.0.0.1:{values['PORT']}"
        airflow = Airflow(url, user, values[f"{user.upper()}_PASSWORD"], "the stack's")
        wait_for(lambda: airflow.has_dag("fleet_benchmark") or None, WITHIN_S)
        return airflow

    def ended(self, **conf: Any) -> Run:
        """A run of the tiny suite, from its start to its end."""
        airflow = self.airflow()
        run = airflow.trigger("fleet_benchmark", {"suite": "tiny", **conf})

        def look() -> Run | None:
            with suppress(AirflowFailed):  # on a loaded machine it does not answer in time
                now = airflow.run(run)
                return now if now.ended else None
            return None

        return wait_for(look, WITHIN_S)

    def query(self, sql: str) -> Any:
        return json.loads(done(self("exec", "scheduler", "fleetmark", "query", "--json", sql)))

    def _run(self, *argv: str, timeout_s: float = WITHIN_S) -> Completed:
        said = {"COMPOSE_FILE": ":".join(map(str, self.files)), "COMPOSE_ENV_FILES": str(self.env_file)}
        environ = {**os.environ, **said}
        return process.run(argv, timeout_s=timeout_s, cwd=ROOT, environ=environ, passed=tuple(environ))


def done(completed: Completed) -> str:
    assert completed.exit_status == 0, f"{completed.argv}: {completed.stdout[-2000:]}{completed.stderr[-4000:]}"
    return completed.stdout


def prepared(folder: Path, **other: str) -> Compose:
    """With secrets as infra/docker/make-env.sh makes them, and `other` values than its."""
    env_file = folder / ".env"
    done(process.run((str(ROOT / "infra/docker/make-env.sh"), str(env_file)), timeout_s=60))
    lines = env_file.read_text().splitlines()
    env_file.write_text("".join(f"{line}\n" for line in lines if line and not line.startswith("#")))
    made = Compose(env_file)
    made.change(**other)
    return made


def need_compose() -> None:
    """Skips the test where there is none."""
    if shutil.which("docker") is None or docker("compose", "version").exit_status:
        pytest.skip("docker compose is not installed")


def docker(*argv: str, timeout_s: float = 60.0) -> Completed:
    return process.run(("docker", *argv), timeout_s=timeout_s, passed=tuple(os.environ))


@contextmanager
def brought_up() -> Iterator[Compose]:
    """The stack, built, and all of it healthy. Skips the test where there is no Docker, or no images to build from."""
    need_compose()
    if docker("info").exit_status:
        pytest.skip("there is no Docker daemon")
    for image in BASES:
        if docker("image", "inspect", image).exit_status and docker("pull", image, timeout_s=600.0).exit_status:
            pytest.skip(f"the image {image} is not here, and cannot be pulled")
    folder = Path(tempfile.mkdtemp(prefix="fleetmark-compose-", dir="/tmp"))  # containers' user cannot enter pytest's
    try:
        folder.chmod(0o755)
        (folder / "config/suites").mkdir(parents=True)
        (folder / "config/suites/tiny.toml").write_text(_SUITE)
        for file in ("hot.toml", "docker/fleet.toml"):
            shutil.copy(ROOT / "infra" / file, folder / "config")
        (folder / "over.yaml").write_text(_OVER)
        (folder / "backup").mkdir()
        (folder / "backup").chmod(0o777)
        ports = {"PORT": str(free_port()), "S3_PORT": str(free_port())}
        own = {"PROJECT": f"fleetmark-test-{os.getpid()}", "CONFIG": f"{folder}/config", "INVENTORY": "fleet.toml"}
        made = prepared(folder, NIGHTLY="", **own, **ports)
        made = Compose(made.env_file, (*made.files, folder / "over.yaml"))
        done(made("build", "api-server", "node", timeout_s=_BUILT_WITHIN_S))
        try:
            up = made("up", "--detach", "--wait", *LASTING)
            assert up.exit_status == 0, f"{up.stderr[-2000:]}{made('logs', '--tail', '30').stdout}"
            yield made
        finally:
            done(made("down", "--volumes", "--remove-orphans", "--timeout", "10"))
    finally:
        shutil.rmtree(folder)


def _command(words: str) -> str:
    """The one command of infra/README.md that has these words: in a block, or else in a sentence."""
    text = (ROOT / "infra/README.md").read_text()
    block = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
    lines = {f"{line}\n" for each in block.findall(text) for line in each.splitlines()}
    spans = set(re.findall(r"`([^`\n]+)`", block.sub("", text)))
    (found,) = {each for each in lines if words in each} or {each for each in spans if words in each}
    return str(found)
