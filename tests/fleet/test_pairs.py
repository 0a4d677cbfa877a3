"""Benchmarks between two nodes of a fleet: everybody meets, and a node with a bad network is named."""

from collections.abc import Iterator

import pytest

from pipelines import keys, storage
from pipelines.embedded.api import Run
from tests.fleet.conftest import NODES
from tests.fleet.control import Fleet
from tests.following import run_id_of

pytestmark = pytest.mark.integration


@pytest.fixture
def slow(fleet: Fleet) -> Iterator[str]:
    """A node whose network is slow."""
    name = NODES[1]
    fleet.machine(name).slow_down()
    yield name
    fleet.machine(name).speed_up()


def verdicts(fleet: Fleet, run: Run) -> dict[str, str]:
    of_run = f"run_id = '{run_id_of(run)}' AND rule = 'partners'"
    return dict(fleet.answer(f"SELECT node, verdict FROM verdicts WHERE {of_run}"))  # type: ignore[arg-type]


def test_a_nightly_run_with_fio_and_pairs_lands_complete(fleet: Fleet) -> None:
    run = fleet.ended(fleet.trigger(suite="both"))
    assert run.state == "success"
    where = f"WHERE run_id = '{run_id_of(run)}'"
    counted = fleet.answer(f"SELECT benchmark, outcome, count(*) FROM runs {where} GROUP BY ALL ORDER BY ALL")
    assert counted == (("fio", "ok", 8), ("iperf3", "ok", 4)), "two repeats on each node, and two rounds of two pairs"
    met = fleet.answer(f"SELECT node, peer FROM runs {where} AND peer IS NOT NULL")
    assert {name for pair in met for name in pair} == set(NODES)
    assert verdicts(fleet, run) == dict.fromkeys(NODES, "pass")
    states = {task.name: task.state for task in fleet.airflow.tasks(run)}
    assert (states["exchange"], states["isolate"], states["exchange_again"]) == ("success", "success", "skipped")


def test_a_node_with_a_slow_network_is_tested_with_good_partners_and_named(fleet: Fleet, slow: str) -> None:
    run = fleet.ended(fleet.trigger(suite="pairs"))
    assert run.state == "success"
    assert verdicts(fleet, run) == {**dict.fromkeys(NODES, "pass"), slow: "fail"}
    store = storage.open_store(fleet.settings)
    assert slow in store.read(keys.retest_key(run_id_of(run))).decode()
    (reason,) = fleet.answer(
        f"SELECT reason FROM verdicts WHERE run_id = '{run_id_of(run)}' AND verdict = 'fail' AND rule = 'partners'"
    )[0]
    assert "it does badly with partners that are good" in reason
    page = store.read(keys.report_key(run_id_of(run), "index.html")).decode()
    assert "1 node bad in pairs" in page
