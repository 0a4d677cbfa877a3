"""The DAG files as Airflow reads them: quickly, without I/O that could hang, and with a form that refuses nonsense."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import process

ROOT = Path(__file__).parents[2]
HEAVY = {"pyarrow", "duckdb", "deltalake", "pandas", "great_expectations", "s3fs"}
READ_IN_FRESH_PROCESS = """
import json, os, sys
os.environ["AIRFLOW_HOME"] = sys.argv[1]
from airflow.dag_processing.dagbag import DagBag
before = set(sys.modules)
bag = DagBag("dags", bundle_name="dags-folder")
print(json.dumps({"loaded": sorted(set(sys.modules) - before), "errors": bag.import_errors}))
"""

ReadDags = Callable[[], Any]


def params_of(read_dags: ReadDags) -> Any:
    bag = read_dags()
    assert bag.import_errors == {}
    return bag.dags["fleet_benchmark"].params


def test_every_dag_file_is_read_without_an_error(read_dags: ReadDags) -> None:
    bag = read_dags()
    assert bag.import_errors == {}
    assert set(bag.dags) == {
        "dataset_gc", "dataset_publish", "dataset_scrub", "dataset_stage", "fleet_benchmark", "results_maintenance",
    }  # fmt: skip


def test_every_dag_shows_a_runbook_that_says_whether_it_is_safe_to_run_again(read_dags: ReadDags) -> None:
    for dag in read_dags().dags.values():
        assert "**Is it safe to run again?**" in dag.doc_md
        assert len(dag.doc_md.splitlines()) > 10


def test_reading_the_dag_files_loads_nothing_heavy(home: Path) -> None:
    done = process.run((sys.executable, "-c", READ_IN_FRESH_PROCESS, str(home / "airflow")), timeout_s=120, cwd=ROOT)
    read = json.loads(done.stdout.splitlines()[-1])
    assert read["errors"] == {}
    assert HEAVY.isdisjoint(read["loaded"])


def test_every_task_retries_only_what_another_attempt_may_cure(read_dags: ReadDags) -> None:
    from fleetmark_airflow.retries import OnlyInfrastructure

    for dag in read_dags().dags.values():
        for task in dag.tasks:
            policy = task.partial_kwargs["retry_policy"] if task.is_mapped else task.retry_policy
            assert isinstance(policy, OnlyInfrastructure)
            assert task.retries == 3


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("suite", "nope", "'nope' is not one of ['quick', 'tiny']"),
        ("nodes", ["gpu-99"], "'gpu-99' is not one of ['localhost']"),
        ("nodes", "localhost", "'localhost' is not of type 'array'"),
        ("cohort", "sku=none", "'sku=none' is not one of [None, 'sku=generic']"),
        ("sample", 0, "0 is less than the minimum of 1"),
        ("repeats", 101, "101 is greater than the maximum of 100"),
        ("repeats", "3", "'3' is not of type 'null', 'integer'"),
        ("overrides", {"runtime_s": [1]}, "[1] is not of type 'boolean', 'number', 'string'"),
        ("overrides", "runtime_s=1", "'runtime_s=1' is not of type 'object'"),
        ("dry_run", "yes", "'yes' is not of type 'boolean'"),
        ("note", "x" * 501, "is too long"),
    ],
)
def test_the_form_refuses_wrong_input_with_a_sentence(
    read_dags: ReadDags, name: str, value: Any, sentence: str
) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    params = params_of(read_dags)
    with pytest.raises(ParamValidationError) as refused:
        params[name] = value
    assert sentence in str(refused.value).splitlines()[0]


@pytest.mark.parametrize(
    ("dag", "name", "value", "sentence"),
    [
        ("dataset_publish", "source", "", "'' should be non-empty"),
        ("dataset_publish", "dataset", "../etc", "'../etc' does not match"),
        ("dataset_publish", "tag", "a b", "'a b' does not match"),
        ("dataset_publish", "format", "zip", "'zip' is not one of ['tar', 'parquet', 'blob']"),
        ("dataset_publish", "shard_mib", 0, "0 is less than the minimum of 1"),
        ("dataset_publish", "zstd_level", 20, "20 is greater than the maximum of 19"),
        ("dataset_stage", "versions", ["a@b@c"], "'a@b@c' does not match"),
        ("dataset_stage", "shards", "some", "'some' does not match"),
        ("dataset_stage", "copies", 0, "0 is less than the minimum of 1"),
        ("dataset_scrub", "sample_percent", 0, "0 is less than or equal to the minimum of 0"),
        ("dataset_gc", "grace_days", 0, "0 is less than the minimum of 1"),
    ],
)
def test_the_dataset_forms_refuse_wrong_input_with_a_sentence(
    read_dags: ReadDags, dag: str, name: str, value: Any, sentence: str
) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError) as refused:
        read_dags().dags[dag].params[name] = value
    assert sentence in str(refused.value).splitlines()[0]


def test_the_collector_prints_first_unless_somebody_has_scheduled_it(
    read_dags: ReadDags, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_dags().dags["dataset_gc"].params["dry_run"] is True
    monkeypatch.setenv("FLEETMARK_GC", "0 7 * * 0")
    assert read_dags().dags["dataset_gc"].params["dry_run"] is False


@pytest.mark.parametrize("terms", [[], ["localhost"], ["loc*"], ["sku=gen*,rack=r1"], ["feature=rdma"], ["[a-z]*"]])
def test_the_form_takes_names_globs_and_conditions(read_dags: ReadDags, terms: list[str]) -> None:
    params = params_of(read_dags)
    params["nodes"] = terms
    assert params["nodes"] == terms


def test_the_schedule_runs_the_nightly_suite_on_every_node_where_there_is_one(read_dags: ReadDags, home: Path) -> None:
    assert params_of(read_dags)["suite"] == "quick"  # the first by name, for want of `storage`
    (home / "suites/nightly.toml").write_text((home / "suites/tiny.toml").read_text())
    params = params_of(read_dags)
    assert (params["suite"], params["nodes"], params["cohort"]) == ("nightly", [], None)


def test_a_malformed_inventory_is_an_import_error_that_names_line_and_field(read_dags: ReadDags, home: Path) -> None:
    (home / "fleet.toml").write_text('[[nodes]]\nname = "gpu-01"\nqueue = "gpu-01"\nscratch = 7\n')
    errors = read_dags().import_errors
    assert sorted(Path(file).name for file in errors) == ["dataset_scrub.py", "dataset_stage.py", "fleet_benchmark.py"]
    sentence = f"{home}/fleet.toml, line 4, field nodes[0].scratch: Input should be a valid string, got 7"
    assert {error.strip().rpartition("BadFile: ")[2] for error in errors.values()} == {sentence}


def test_an_empty_cron_expression_means_no_schedule(read_dags: ReadDags, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETMARK_NIGHTLY", "")
    bag = read_dags()
    assert bag.dags["fleet_benchmark"].schedule is None
    assert bag.dags["results_maintenance"].schedule is not None


def test_a_node_takes_what_the_control_plane_has_let_in_though_its_own_files_do_not_know_it(home: Path) -> None:
    """Airflow checks a run's parameters again where its tasks run."""
    from fleetmark_airflow import form
    from pipelines import settings

    here = settings.load()
    asked = {"suite": "elsewhere", "tenant": "ml", "cohort": "h300", "nodes": ["gpu-99"]}
    there = form.benchmark_params(here.model_copy(update={"node": "gpu-99", "node_executor": "edge"}))
    assert {name: there[name].resolve(value) for name, value in asked.items()} == asked
    for name, value in asked.items():
        with pytest.raises(ValueError, match=r"is not one of|is not valid"):
            form.benchmark_params(here)[name].resolve(value)
