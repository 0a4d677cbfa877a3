"""Raw outputs that a spool sends after their run was parsed: they land, and nothing is left to be forgotten."""

import json
import shutil

import pytest
from click.testing import CliRunner

from pipelines import keys, late, stages, storage
from pipelines.cli import main
from pipelines.errors import Unknown
from pipelines.records import RawOutput
from pipelines.settings import Settings
from pipelines.spool import Spool
from pipelines.storage import Store
from tests import make, processes
from tests.tables import landings

WHOLE = [("job-1", "ok"), ("job-2", "ok")]


def quiet(_: str) -> None:
    """For what says what it does."""


def spooled(settings: Settings, store: Store, raw: RawOutput) -> None:
    """The raw output as it comes when the store is back."""
    here = Spool.of(settings, store)
    here.put(keys.raw_key(raw.run_id, raw.job.node, raw.job.job_id, raw.attempt), raw.model_dump_json().encode())
    here.send(store, quiet)


def outcomes(store: Store, run_id: str = make.RUN_ID) -> list[tuple[str, str]]:
    rows = landings.rows_of(store, "runs").to_pylist()
    return sorted((row["job_id"], row["outcome"]) for row in rows if row["run_id"] == run_id)


def handed_in_without_the_last(store: Store, run_id: str = make.RUN_ID) -> RawOutput:
    """A run whose last job's raw output did not come in time."""
    *in_time, last = landings.raws(run_id, samples=["rand_read", "seq_write"])
    stages.publish_plan(store, make.plan(*(raw.job for raw in (*in_time, last)), run_id=run_id))
    for raw in in_time:
        landings.put(store, raw)
    return last


def landed_without_the_last(store: Store, run_id: str = make.RUN_ID) -> RawOutput:
    last = handed_in_without_the_last(store, run_id)
    batch = stages.parse(store, run_id, make.AT)
    stages.validate(store, batch)
    stages.land(store, batch)
    assert outcomes(store, run_id) == [("job-1", "ok"), ("job-2", "not_measured")]
    return last


def test_what_comes_after_its_run_has_landed_lands_and_is_heeded_once(settings: Settings, store: Store) -> None:
    spooled(settings, store, landed_without_the_last(store))
    assert stages.land_late(store, make.AT, quiet) == (make.RUN_ID,)
    assert outcomes(store) == WHOLE
    assert stages.land_late(store, make.AT, quiet) == ()


def test_a_run_that_was_not_parsed_yet_is_left_alone_and_its_words_are_kept(settings: Settings, store: Store) -> None:
    spooled(settings, store, handed_in_without_the_last(store))
    assert stages.land_late(store, make.AT, quiet) == ()
    stages.parse(store, make.RUN_ID, make.AT)
    assert list(late.runs(store)) == [make.RUN_ID]


@pytest.mark.integration
def test_word_is_kept_until_the_run_has_landed_whenever_the_landing_is_killed(settings: Settings, store: Store) -> None:
    spooled(settings, store, landed_without_the_last(store))
    template = settings.home / "template"
    shutil.copytree(settings.home / "store", template)
    span_s = processes.duration_s(_land_late, settings)
    ended_early = 0
    for moment_s in processes.moments(seed=5, count=8, span_s=span_s):
        shutil.rmtree(settings.home / "store")
        shutil.copytree(template, settings.home / "store")
        ended_early += processes.kill_after(moment_s, _land_late, settings)
        assert list(late.runs(store)) == [make.RUN_ID] or outcomes(store) == WHOLE
        _land_late(settings)
        assert (list(late.runs(store)), outcomes(store)) == ([], WHOLE)
    assert ended_early > 0, "no kill met a landing: the test has proved nothing"


def _land_late(settings: Settings) -> None:
    stages.land_late(storage.open_store(settings), make.AT, quiet)


def test_a_run_that_cannot_land_is_raised_for_and_keeps_no_other_from_landing(settings: Settings, store: Store) -> None:
    broken, whole = landings.RUN_A, landings.RUN_B
    for run_id in (broken, whole):
        spooled(settings, store, landed_without_the_last(store, run_id))
    store.delete(keys.plan_key(broken))
    with pytest.raises(Unknown, match=broken):
        stages.land_late(store, make.AT, quiet)
    assert outcomes(store, whole) == WHOLE
    assert list(late.runs(store)) == [broken]


def test_reparse_takes_one_run_or_the_late_ones(settings: Settings, store: Store) -> None:
    environ = {f"FLEETMARK_{name.upper()}": str(getattr(settings, name)) for name in ("home", "inventory", "suites")}
    spooled(settings, store, landed_without_the_last(store))
    done = CliRunner().invoke(main, ["reparse", "--late", "--json"], env=environ)
    assert json.loads(done.stdout) == {"landed": [make.RUN_ID]}
    for argv in (["reparse"], ["reparse", make.RUN_ID, "--late"]):
        assert "give either the run or --late" in CliRunner().invoke(main, argv, env=environ).output
