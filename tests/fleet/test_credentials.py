"""What a node's credential is good for: its own work, and nothing else."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import jwt
import pytest
from airflow import __version__ as core_version
from airflow.api_fastapi.auth.tokens import JWTGenerator, key_to_jwk_dict
from airflow.providers.edge3 import __version__ as provider_version
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from fleetmark_airflow import credentials
from pipelines import process
from tests.fleet.control import Fleet
from tests.following import wait_for

pytestmark = pytest.mark.integration

NODE, OTHER = "node-a", "node-b"
RESULTS = {"name": "fleetmark_results", "uri": "fleetmark_results", "type": "Asset"}


def client(fleet: Fleet) -> httpx.Client:
    return httpx.Client(base_url=fleet.environ["AIRFLOW__API__BASE_URL"], timeout=60.0, trust_env=False)


class Intruder:
    """Somebody who has what a node has, and talks to the control plane without the worker's manners."""

    def __init__(self, fleet: Fleet, node: str) -> None:
        self.node = node
        self.pem = fleet.key(node).read_bytes()
        self.key: Any = load_pem_private_key(self.pem, None)
        self.http = client(fleet)

    def signed(self, path: str, **over: Any) -> str:
        """As the worker signs: by Airflow's own generator, or with what a test says otherwise."""
        valid_for = over.pop("valid_for", 30.0)
        signing = {"private_key": self.pem, "valid_for": valid_for, "audience": "api", "issuer": None, **over}
        return JWTGenerator(**signing).generate({"method": path})

    def asks(self, method: str, path: str, body: Any = None, token: str = "") -> httpx.Response:
        """The edge API."""
        headers = {"Authorization": token or self.signed(path)}
        return self.http.request(method, f"/edge_worker/v1/{path}", json=body, headers=headers)

    def bears(self, method: str, path: str, token: str, body: Any = None) -> httpx.Response:
        """Any other API."""
        return self.http.request(method, path, json=body, headers={"Authorization": f"Bearer {token}"})

    def state(self, *queues: str) -> dict[str, Any]:
        sysinfo = {"airflow_version": core_version, "edge_provider_version": provider_version}
        return {"state": "idle", "jobs_active": 0, "queues": list(queues), "sysinfo": sysinfo}


def fetch_of(queue: str) -> dict[str, Any]:
    return {"queues": [queue], "free_concurrency": 1}


@pytest.fixture(scope="module")
def intruder(fleet: Fleet) -> Iterator[Intruder]:
    """With the key of a node whose worker is off meanwhile."""
    fleet.kill_worker(NODE)
    try:
        yield Intruder(fleet, NODE)
    finally:
        fleet.revive_worker(NODE)


def test_a_worker_has_none_of_the_control_planes_secrets(fleet: Fleet) -> None:
    secrets = [
        fleet.environ[f"AIRFLOW__{name}"] for name in ("API_AUTH__JWT_SECRET", "CORE__FERNET_KEY", "API__SECRET_KEY")
    ]
    for pid in fleet.machine(NODE).processes():
        environ = process.run(("cat", f"/proc/{pid}/environ"), timeout_s=30).stdout
        assert not [secret for secret in secrets if secret in environ]


def test_a_nodes_key_opens_nothing_but_its_own_work(fleet: Fleet, intruder: Intruder) -> None:
    assert intruder.asks("POST", f"jobs/fetch/{NODE}", fetch_of(NODE)).status_code == 200, (
        "so it is the key that counts"
    )
    assert intruder.asks("PATCH", f"worker/{NODE}", intruder.state(NODE)).status_code == 200
    refused = [
        ("POST", f"jobs/fetch/{OTHER}", fetch_of(OTHER)),
        ("POST", f"jobs/fetch/{OTHER}", fetch_of(NODE)),
        ("POST", f"jobs/fetch/{NODE}", fetch_of(OTHER)),
        ("POST", f"jobs/fetch/{NODE}", {"queues": [NODE, OTHER], "free_concurrency": 1}),
        ("POST", f"jobs/fetch/{NODE}", {"queues": None, "free_concurrency": 1}),
        ("POST", f"jobs/fetch/{NODE}", {"free_concurrency": 1}),
        ("POST", f"jobs/fetch/{NODE}", [NODE]),
        ("POST", f"worker/{OTHER}", intruder.state(OTHER)),
        ("POST", f"worker/{NODE}", intruder.state(OTHER)),
        ("POST", "worker/node-z", intruder.state("node-z")),
        ("PATCH", f"worker/{OTHER}", intruder.state(OTHER)),
        ("PATCH", f"worker/queues/{NODE}", {"new_queues": [OTHER], "remove_queues": []}),
    ]
    assert [(*each, intruder.asks(*each).status_code) for each in refused] == [(*each, 403) for each in refused]


def test_a_token_that_is_not_signed_by_a_trusted_key_for_this_path_and_moment_is_refused(
    fleet: Fleet, intruder: Intruder
) -> None:
    path = f"jobs/fetch/{NODE}"
    now = int(time.time())
    claims = {"method": path, "aud": "api", "iat": now, "nbf": now, "exp": now + 60}
    kid = key_to_jwk_dict(intruder.key)["kid"]
    public = intruder.key.public_key()
    pem, raw = (
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.Raw, PublicFormat.Raw),
    )
    stranger = Ed25519PrivateKey.generate()
    ours: dict[str, Any] = {"algorithm": "EdDSA", "headers": {"kid": kid}}
    forged = {
        "expired": intruder.signed(path, valid_for=-3600.0),
        "from the future": jwt.encode(
            {**claims, "nbf": now + 3600, "iat": now + 3600, "exp": now + 7200}, intruder.key, **ours
        ),
        "for another path": intruder.signed(f"worker/{NODE}"),
        "for another audience": intruder.signed(path, audience="urn:airflow.apache.org:task"),
        "without an end": jwt.encode({name: claims[name] for name in claims if name != "exp"}, intruder.key, **ours),
        "another key": jwt.encode(claims, stranger, **ours),
        "an unknown key": intruder.signed(path, private_key=stranger),
        "no key": jwt.encode(claims, intruder.key, "EdDSA"),
        "unsigned": jwt.encode(claims, None, "none", headers={"kid": kid}),
        "the public key as secret": _hs256(claims, pem, kid),
        "its bytes as secret": _hs256(claims, raw, kid),
        "another node's key id": jwt.encode(claims, intruder.key, "EdDSA", headers={"kid": _kid(fleet, OTHER)}),
        "no token": "garbage",
    }
    seen = {name: intruder.asks("POST", path, fetch_of(NODE), token).status_code for name, token in forged.items()}
    assert seen == dict.fromkeys(forged, 403)
    assert intruder.asks("POST", path, fetch_of(NODE), jwt.encode(claims, intruder.key, **ours)).status_code == 200


def _kid(fleet: Fleet, node: str) -> str:
    return str(key_to_jwk_dict(load_pem_private_key(fleet.key(node).read_bytes(), None))["kid"])


def _hs256(claims: dict[str, Any], secret: bytes, kid: str) -> str:
    """By hand: the library refuses to make one."""
    import hashlib
    import hmac
    from base64 import urlsafe_b64encode

    def part(data: bytes) -> bytes:
        return urlsafe_b64encode(data).rstrip(b"=")

    signed = b".".join(part(json.dumps(each).encode()) for each in ({"alg": "HS256", "typ": "JWT", "kid": kid}, claims))
    return b".".join((signed, part(hmac.new(secret, signed, hashlib.sha256).digest()))).decode()


def test_a_nodes_key_is_no_users_and_no_tasks(fleet: Fleet, intruder: Intruder) -> None:
    paths = ["/api/v2/pools", "/api/v2/dags", "/api/v2/variables", "/api/v2/connections", "/api/v2/config",
             "/edge_worker/ui/worker", "/execution/variables/keys", "/execution/connections/any"]  # fmt: skip
    as_admin = {"sub": "admin", "role": "admin", "method": "any"}
    for audience in ("api", "urn:airflow.apache.org:task", "apache-airflow"):
        signed = JWTGenerator(private_key=intruder.pem, valid_for=60.0, audience=audience, issuer="fleetmark")
        token = signed.generate(as_admin)
        for path in paths:
            assert intruder.bears("GET", path, token).status_code in {401, 403}, path
        body = {"logical_date": None, "conf": {"suite": "tiny"}}
        assert intruder.bears("POST", "/api/v2/dags/fleet_benchmark/dagRuns", token, body).status_code in {401, 403}


def test_a_task_of_a_node_can_touch_its_own_run_and_nothing_else(fleet: Fleet, intruder: Intruder) -> None:
    run = fleet.trigger(suite="tiny")
    other = Intruder(fleet, OTHER)

    def fetched() -> Any:
        return intruder.asks("POST", f"jobs/fetch/{NODE}", fetch_of(NODE)).json()

    job = wait_for(fetched)
    ti, token = job["command"]["ti"], job["command"]["token"]
    key = "/".join(str(job[name]) for name in ("dag_id", "task_id", "run_id", "try_number", "map_index"))
    push = {"log_chunk_time": "2026-01-01T00:00:00Z", "log_chunk_data": "written by its own node\n"}

    assert other.asks("POST", f"logs/push/{key}", push).status_code == 403, "another node's logs"
    assert other.asks("GET", f"logs/logfile_path/{key}").status_code == 403
    assert other.asks("PATCH", f"jobs/state/{key}/success").status_code == 403, "another node's jobs"
    whole_run = key.replace("/measure/", "/plan/").rpartition("/")[0] + "/-1"
    assert intruder.asks("POST", f"logs/push/{whole_run}", push).status_code == 403, "the control plane's logs"
    stolen = {**push, "task_instance_id": "00000000-0000-0000-0000-000000000000"}
    assert intruder.asks("POST", f"logs/push/{key}", stolen).status_code == 403, "by its own name, another's file"
    assert intruder.asks("POST", f"logs/push/{key}", push).status_code == 200
    assert intruder.asks("PATCH", f"jobs/state/{key}/running").status_code == 200

    me = {"hostname": NODE, "unixname": "x", "pid": 1, "start_date": "2026-01-01T00:00:00Z", "state": "running"}
    begun = intruder.bears("PATCH", f"/execution/task-instances/{ti['id']}/run", token, me)
    assert begun.status_code == 200, begun.text
    mine = begun.headers["Refreshed-API-Token"]
    dag, of_run, itself = run.dag, run.run_id, f"/execution/task-instances/{ti['id']}/state"
    allowed = [
        ("GET", f"/execution/xcoms/{dag}/{of_run}/plan/return_value", None),
        ("POST", f"/execution/xcoms/{dag}/{of_run}/{ti['task_id']}/mine?map_index={ti['map_index']}", 1),
        ("PUT", f"/execution/task-instances/{ti['id']}/heartbeat", {"hostname": NODE, "pid": 1}),
    ]
    refused = [
        ("GET", "/execution/variables/keys", None),
        ("GET", "/execution/variables/any", None),
        ("PUT", "/execution/variables/any", {"value": "x", "description": None}),
        ("GET", "/execution/connections/any", None),
        ("POST", f"/execution/dag-runs/{dag}/forged", {"conf": {}}),
        ("POST", f"/execution/dag-runs/{dag}/{of_run}/clear", None),
        ("GET", f"/execution/xcoms/{dag}/another/plan/return_value", None),
        ("POST", f"/execution/xcoms/{dag}/{of_run}/plan/return_value", ["node-z"]),
        ("POST", f"/execution/xcoms/{dag}/{of_run}/{ti['task_id']}/return_value?map_index={1 - ti['map_index']}", 1),
        ("DELETE", f"/execution/xcoms/{dag}/{of_run}/plan/return_value", None),
        ("GET", f"/execution/task-instances/count?dag_id={dag}", None),
        ("PATCH", "/execution/task-instances/00000000-0000-0000-0000-000000000000/state", {"state": "failed"}),
        ("PATCH", itself, {"state": "deferred", "classpath": "x.Y", "next_method": "m", "trigger_kwargs": {}}),
        ("PATCH", itself, {"state": "success", "end_date": "2030-01-01T00:00:00Z", "task_outlets": [RESULTS]}),
        ("GET", "/api/v2/dags", None),
    ]  # fmt: skip
    seen = [(*each[:2], intruder.bears(*each[:2], mine, each[2]).status_code) for each in refused]
    assert [each for each in seen if each[2] not in {401, 403}] == []
    seen = [(*each[:2], intruder.bears(*each[:2], mine, each[2]).status_code) for each in allowed]
    assert [each for each in seen if each[2] >= 400] == []
    assert intruder.bears("GET", allowed[0][1], token).status_code == 403, (
        "a token that waits in the queue is for starting"
    )

    ended = {"state": "failed", "end_date": "2030-01-01T00:00:00Z"}
    assert intruder.bears("PATCH", itself, mine, ended).status_code == 204
    assert intruder.asks("PATCH", f"jobs/state/{key}/failed").status_code == 200
    fleet.airflow.fail(run)
    fleet.ended(run)


def test_a_revoked_node_is_refused_at_once_and_heard_again_with_a_new_key(fleet: Fleet, intruder: Intruder) -> None:
    path = f"jobs/fetch/{NODE}"
    assert intruder.asks("POST", path, fetch_of(NODE)).status_code == 200
    try:
        credentials.revoke(fleet.folder / "nodes.jwks", NODE)
        assert intruder.asks("POST", path, fetch_of(NODE)).status_code == 403
    finally:
        fleet.key(NODE).unlink()
        fleet.key(NODE)
    assert intruder.asks("POST", path, fetch_of(NODE)).status_code == 403, "the old key stays out"
    assert Intruder(fleet, NODE).asks("POST", path, fetch_of(NODE)).status_code == 200
    assert Intruder(fleet, OTHER).asks("POST", path, fetch_of(NODE)).status_code == 403


def test_a_key_file_that_cannot_be_read_lets_nobody_in_and_ends_no_worker(fleet: Fleet, intruder: Intruder) -> None:
    known = fleet.folder / "nodes.jwks"
    good = known.read_bytes()
    others = [fleet.workers[node] for node in fleet.workers if node != NODE]
    known.write_text("half of a f")
    try:
        assert Intruder(fleet, OTHER).asks("POST", f"jobs/fetch/{OTHER}", fetch_of(OTHER)).status_code == 503
        wait_for(lambda: all(b"503" in (fleet.folder / f"{each.name}.log").read_bytes() for each in others) or None)
    finally:
        known.write_bytes(good)
    since = datetime.now(UTC)
    wait_for(
        lambda: all((fleet.heard_from(each.name.removeprefix("worker-")) or since) > since for each in others) or None
    )
    assert all(each.running for each in others)


def test_a_viewer_sees_a_run_and_cannot_trigger_or_clear_one(fleet: Fleet) -> None:
    run = fleet.trigger(suite="tiny", dry_run=True)
    clear = {"dry_run": True, "dag_run_id": run.run_id}
    body = {"logical_date": None, "conf": {"suite": "tiny", "dry_run": True}}
    seen = {}
    for name in ("viewer", "user", "op"):
        http = client(fleet)
        token = http.post("/auth/token", json={"username": name, "password": f"{name}-test"}).json()["access_token"]
        http.headers["Authorization"] = f"Bearer {token}"
        dag = f"/api/v2/dags/{run.dag}"
        seen[name] = [
            http.get(f"{dag}/dagRuns/{run.run_id}").status_code,
            http.post(f"{dag}/dagRuns", json=body).status_code,
            http.post(f"{dag}/clearTaskInstances", json=clear).status_code,
            http.patch(f"{dag}/dagRuns/{run.run_id}", json={"note": "seen"}).status_code,
            http.get("/api/v2/connections").status_code,
            http.get("/edge_worker/ui/worker").status_code,
            http.post("/edge_worker/ui/worker/node-z/shutdown").status_code,  # there is no such
        ]
    assert seen == {
        "viewer": [200, 403, 403, 403, 403, 200, 403],
        "user": [200, 200, 200, 200, 403, 200, 403],
        "op": [200, 200, 200, 200, 200, 200, 404],
    }
