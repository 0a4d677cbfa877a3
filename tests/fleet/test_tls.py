"""infra/tls/nginx.conf in front of the fleet's api-server: what goes through, and a node that works by it."""

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import servers
from tests.fleet.control import ROOT, Fleet
from tests.fleet.test_credentials import NODE
from tests.following import run_id_of

pytestmark = pytest.mark.integration

CONF = """
daemon off;
user root;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/fleetmark.conf;
}}
"""


@pytest.fixture
def doors(fleet: Fleet, tmp_path: Path) -> Iterator[tuple[str, str, Path]]:
    """The URLs for people and for nodes, and the certificate to trust."""
    if (nginx := shutil.which("nginx")) is None:
        pytest.skip("nginx is not installed")
    host, crt, key = fleet.network.address, tmp_path / "fleet.crt", tmp_path / "fleet.key"
    subprocess.run(
        ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=fleet", "-addext", f"subjectAltName=IP:{host}", "-keyout", str(key), "-out", str(crt)),
        check=True, capture_output=True,
    )  # fmt: skip
    ports = servers.free_port(host), servers.free_port(host)
    text = (ROOT / "infra/tls/nginx.conf").read_text()
    for example, ours in (
        ("127.0.0.1:8080", fleet.environ["AIRFLOW__API__BASE_URL"].removeprefix("http://")),
        ("listen 443", f"listen {host}:{ports[0]}"),
        ("listen 8443", f"listen {host}:{ports[1]}"),
        ("/etc/fleetmark/tls", str(tmp_path)),
    ):
        assert example in text
        text = text.replace(example, ours)
    (tmp_path / "fleetmark.conf").write_text(text)
    (tmp_path / "nginx.conf").write_text(CONF.format(folder=tmp_path))
    argv = (nginx, "-e", str(tmp_path / "error.log"), "-c", str(tmp_path / "nginx.conf"))
    subprocess.run((*argv, "-t"), check=True)
    with servers.running(tmp_path, {"nginx": argv}, lambda: all(servers.listens(port, host) for port in ports)):
        yield f"https://{host}:{ports[0]}", f"https://{host}:{ports[1]}", crt


def test_people_and_nodes_have_a_door_each(fleet: Fleet, doors: tuple[str, str, Path]) -> None:
    people, nodes, crt = doors
    http = httpx.Client(verify=ssl.create_default_context(cafile=str(crt)), timeout=60.0, trust_env=False)
    paths = ("/", "/api/v2/monitor/health", "/auth/login/", "/edge_worker/ui/worker", "/edge_worker/v1/health",
             "/execution/health", "/execution/../api/v2/monitor/health")  # fmt: skip
    seen = {path: (http.get(people + path).status_code, http.get(nodes + path).status_code) for path in paths}
    assert seen == {
        "/": (200, 404),
        "/api/v2/monitor/health": (200, 404),
        "/auth/login/": (200, 404),
        "/edge_worker/ui/worker": (401, 404),
        "/edge_worker/v1/health": (404, 200),
        "/execution/health": (404, 200),
        "/execution/../api/v2/monitor/health": (200, 404),
    }


def test_a_node_works_by_its_door_alone(
    fleet: Fleet, doors: tuple[str, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url, crt = doors
    fleet.kill_worker(NODE)
    try:
        with monkeypatch.context() as patch:
            for name, value in {
                "AIRFLOW__EDGE__API_URL": f"{url}/edge_worker/v1/rpcapi",
                "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
                "AIRFLOW__API__SSL_CERT": str(crt),
                "SSL_CERT_FILE": str(crt),
            }.items():
                patch.setitem(fleet.environ, name, value)
            fleet.revive_worker(NODE)
        run = fleet.ended(fleet.trigger(suite="tiny", nodes=[NODE]))
        assert run.state == "success"
        assert fleet.answer(f"SELECT DISTINCT outcome FROM runs WHERE run_id = '{run_id_of(run)}'") == (("ok",),)
        task = fleet.instances(run, "measure")[NODE]
        of_task = f"taskInstances/measure/logs/{task['try_number']}?map_index={task['map_index']}"
        path = f"/api/v2/dags/{run.dag}/dagRuns/{run.run_id}/{of_task}"
        assert fleet.airflow.get(path)["content"], "its log has come, too"
    finally:
        fleet.kill_worker(NODE)
        fleet.revive_worker(NODE)
