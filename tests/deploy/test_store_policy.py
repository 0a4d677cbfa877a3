"""infra/node/store-policy.json, on a real Ceph: with a credential of its own a node does its work, and nothing else."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from pipelines import keys, plan, process, stages, storage
from pipelines.errors import StoreRefused
from pipelines.records import Suite, SuiteEntry
from pipelines.settings import Settings
from tests import make, servers
from tests.conftest import on

pytestmark = pytest.mark.integration

POLICY = Path(__file__).parents[2] / "infra/node/store-policy.json"
NODE, OTHER = "gpu-01", "gpu-02"
FIO = SuiteEntry(benchmark="fio", params={"profile": "rand_read", "size_bytes": 2**20, "runtime_s": 0.1, "ramp_s": 0.0})


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[servers.S3, servers.S3]]:
    """The server for its owner, and for a user of the node's name."""
    folder = tmp_path_factory.mktemp("ceph")
    with servers.ceph(folder) as owners:
        nodes = replace(owners, access_key="nodes-key", secret_key="nodes-secret-0123456789")
        user = (
            "--uid",
            NODE,
            "--display-name",
            NODE,
            "--access-key",
            nodes.access_key,
            "--secret-key",
            nodes.secret_key,
        )
        made = process.run(("radosgw-admin", "-c", f"{folder}/ceph.conf", "user", "create", *user), timeout_s=60)
        assert made.exit_status == 0, made.stderr
        yield owners, nodes


@pytest.fixture
def settings_of_owner(
    ceph: tuple[servers.S3, servers.S3], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """With a bucket that has the policy."""
    owners, _ = ceph
    made = on(owners, settings, monkeypatch)
    bucket, _, prefix = made.store_url.removeprefix("s3://").partition("/")
    text = POLICY.read_text()
    for name, value in {"BUCKET": bucket, "PREFIX": prefix, "NODE": NODE, "OWNER": "t"}.items():
        text = text.replace(name, value)
    client = boto3.client(
        "s3",
        endpoint_url=owners.endpoint,
        aws_access_key_id=owners.access_key,
        aws_secret_access_key=owners.secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )
    client.put_bucket_policy(Bucket=bucket, Policy=text)
    return made


def refused(change: Callable[[str], object], keys_: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the keys of which the store says no."""
    found = []
    for key in keys_:
        with suppress(StoreRefused):
            change(key)
            continue
        found.append(key)
    return tuple(found)


def test_a_node_does_its_work_and_can_write_nothing_of_anothers(
    ceph: tuple[servers.S3, servers.S3], settings_of_owner: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = storage.open_store(settings_of_owner)
    suite = Suite(name="test", description="", entries=(FIO,))
    place = make.node(NODE, free_floor_bytes=0)
    made = plan.make(suite, (place,), run_id=make.RUN_ID, created_at=make.AT, trigger="cli")
    stages.publish_plan(owners, made)
    others = keys.raw_key(made.run_id, OTHER, made.jobs[0].job_id, 1)
    owners.create(others, b"{}")
    for name, value in ceph[1].environ.items():
        monkeypatch.setenv(name, value)
    store = storage.open_store(settings_of_owner)
    (own,) = stages.measure(settings_of_owner, store, made.run_id, NODE, 1, lambda _: None)
    assert own == keys.raw_key(made.run_id, NODE, made.jobs[0].job_id, 1)

    new = keys.raw_key(made.run_id, OTHER, made.jobs[0].job_id, 2)
    assert store.create(keys.failure_key(made.run_id, NODE, "measure", 1), b"{}")
    written = (new, others, keys.plan_key(made.run_id), keys.arrival_key(made.run_id, OTHER),
               keys.failure_key(made.run_id, OTHER, "measure", 1),
               keys.approval_key(made.run_id), f"{keys.table_key('runs')}/_delta_log/0.json")  # fmt: skip
    assert refused(lambda key: store.replace(key, b"{}"), written) == written
    assert refused(store.delete, (own, others)) == (own, others)
    assert owners.read(others) == b"{}"
    assert owners.read(own)
