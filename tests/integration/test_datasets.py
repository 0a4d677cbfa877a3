"""Datasets through a real Airflow: published in mapped tasks, staged on the node, shown in the form; asset and rows."""

import random
from pathlib import Path

import httpx
import pytest

from pipelines import storage
from pipelines.datasets import catalog
from pipelines.datasets.manifest import Manifest
from tests.integration.conftest import Deployed

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than one task packs: 40 shards of 1 MiB."""
    folder, chance = tmp_path_factory.mktemp("source"), random.Random(1)
    for number in range(80):
        (folder / f"{number:03d}.bin").write_bytes(chance.randbytes(2**19))
    return folder


@pytest.fixture(scope="module")
def published(deployed: Deployed, source: Path) -> Manifest:
    run = deployed.airflow.trigger("dataset_publish", conf(source, note="from a test"))
    run, tasks = deployed.ended(run)
    assert {name: task.state for name, task in tasks.items()} == dict.fromkeys(tasks, "success")
    chunks = [task for task in deployed.airflow.tasks(run) if task.name == "pack"]
    assert len(chunks) > 1
    return catalog.load(storage.open_store(deployed.settings), "d")


def conf(source: Path, **more: object) -> dict[str, object]:
    return {"source": str(source), "dataset": "d", "format": "blob", "shard_mib": 1, **more}


def test_a_publication_lands_its_row_and_its_event_names_the_version(deployed: Deployed, published: Manifest) -> None:
    assert deployed.answer("SELECT version, files, note FROM datasets") == ((published.version, 80, "from a test"),)
    events = deployed.airflow.get("/api/v2/assets/events?source_dag_id=dataset_publish&limit=100")["asset_events"]
    extras = [event["extra"] for event in events]
    assert {"dataset": "d", "version": published.version, "tag": "latest"} in extras


def test_a_changed_source_is_published_again_and_unchanged_shards_are_kept(
    deployed: Deployed, source: Path, published: Manifest
) -> None:
    (source / "new.bin").write_bytes(b"new" * 1000)
    run, tasks = deployed.ended(deployed.airflow.trigger("dataset_publish", conf(source, tag="next", parent="latest")))
    assert run.state == "success", tasks
    store = storage.open_store(deployed.settings)
    found = catalog.difference(store, published, catalog.load(store, "d@next"))
    assert (found.added, found.removed, found.changed) == (("new.bin",), (), ())
    assert found.new_bytes < published.stored_bytes / 20


def test_a_version_is_staged_on_the_node_and_again_is_only_verified(deployed: Deployed, published: Manifest) -> None:
    for arrival in ("fetched", "present"):
        run, tasks = deployed.ended(
            deployed.airflow.trigger("dataset_stage", {"versions": [f"d@{published.version}"], "nodes": ["localhost"]})
        )
        assert run.state == "success"
        assert tasks["stage"].node == "localhost"
        counted = deployed.answer(f"SELECT count(*) FROM staging WHERE arrival = '{arrival}' AND dataset = 'd'")
        assert counted == ((len(published.body.shards),),)


@pytest.mark.parametrize(
    ("dag", "given", "sentence"),
    [
        ("dataset_publish", {"dataset": "d"}, "source"),
        ("dataset_publish", {"source": "/x", "dataset": "../x"}, "'../x' does not match"),
        ("dataset_stage", {"nodes": ["gpu-99"]}, "'gpu-99' is not one of ['localhost']"),
    ],
)
def test_wrong_input_is_refused_at_the_trigger(
    deployed: Deployed, dag: str, given: dict[str, object], sentence: str
) -> None:
    credentials = {"username": "admin", "password": deployed.home.secrets().password}
    token = httpx.post(f"{deployed.url}/auth/token", json=credentials).json()["access_token"]
    answer = httpx.post(
        f"{deployed.url}/api/v2/dags/{dag}/dagRuns",
        json={"logical_date": None, "conf": given},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert (answer.status_code, sentence in answer.json()["detail"]) == (400, True), answer.text
