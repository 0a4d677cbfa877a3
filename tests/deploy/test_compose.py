"""docker-compose.yaml: no start without secrets, a run goes through it, and the runbook's commands do what it says."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines import process
from pipelines.embedded.api import Airflow
from pipelines.errors import AirflowFailed
from tests.deploy.stack import LASTING, ROOT, WITHIN_S, Compose, brought_up, docker, done, need_compose, prepared
from tests.following import wait_for

SECRETS = (
    "POSTGRES_PASSWORD",
    "JWT_SECRET",
    "API_SECRET_KEY",
    "FERNET_KEY",
    "S3_SECRET_KEY",
    "ADMIN_PASSWORD",
    "OPERATOR_PASSWORD",
    "VIEWER_PASSWORD",
)


@pytest.fixture
def described(tmp_path: Path) -> Compose:
    need_compose()
    return prepared(tmp_path)


@pytest.fixture(scope="module")
def stack() -> Iterator[Compose]:
    with brought_up() as made:
        yield made


def test_the_environment_file_is_made_once_with_a_secret_for_each_name_and_for_its_owner_alone(tmp_path: Path) -> None:
    made = prepared(tmp_path)
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
    node = Compose(described.env_file, (*described.files, ROOT / "docker-compose.gpu.yaml"))
    assert "SCRATCH is missing" in node("config", "--quiet").stderr
    node.change(SCRATCH=str(tmp_path))
    service = node.config()["services"]["node"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    mounts = {mount["target"]: mount["source"] for mount in service["volumes"]}
    assert mounts["/scratch"] == str(tmp_path)
    assert mounts["/run/lock"] == "/run/lock"
    assert service["tmpfs"] == ["/tmp"]


@pytest.mark.integration
def test_a_run_goes_through_the_stack_to_a_queried_table(stack: Compose) -> None:
    ended = stack.ended()
    assert ended.state == "success", [task for task in stack.airflow().tasks(ended) if task.state == "failed"]
    answered = stack.query("SELECT node, outcome, reason, count(*) AS jobs FROM runs GROUP BY ALL")
    assert answered == [{"node": "demo", "outcome": "ok", "reason": "", "jobs": 2}]


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
def test_three_people_log_in_and_the_operator_may_start_a_run_but_not_the_viewer(stack: Compose) -> None:
    planned = {"suite": "tiny", "dry_run": True}
    assert stack.airflow("operator").trigger("fleet_benchmark", planned).state == "queued"
    with pytest.raises(AirflowFailed, match="403"):
        stack.airflow("viewer").trigger("fleet_benchmark", planned)


@dataclass(frozen=True)
class Joining:
    """A second node, whose worker the test starts and ends as a unit of systemd would."""

    stack: Compose
    name: str = "gpu-01"

    @property
    def container(self) -> str:
        return f"{self.stack.values['PROJECT']}-{self.name}"

    def make_key(self) -> None:
        key = self.stack.folder / "node.pem"
        done(process.run(("openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)), timeout_s=60))
        key.chmod(0o644)  # the container's user is another
        public = done(process.run(("openssl", "pkey", "-in", str(key), "-pubout"), timeout_s=60))
        (self.stack.folder / f"{self.name}.pub").write_text(public)

    def start(self) -> None:
        docker("rm", "--force", self.container)
        environ = {
            "FLEETMARK_NODE": self.name,
            "FLEETMARK_HOME": "/tmp/home",
            "AIRFLOW_HOME": "/tmp/airflow",
            "AIRFLOW__API_AUTH__JWT_PRIVATE_KEY_PATH": "/node.pem",
        }
        set_ = [word for name, value in environ.items() for word in ("--env", f"{name}={value}")]
        names = (f"--queues={self.name}", f"--edge-hostname={self.name}")
        worker = ("edge", "worker", *names, "--concurrency=1", "--pid=/tmp/worker.pid")
        mounted = ("--volume", f"{self.stack.folder}/node.pem:/node.pem:ro")
        done(self.stack("run", "--detach", "--no-deps", "--name", self.container, *mounted, *set_, "node", *worker))

    def is_refused(self) -> bool:
        """Once its worker has ended."""
        status = done(docker("wait", self.container, timeout_s=WITHIN_S)).strip()
        said = docker("logs", self.container)
        return status != "0" and "403" in said.stdout + said.stderr

    def reaches(self, *states: str) -> None:
        """Once Airflow says one of these of its worker."""
        airflow = self.stack.airflow()

        def look() -> bool | None:
            workers = airflow.get("/edge_worker/ui/worker")["workers"]
            return any(each["worker_name"] == self.name and each["state"] in states for each in workers) or None

        wait_for(look, WITHIN_S)

    def listed(self, line: str = "") -> None:
        """In the inventory, with this line more."""
        text = (ROOT / "infra/docker/fleet.toml").read_text()
        other = text[text.index("[[nodes]]") :].replace("demo", self.name).replace("features", f"{line}\nfeatures")
        self.stack.inventory.write_text(f"{text}\n{other}")


@pytest.fixture
def joining(stack: Compose) -> Iterator[Joining]:
    made = Joining(stack)
    yield made
    docker("rm", "--force", made.container)
    stack.inventory.write_text((ROOT / "infra/docker/fleet.toml").read_text())


@pytest.mark.integration
def test_a_node_is_added_drained_and_removed_as_the_runbook_says(stack: Compose, joining: Joining) -> None:
    joining.make_key()
    joining.start()
    assert joining.is_refused(), "its key is not trusted yet"
    public = {"<gpu-01.pub": f"<{stack.folder}/gpu-01.pub"}
    done(stack.follow("credentials add gpu-01", **public))
    joining.listed()
    assert "gpu-01" in done(stack.follow("fleetmark nodes"))
    joining.start()
    joining.reaches("idle")
    assert "gpu-01" in done(stack.follow("airflow edge list-workers"))
    assert stack.ended(nodes=["gpu-*"]).state == "success"
    assert stack.query("SELECT DISTINCT outcome FROM runs WHERE node = 'gpu-01'") == [{"outcome": "ok"}]

    joining.listed("drained = true")
    assert "drained" in done(stack.follow("fleetmark coverage"))
    assert stack.ended(nodes=["gpu-*"]).state == "failed", "no run takes it"
    done(docker("stop", joining.container))
    joining.reaches("offline")

    joining.start()
    joining.reaches("idle")
    done(docker("kill", joining.container))
    early = stack.follow("remove-remote-edge-worker")
    assert early.exit_status, "it died a moment ago"
    assert "Cannot remove edge worker gpu-01" in early.stdout + early.stderr
    done(stack.follow("credentials revoke gpu-01"))
    joining.reaches("unknown")
    done(stack.follow("remove-remote-edge-worker"))
    joining.start()
    assert joining.is_refused(), "its key is not trusted any more"
    assert "gpu-01" not in done(stack.follow("airflow edge list-workers"))


@pytest.mark.integration
def test_every_secret_of_the_control_plane_is_rotated_as_the_runbook_says(stack: Compose) -> None:
    airflow = ("exec", "scheduler", "airflow")
    done(stack(*airflow, "variables", "set", "kept", "as it was"))
    before = stack.values
    names = ("ADMIN_PASSWORD", "OPERATOR_PASSWORD", "VIEWER_PASSWORD", "JWT_SECRET", "API_SECRET_KEY")
    made = prepared(stack.folder / "config")  # other random values
    new = made.values
    made.env_file.unlink()
    password = new["POSTGRES_PASSWORD"]
    asked = stack.follow("psql", docker=f"printf '%s\\n%s\\n' '{password}' '{password}' | docker")
    done(asked)
    stack.change(
        **{name: new[name] for name in names},
        POSTGRES_PASSWORD=password,
        FERNET_KEY=f"{new['FERNET_KEY']},{before['FERNET_KEY']}",
    )
    done(stack.follow("up --detach --wait api-server scheduler dag-processor triggerer"))
    done(stack.follow("airflow rotate-fernet-key"))
    stack.change(FERNET_KEY=new["FERNET_KEY"])
    done(stack.follow("up --detach --wait api-server scheduler dag-processor triggerer"))
    assert done(stack(*airflow, "variables", "get", "kept")).strip().endswith("as it was")
    assert stack.ended().state == "success"
    stale = Airflow(f"http://127.0.0.1:{before['PORT']}", "admin", before["ADMIN_PASSWORD"], "the stack's")
    with pytest.raises(AirflowFailed, match="401"):
        stale.import_errors()


@pytest.mark.integration
def test_a_backup_is_restored_into_a_new_stack_as_the_runbook_says(stack: Compose) -> None:
    assert stack.ended().state == "success"
    sql = "SELECT run_id, node, outcome, count(*) AS jobs FROM runs GROUP BY ALL ORDER BY ALL"
    before = stack.query(sql)
    assert before
    runs = stack.airflow().get("/api/v2/dags/fleet_benchmark/dagRuns")["total_entries"]
    done(stack.follow("scheduler backup /backup"))
    done(stack.follow("restore /backup --check"))
    done(stack("down", "--volumes", "--timeout", "10"))
    done(stack.follow("up --detach --wait postgres s3"))
    done(stack.follow("run --rm bucket"))
    done(stack.follow("scheduler restore /backup\n"))
    done(stack.follow("up --detach --wait api-server scheduler dag-processor triggerer"))
    done(stack("up", "--detach", "--wait", "node"))
    assert stack.query(sql) == before
    assert stack.airflow().get("/api/v2/dags/fleet_benchmark/dagRuns")["total_entries"] == runs
    assert stack.ended().state == "success", "a run goes through it as before"
