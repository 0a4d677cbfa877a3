"""The DAGs run to their end in one process: real fio, real store, real tables, Airflow's own task runner on SQLite."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import settings, storage
from pipelines.tables.query import open_reader

pytestmark = pytest.mark.integration
ReadDags = Callable[[], Any]
OPTIONAL = ("exchange", "isolate", "exchange_again", "approve", "measure_devices")


def run(read_dags: ReadDags, dag: str, **conf: Any) -> dict[str, str]:
    """The states of the tasks after a run, by name; and of the run itself, as `run`."""
    done = read_dags().dags[dag].test(run_conf=conf)
    return {ti.task_id: str(ti.state) for ti in done.get_task_instances()} | {"run": str(done.state)}


def answer(sql: str) -> tuple[tuple[Any, ...], ...]:
    with open_reader(storage.open_store(settings.load())) as reader:
        return reader.query(sql).rows


def test_a_run_lands_what_fio_measured_and_upkeep_keeps_it(read_dags: ReadDags, home: Path) -> None:
    states = run(read_dags, "fleet_benchmark", suite="tiny", nodes=["localhost"], note="from a test")
    assert {name for name, state in states.items() if state == "skipped"} == set(OPTIONAL), "no pairs, no disks"
    assert {state for name, state in states.items() if name not in OPTIONAL} == {"success"}
    assert answer("SELECT outcome, note, trigger, count(*) FROM runs GROUP BY ALL") == (
        ("ok", "from a test", "manual", 2),
    )
    assert answer("SELECT tenant, node, attempts, node_seconds > 0 FROM usage") == (("default", "localhost", 2, True),)
    landed = answer("SELECT repeat, value > 0 FROM measurements WHERE metric = 'read_iops' ORDER BY ALL")
    assert landed == ((1, True), (2, True))
    assert [path.name for path in (home / "store/reports").glob("*/index.html")] == ["index.html"]

    assert run(read_dags, "results_maintenance") == {"maintain": "success", "run": "success"}
    assert answer("SELECT repeat, value > 0 FROM measurements WHERE metric = 'read_iops' ORDER BY ALL") == landed


def test_a_dry_run_prints_the_plan_and_leaves_nothing(
    read_dags: ReadDags, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="fleetmark")
    states = run(read_dags, "fleet_benchmark", suite="tiny", dry_run=True)
    assert states == {
        **dict.fromkeys(("measure", "pair_up", *OPTIONAL, "parse", "validate", "land", "report", "late"), "skipped"),
        **dict.fromkeys(("plan", "run"), "success"),
    }
    assert "case=rand_read-4MiB repeat=2" in caplog.text
    assert not (home / "store").exists()


@pytest.mark.parametrize(
    ("conf", "sentence"),
    [
        ({"overrides": {"bogus": 1}}, "benchmark fio, parameter 'bogus': there is no such parameter"),
        ({"overrides": {"runtime_s": -1}}, "benchmark fio, parameter 'runtime_s'"),
        ({"nodes": ["gpu-*"]}, "node selection 'gpu-*': matches none of the 1 nodes"),
        ({"suit": "tiny"}, "unknown parameter of the form 'suit'; known: suite, nodes, "),
    ],
)
def test_a_request_that_cannot_be_planned_fails_the_plan_with_a_sentence(
    read_dags: ReadDags, home: Path, capfd: pytest.CaptureFixture[str], conf: dict[str, Any], sentence: str
) -> None:
    states = run(read_dags, "fleet_benchmark", **{"suite": "tiny", **conf})
    assert states["plan"] == states["run"] == "failed"
    assert states["land"] == "upstream_failed"
    assert sentence in "".join(capfd.readouterr())
    assert not (home / "store").exists()


def test_a_node_that_cannot_be_measured_is_red_and_its_jobs_land_as_not_measured(
    read_dags: ReadDags, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "fleet.toml").write_text(
        '[[nodes]]\nname = "localhost"\nqueue = "localhost"\nscratch = "scratch"\n'
        '[[nodes]]\nname = "gone"\nqueue = "gone"\nscratch = "/dev/shm/../nowhere"\n'
    )
    states = run(read_dags, "fleet_benchmark", suite="tiny")
    assert states["run"] == "success"
    assert dict(answer("SELECT node, count(*) FROM measurements WHERE metric = 'read_iops' GROUP BY node")) == {
        "localhost": 2
    }
    outcomes = dict(answer("SELECT node, any_value(outcome) FROM runs GROUP BY node"))
    assert outcomes["localhost"] == "ok"
    assert outcomes["gone"] != "ok"
