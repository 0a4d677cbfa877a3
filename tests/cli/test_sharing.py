"""The verbs about how the fleet's time is shared."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines import keys, storage
from pipelines.cli import main
from pipelines.settings import Settings
from pipelines.tables import usage
from tests.tables import landings, nights

FLEET = """
[[nodes]]
name = "gpu-01"
queue = "gpu-01"
scratch = "scratch"

[[nodes]]
name = "gpu-02"
queue = "gpu-02"
scratch = "scratch"

[tenants.default]
node_minutes_per_day = 120

[rounds]
within_nights = 2
"""


@pytest.fixture
def shared(settings: Settings, tmp_path: Path) -> Settings:
    (tmp_path / "fleet.toml").write_text(FLEET)
    return settings.model_copy(update={"inventory": tmp_path / "fleet.toml"})


def fleetmark(settings: Settings, *argv: str) -> str:
    environ = {f"FLEETMARK_{name.upper()}": str(getattr(settings, name)) for name in ("home", "inventory", "suites")}
    done = CliRunner().invoke(main, argv, env=environ)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_usage_shows_what_was_used_and_is_planned_beside_the_quota(shared: Settings) -> None:
    store, now = storage.open_store(shared), datetime.now(UTC)
    ended, waiting = keys.run_id(now, "ended"), keys.run_id(now, "waiting")
    given = [raw.model_copy(update={"started_at": now, "duration_s": 60.0}) for raw in landings.raws(ended)]
    landings.hand_in(store, given, ended)
    usage.land_batch(store, landings.ready(store, ended))
    landings.hand_in(store, landings.raws(waiting)[:1], waiting)
    minutes = given[0].job.seconds / 60
    expected = {"tenant": "default", "used": 3.0, "planned": minutes, "quota": 120.0}
    assert json.loads(fleetmark(shared, "usage", "--json")) == [expected]
    assert fleetmark(shared, "usage").split()[-4:] == ["default", "3.0", f"{minutes:.1f}", "120.0"]


def test_coverage_shows_whose_turn_it_is_and_who_is_overdue(shared: Settings) -> None:
    night = datetime(2026, 1, 5, tzinfo=UTC).date()  # long before any clock that runs this
    nights.put(storage.open_store(shared), nights.rows(night))
    assert json.loads(fleetmark(shared, "coverage", "--suite", "quick", "--json")) == [
        {"node": "gpu-02", "covered": None, "tonight": True, "drained": False, "overdue": "no run has planned it yet"},
        {
            "node": "gpu-01",
            "covered": "2026-01-05",
            "tonight": True,
            "drained": False,
            "overdue": "no run has planned it since",
        },
    ]
    assert "2026-01-05" in fleetmark(shared, "coverage", "--suite", "quick")


def test_coverage_of_a_fleet_without_runs_takes_a_share_of_it_tonight(shared: Settings) -> None:
    assert json.loads(fleetmark(shared, "coverage", "--json")) == [
        {"node": "gpu-01", "covered": None, "tonight": True, "drained": False, "overdue": None},
        {"node": "gpu-02", "covered": None, "tonight": False, "drained": False, "overdue": None},
    ]


def test_coverage_shows_a_drained_node_as_that_and_gives_its_turn_to_another(shared: Settings) -> None:
    shared.inventory.write_text(FLEET.replace('"scratch"', '"scratch"\ndrained = true', 1))
    assert json.loads(fleetmark(shared, "coverage", "--json")) == [
        {"node": "gpu-01", "covered": None, "tonight": False, "drained": True, "overdue": None},
        {"node": "gpu-02", "covered": None, "tonight": True, "drained": False, "overdue": None},
    ]
    assert "drained" in fleetmark(shared, "coverage")


def test_a_plan_leaves_out_a_node_that_is_drained(shared: Settings) -> None:
    shared.inventory.write_text(FLEET.replace('"scratch"', '"scratch"\ndrained = true', 1))
    made = json.loads(fleetmark(shared, "plan", "--suite", "quick", "--dry-run", "--json"))
    assert {job["node"] for job in made["jobs"]} == {"gpu-02"}
