"""storage_stage: the probe on real stores, and what the parser makes of what it printed."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines import benchmark, page_cache, process, storage
from pipelines.benchmark import Workplace
from pipelines.errors import BadParameter
from pipelines.probes import storage_stage as probe
from pipelines.records import Outcome, Parsed, RawOutput
from pipelines.settings import Settings
from tests import make
from tests.conftest import on
from tests.datasets.published import publish, random_files

STAGE = benchmark.get("storage_stage")
FOLDER = Path(__file__).parents[1] / "samples/storage_stage"
MIB = 2**20
SHARDS = 5
STORES = ["directory", pytest.param("moto", marks=pytest.mark.integration)]


@pytest.fixture(params=STORES)
def published(request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a store with a dataset `benchmark` of five shards, 1 MiB each."""
    there = settings
    if request.param == "moto":
        there = on(request.getfixturevalue("moto"), settings, monkeypatch)
    publish(there, storage.open_store(there), random_files(1, SHARDS, MIB), "benchmark", shard_bytes=MIB)
    return there


def variables(settings: Settings) -> Mapping[str, str]:
    where = {
        "FLEETMARK_HOME": str(settings.home),
        "FLEETMARK_STORE": settings.store_url,
        "FLEETMARK_STORE_RETRY_S": "1",
    }
    return {**os.environ, **where, **({"FLEETMARK_S3_ENDPOINT": settings.s3_endpoint} if settings.s3_endpoint else {})}


def of(given: Mapping[str, Any], **fields: Any) -> RawOutput:
    params = STAGE.checked_params(given)
    job = make.job(benchmark="storage_stage", case=STAGE.case(params), params=params.model_dump(mode="json"))
    return make.raw(job, **{"tool": STAGE.tool, **fields})


def run(environ: Mapping[str, str], folder: Path, **given: Any) -> RawOutput:
    folder.mkdir()
    argv = STAGE.command(STAGE.checked_params(given), Workplace(folder, folder / "o", True, "0.1.0")).argv
    done = process.run(argv, timeout_s=120, cwd=folder, environ=environ, passed=STAGE.passed)
    return of(given, exit_status=done.exit_status, stdout=done.stdout, stderr=done.stderr)


def _cache(published: Settings) -> str | None:
    """What this machine can say of a store's memory: that of a directory it can empty, but for one that is memory."""
    if published.store_url.startswith("s3:"):
        return None
    return "dropped" if page_cache.is_all(published.home) else "warm"


def values(parsed: Parsed) -> dict[str, float]:
    return {each.metric: each.value for each in parsed.measurements}


def test_each_shard_is_a_transfer_each_time_and_the_nodes_cache_stays_as_it_was(
    published: Settings, tmp_path: Path
) -> None:
    for number in range(2):
        folder = tmp_path / f"job-{number}"
        raw = run(variables(published), folder, most_bytes=16 * MIB)
        parsed = STAGE.parse(raw)
        assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
        assert values(parsed)["staged_bytes"] == SHARDS * MIB
        assert {each.labels["store"] for each in parsed.measurements} == {published.store_url.partition(":")[0]}
        for each in parsed.measurements:
            assert each.labels.get("cache") == (None if each.metric == "first_byte_time" else _cache(published))
        staged = list((folder / "cache/shards").iterdir())
        assert len(staged) == SHARDS
        assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in staged)
        for each in parsed.measurements:
            metric = STAGE.metric(each.metric)
            assert metric.low <= each.value <= metric.high
            assert each.unit == metric.unit
    assert not published.cache_root.exists()


def test_no_more_is_staged_than_was_asked_for(published: Settings, tmp_path: Path) -> None:
    raw = run(variables(published), tmp_path / "job", most_bytes=2 * MIB + 1)
    assert values(STAGE.parse(raw))["staged_bytes"] == 2 * MIB
    written = sum(path.stat().st_size for path in (tmp_path / "job").rglob("*") if path.is_file())
    assert written <= STAGE.cost(STAGE.params_of(raw.job)).written_bytes


def test_a_dataset_that_is_not_there_is_configuration(settings: Settings, tmp_path: Path) -> None:
    parsed = STAGE.parse(run(variables(settings), tmp_path / "job"))
    assert parsed.outcome is Outcome.CONFIG
    assert "unknown dataset 'benchmark'" in parsed.reason


def test_a_store_that_is_away_is_not_measured(settings: Settings, tmp_path: Path) -> None:
    away = {**variables(settings), "FLEETMARK_STORE": "s3://none", "FLEETMARK_S3_ENDPOINT": "http://127.0.0.1:9"}
    secret = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "very-secret", "AWS_REGION": "us-east-1"}
    raw = run({**away, **secret}, tmp_path / "job")
    assert STAGE.parse(raw).outcome is Outcome.NOT_MEASURED
    assert "very-secret" not in raw.model_dump_json()


def test_a_shard_that_is_damaged_in_the_store_is_no_measurement(settings: Settings, tmp_path: Path) -> None:
    publish(settings, storage.open_store(settings), random_files(1, 2, MIB), "benchmark", shard_bytes=MIB)
    shard = sorted((settings.home / "store/datasets/benchmark/shards").iterdir())[0]
    shard.chmod(0o600)
    with shard.open("r+b") as file:
        file.write(b"damage")
    parsed = STAGE.parse(run(variables(settings), tmp_path / "job"))
    assert (parsed.outcome, parsed.measurements) == (Outcome.TOOL_FAILED, ())
    assert "1 of 2 shards did not arrive" in parsed.reason


def test_what_was_there_before_is_no_transfer() -> None:
    document = json.loads((FOLDER / "0.1.0-file.json").read_text())
    document["transfers"][0] |= {"arrival": "present", "fetched_bytes": 0}
    parsed = STAGE.parse(of({}, stdout=json.dumps(document)))
    assert (parsed.outcome, parsed.measurements) == (Outcome.TOOL_FAILED, ())


def test_bandwidth_is_of_all_bytes_over_the_seconds_of_all() -> None:
    document = json.loads((FOLDER / "0.1.0-file.json").read_text())
    got = values(STAGE.parse(of({}, stdout=json.dumps(document))))
    fetched = sum(each["fetched_bytes"] for each in document["transfers"])
    assert got["stage_bandwidth"] == pytest.approx(fetched / document["seconds"])


def test_relative_paths_of_settings_mean_where_the_starting_process_is(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(settings.home.parent)
    relative = {**variables(settings), "FLEETMARK_HOME": settings.home.name}
    del relative["FLEETMARK_STORE"]
    raw = run(relative, tmp_path / "job")
    assert "unknown dataset" in STAGE.parse(raw).reason
    assert not (tmp_path / "job" / settings.home.name).exists()


@pytest.mark.parametrize(
    ("given", "case"), [({}, "benchmark-4GiB"), ({"dataset": "w@prod", "most_bytes": 2**29}, "w-at-prod-512MiB")]
)
def test_a_case_names_dataset_and_size(given: dict[str, Any], case: str) -> None:
    assert STAGE.case(STAGE.checked_params(given)) == case


def test_a_dataset_is_a_name_and_no_path() -> None:
    with pytest.raises(BadParameter):
        STAGE.checked_params({"dataset": "../x"})


def test_shards_that_do_not_fit_are_left_out() -> None:
    from types import SimpleNamespace

    shards: Any = [SimpleNamespace(size_bytes=size) for size in (3, 9, 4, 1)]
    assert [each.size_bytes for each in probe.within(shards, 8)] == [3, 4, 1]
