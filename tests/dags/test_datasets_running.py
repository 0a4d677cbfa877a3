"""The dataset DAGs run to their end in one process: real files, real store, real cache, real tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import settings, storage
from pipelines.datasets import catalog
from pipelines.tables.query import open_reader

pytestmark = pytest.mark.integration
ReadDags = Callable[[], Any]


@pytest.fixture
def source(home: Path) -> Path:
    """Files for three shards of 1 MiB."""
    folder = home / "source"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}.bin").write_bytes(bytes([number]) * 100_000)
    return folder


def run(read_dags: ReadDags, dag: str, **conf: Any) -> dict[str, str]:
    """The states of the tasks after a run, by name; and of the run itself, as `run`."""
    done = read_dags().dags[dag].test(run_conf=conf)
    return {ti.task_id: str(ti.state) for ti in done.get_task_instances()} | {"run": str(done.state)}


def publish(read_dags: ReadDags, source: Path, **conf: Any) -> dict[str, str]:
    return run(read_dags, "dataset_publish", source=str(source), dataset="d", shard_mib=1, **conf)


def answer(sql: str) -> tuple[tuple[Any, ...], ...]:
    with open_reader(storage.open_store(settings.load())) as reader:
        return reader.query(sql).rows


def test_a_version_is_published_staged_scrubbed_and_has_its_rows(read_dags: ReadDags, source: Path) -> None:
    assert set(publish(read_dags, source, note="from a test").values()) == {"success"}
    made = catalog.load(storage.open_store(settings.load()), "d")
    assert answer("SELECT version, files, shards, note FROM datasets") == (
        (made.version, 30, len(made.body.shards), "from a test"),
    )

    assert set(run(read_dags, "dataset_stage", versions=["d@latest"], nodes=["localhost"]).values()) == {"success"}
    staged = answer("SELECT node, dataset, version, arrival, count(*) FROM staging GROUP BY ALL")
    assert staged == (("localhost", "d", made.version, "fetched", len(made.body.shards)),)

    assert set(run(read_dags, "dataset_scrub", sample_percent=100.0).values()) == {"success"}
    places = dict(answer("SELECT place, count(DISTINCT shard) FROM scrubs WHERE finding = 'intact' GROUP BY place"))
    assert places["localhost"] == len(made.body.shards)
    assert places["store"] >= len(made.body.shards)


def test_an_unfinished_download_of_nothing_is_no_error_where_no_dataset_is(read_dags: ReadDags, home: Path) -> None:
    assert run(read_dags, "dataset_gc")["run"] == "success"
    assert run(read_dags, "dataset_scrub", caches=False)["run"] == "success"


def test_the_collector_deletes_only_when_it_is_told_to(read_dags: ReadDags, source: Path) -> None:
    publish(read_dags, source)
    assert set(run(read_dags, "dataset_gc").values()) == {"success"}
    assert set(run(read_dags, "dataset_gc", dry_run=False).values()) == {"success"}
    assert len(catalog.versions(storage.open_store(settings.load()), "d")) == 1


def test_a_dry_run_prints_what_would_be_packed_and_publishes_nothing(
    read_dags: ReadDags, source: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="fleetmark")
    states = publish(read_dags, source, dry_run=True)
    assert states["plan_publication"] == states["commit"] == "skipped"
    assert "files=30" in caplog.text
    assert not (home / "store").exists()


@pytest.mark.parametrize(
    ("conf", "sentence"),
    [
        ({"source": "/nowhere"}, "source file:///nowhere: there is no such file or directory"),
        ({"parent": "nope"}, "unknown dataset 'd'"),
        ({"sauce": "x"}, "unknown parameter of the form 'sauce'; known: source, dataset"),
    ],
)
def test_a_request_that_cannot_be_published_fails_the_plan_with_a_sentence(
    read_dags: ReadDags, source: Path, capfd: pytest.CaptureFixture[str], conf: dict[str, Any], sentence: str
) -> None:
    states = run(read_dags, "dataset_publish", **{"source": str(source), "dataset": "d", **conf})
    assert states["plan_publication"] == states["run"] == "failed"
    assert sentence in "".join(capfd.readouterr())


def test_a_shard_that_is_damaged_in_the_store_is_a_row_and_the_others_are_staged(
    read_dags: ReadDags, source: Path, home: Path
) -> None:
    publish(read_dags, source)
    damaged = next((home / "store/datasets/d/shards").iterdir())
    data = bytearray(damaged.read_bytes())
    data[1000] ^= 1
    damaged.write_bytes(data)
    assert run(read_dags, "dataset_stage", versions=["d"])["run"] == "success"
    assert answer("SELECT shard FROM staging WHERE arrival = 'failed'") == ((damaged.name,),)
    assert answer("SELECT count(*) > 0 FROM staging WHERE arrival = 'fetched'") == ((True,),)
