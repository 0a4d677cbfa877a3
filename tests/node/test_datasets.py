"""Jobs that name a dataset: its files are on the node, verified, before the first of them runs, or the row says why."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pipelines.benchmarks
from pipelines import benchmark, keys, lease, node, plan, stages
from pipelines.datasets import catalog, names
from pipelines.datasets.cache import Cache
from pipelines.datasets.events import Arrival, Staging
from pipelines.datasets.manifest import Format, Manifest
from pipelines.records import Outcome, Plan, RawOutput, Scalar, Suite, SuiteEntry
from pipelines.settings import Settings
from pipelines.storage import Store
from tests import make
from tests.datasets import trees
from tests.tables import landings

NODE = make.node(free_floor_bytes=0)
SMALL: dict[str, Scalar] = {"profile": "rand_read", "size_bytes": 2**20, "runtime_s": 0.1, "ramp_s": 0.0}
WEIGHTS = {"model.bin": bytes(range(256)) * 1000, "notes/readme.txt": b"a file in a folder"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"cache_bytes": 2**24, "cache_floor_bytes": 0})


@pytest.fixture(autouse=True)
def sha256sum(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One benchmark more, found as the others are."""
    folder = str(Path(__file__).with_name("benchmarks"))
    with monkeypatch.context() as patched:
        patched.setattr(pipelines.benchmarks, "__path__", [*pipelines.benchmarks.__path__, folder])
        benchmark.discover.cache_clear()
        yield
    benchmark.discover.cache_clear()
    sys.modules.pop("pipelines.benchmarks.sha256sum", None)


def test_a_job_without_a_dataset_reads_its_file_from_the_nodes_folder(settings: Settings) -> None:
    (settings.home / "models").mkdir(parents=True)
    (settings.home / "models/model.bin").write_bytes(b"weights")
    (job,) = plan.jobs_of_entry(make.RUN_ID, NODE.name, entry(None))
    place = NODE.model_copy(update={"files": str(settings.home / "models")})
    assert node.run_once(settings, place, job, say=print).exit_status == 0


@pytest.mark.parametrize(
    ("folder", "why"), [(None, "the inventory names no folder of files of this node"), ("models", "models has none")]
)
def test_a_job_whose_file_is_missing_is_not_started_and_says_which(
    settings: Settings, folder: str | None, why: str
) -> None:
    (job,) = plan.jobs_of_entry(make.RUN_ID, NODE.name, entry(None))
    place = NODE.model_copy(update={"files": folder and str(settings.home / folder)})
    raw = node.run_once(settings, place, job, say=print)
    assert raw.refusal is not None
    assert raw.refusal.outcome is Outcome.CONFIG
    assert raw.refusal.reason.startswith("it reads model.bin, and ")
    assert raw.refusal.reason.endswith(why)


def published(
    settings: Settings,
    dataset: str = "weights",
    form: Format = "blob",
    zstd_level: int | None = None,
    files: trees.Tree = WEIGHTS,
) -> Manifest:
    source = trees.write(settings.home / "sources" / dataset, files)
    return trees.published(settings, trees.request(source, trees.packing_of(form, zstd_level), dataset=dataset))


def entry(dataset: str | None, file: str = "model.bin", **fields: Any) -> SuiteEntry:
    return SuiteEntry(benchmark="sha256sum", params={"file": file}, dataset=dataset, **fields)


def planned(store: Store, *entries: SuiteEntry, run_id: str = make.RUN_ID) -> Plan:
    suite = Suite(name="test", description="", entries=entries)
    versions = {each.dataset: catalog.load(store, each.dataset).reference for each in entries if each.dataset}
    return plan.make(suite, (NODE,), run_id=run_id, created_at=make.AT, trigger="cli", datasets=versions)


def run(settings: Settings, store: Store, made: Plan, attempt: int = 1) -> list[RawOutput]:
    stored = node.run_jobs(settings, store, made, "gpu-01", attempt, lambda _: None)
    return [RawOutput.model_validate_json(store.read(key)) for key in stored]


def not_measured(raw: RawOutput) -> str:
    assert raw.refusal is not None
    assert (raw.refusal.outcome, raw.argv) == (Outcome.NOT_MEASURED, ())
    assert raw.refusal.reason.startswith(f"dataset {raw.job.dataset} is not on this node: ")
    return raw.refusal.reason


def staging(store: Store, attempt: int = 1) -> Staging:
    key = names.staging_key(names.staging_of_run(make.RUN_ID, attempt), "gpu-01")
    return Staging.model_validate_json(store.read(key))


def damage(store: Store, of: Manifest) -> str:
    """Turn a bit of the version's first shard over. Returns the shard's hash."""
    sha256 = of.body.shards[0].sha256
    path = Path(store.path(names.shard_key(of.dataset, sha256)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    return sha256


@pytest.mark.parametrize("form", ["blob", "tar"])
def test_a_tool_reads_the_files_of_the_version_that_was_planned(settings: Settings, store: Store, form: Format) -> None:
    made = published(settings, form=form)
    todo = planned(store, entry("weights@latest"), entry("weights@latest", "notes/readme.txt"))
    published(settings, form=form, files={"model.bin": b"the tag has moved on"})
    raws = run(settings, store, todo)
    assert [raw.stdout.split()[0] for raw in raws] == [hashlib.sha256(data).hexdigest() for data in WEIGHTS.values()]
    assert [raw.facts["dataset"] for raw in raws] == [made.reference] * 2


def test_its_files_are_gone_after_the_jobs_and_its_shards_stay_in_the_cache(settings: Settings, store: Store) -> None:
    made = published(settings)
    run(settings, store, planned(store, entry("weights")))
    cache = Cache.of(settings)
    assert cache.files() == []
    assert {each.sha256 for each in cache.present()} == {shard.sha256 for shard in made.body.shards}


def test_what_staging_took_is_kept_for_each_attempt_under_the_planned_node(settings: Settings, store: Store) -> None:
    made = published(settings)
    todo = planned(store, entry("weights", repeats=2))
    run(settings, store, todo)
    store.delete(keys.raw_key(todo.run_id, "gpu-01", todo.jobs[1].job_id, 1))
    run(settings, store, todo, attempt=2)
    run(settings, store, todo, attempt=3)  # nothing is left to do, so nothing is staged
    for attempt, arrival in ((1, Arrival.FETCHED), (2, Arrival.PRESENT)):
        kept = staging(store, attempt)
        assert {(each.dataset, each.version, each.arrival) for each in kept.transfers} == {
            ("weights", made.version, arrival)
        }
        assert len(kept.transfers) == len({shard.sha256 for shard in made.body.shards})
    assert len(store.keys_under("staged")) == 2


def test_a_damaged_shard_makes_its_jobs_not_measured_and_the_others_run(settings: Settings, store: Store) -> None:
    bad = published(settings, "bad")
    good = published(settings, "good", files={"model.bin": b"good"})
    todo = planned(store, entry("bad"), entry("good"), SuiteEntry(benchmark="fio", params=SMALL))
    sha256 = damage(store, bad)
    of_bad, of_good, without = run(settings, store, todo)
    assert f"shard {sha256[:12]} of dataset bad is damaged" in not_measured(of_bad)
    assert of_good.stdout.split()[0] == hashlib.sha256(b"good").hexdigest()
    assert (without.exit_status, "dataset" in without.facts) == (0, False)
    assert {(each.dataset, each.arrival) for each in staging(store).transfers if each.shard == sha256} == {
        ("bad", Arrival.FAILED)
    }
    assert {each.version for each in staging(store).transfers} == {bad.version, good.version}


def test_a_version_that_was_removed_since_the_plan_is_a_reason(settings: Settings, store: Store) -> None:
    made = published(settings)
    todo = planned(store, entry("weights"))
    catalog.move_tag(store, catalog.tag_of(store, "weights", "latest"), None, make.AT, by="test")
    catalog.remove(store, "weights", made.version)
    (raw,) = run(settings, store, todo)
    assert "unknown dataset 'weights'; known: none" in not_measured(raw)


def test_a_cache_without_room_for_it_is_a_reason(settings: Settings, store: Store) -> None:
    published(settings)
    todo = planned(store, entry("weights"))
    (raw,) = run(settings.model_copy(update={"cache_bytes": 2**16}), store, todo)
    assert "raise FLEETMARK_CACHE_BYTES" in not_measured(raw)


def test_a_cache_with_room_for_the_shards_but_not_for_the_files_is_a_reason(settings: Settings, store: Store) -> None:
    made = published(settings, zstd_level=3)
    too_small = settings.model_copy(update={"cache_bytes": 2**17})
    assert made.stored_bytes < 2**17 < made.content_bytes
    (raw,) = run(too_small, store, planned(store, entry("weights")))
    assert "raise FLEETMARK_CACHE_BYTES" in not_measured(raw)
    assert {transfer.arrival for transfer in staging(store).transfers} == {Arrival.FETCHED}


def test_a_cache_that_cannot_be_used_is_a_reason(settings: Settings, store: Store) -> None:
    published(settings)
    todo = planned(store, entry("weights"))
    (settings.home / "file").write_bytes(b"")
    (raw,) = run(settings.model_copy(update={"cache": settings.home / "file"}), store, todo)
    assert "see FLEETMARK_CACHE" in not_measured(raw)


def test_rows_are_no_files_and_that_is_a_reason(settings: Settings, store: Store) -> None:
    published(settings, form="parquet", files={"rows.jsonl": b'{"a": 1}\n' * 100})
    (raw,) = run(settings, store, planned(store, entry("weights")))
    assert "was made of rows, not of files" in not_measured(raw)


def test_a_node_that_is_taken_stages_nothing(settings: Settings, store: Store) -> None:
    published(settings)
    impatient = settings.model_copy(update={"lease_wait_s": 0.1})
    with lease.held(settings.lease_dir, "nightly", "gpu-01", 0.0, lambda _: None):
        (raw,) = run(impatient, store, planned(store, entry("weights")))
    assert raw.refusal is not None
    assert raw.refusal.outcome is Outcome.CONTENDED
    assert store.keys_under("staged") == []


def test_a_job_outside_a_run_is_refused_what_nobody_has_staged(settings: Settings, store: Store) -> None:
    published(settings)
    (job,) = planned(store, entry("weights")).jobs
    raw = node.run_once(settings, NODE, job, say=lambda _: None)
    assert raw.refusal is not None
    assert (raw.refusal.outcome, "was not staged" in raw.refusal.reason) == (Outcome.NOT_MEASURED, True)


def test_a_preview_names_the_version_where_its_files_will_be(settings: Settings, store: Store) -> None:
    made = published(settings)
    (job,) = planned(store, entry("weights")).jobs
    assert plan.preview(job, settings.home) == ("sha256sum", f"{made.reference}/model.bin")


def test_the_rows_of_a_suite_with_a_dataset_name_its_version_and_so_do_their_labels(
    settings: Settings, store: Store
) -> None:
    made = published(settings)
    params = ", ".join(
        f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value}" for name, value in SMALL.items()
    )
    (settings.home / "mine.toml").write_text(
        'description = "x"\n'
        + f'[[benchmarks]]\nbenchmark = "fio"\nparams = {{ {params} }}\ndataset = "weights@latest"\n'
        + f'[[benchmarks]]\nbenchmark = "fio"\nparams = {{ {params} }}\n'
    )
    here = settings.model_copy(update={"suites": settings.home})
    todo = stages.make_plan(here, stages.Request(suite="mine"), make.RUN_ID, make.AT)
    stages.publish_plan(store, todo)
    stages.measure(here, store, todo.run_id, "localhost", 1, lambda _: None)
    stages.land(store, landings.ready(store))
    with_it, without = (job.job_id for job in todo.jobs)
    for name in ("runs", "measurements"):
        rows = landings.rows_of(store, name).to_pylist()
        assert {(row["job_id"], row["dataset"]) for row in rows} == {(with_it, made.reference), (without, None)}
        if name == "runs":
            assert {row["outcome"] for row in rows} == {"ok"}
        else:
            assert {dict(row["labels"]).get("dataset") for row in rows} == {made.reference, None}
    transfers = landings.rows_of(store, "staging").to_pylist()
    assert {(row["staging_id"], row["node"], row["version"]) for row in transfers} == {
        (f"{make.RUN_ID}.1", "localhost", made.version)
    }
    assert stages.land(store, landings.ready(store))
    assert landings.rows_of(store, "staging").num_rows == len(transfers)
