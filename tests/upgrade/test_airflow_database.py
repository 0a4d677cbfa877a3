"""An embedded Airflow whose database has an earlier version's schema is brought to today's, and keeps its runs."""

import sqlite3
from contextlib import closing
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pytest

from pipelines.embedded import instance
from pipelines.embedded.api import Run
from pipelines.embedded.home import Home
from tests.integration.conftest import embedded_settings
from tests.upgrade.fixtures import FIXTURES, has_database, unpacked
from tests.upgrade.make_fixture import SCHEMA, TASKS

pytestmark = pytest.mark.integration
_SCHEMA_IS = "SELECT version_num FROM alembic_version"


def test_an_older_database_is_migrated_at_the_start_and_keeps_its_runs_and_their_tasks(tmp_path: Path) -> None:
    settings = embedded_settings(tmp_path)
    settings.home.mkdir()
    home = Home(settings)
    old = unpacked(next(filter(has_database, FIXTURES)), settings)
    assert home.migrated.read_text() == SCHEMA
    with closing(sqlite3.connect(home.database)) as database:
        ((before,),) = database.execute(_SCHEMA_IS).fetchall()
        ((run_id, run_after),) = database.execute("SELECT run_id, run_after FROM dag_run").fetchall()
    with instance.running(settings, print) as (running, _):
        airflow = instance.client(home, running)
        run = Run(dag=instance.DAG, run_id=run_id, run_after=datetime.fromisoformat(f"{run_after}+00:00"), state="")
        assert airflow.run(run).state == "success"
        states = {(task.name, task.map_index): task.state for task in airflow.tasks(run)}
    assert states == {(task, index): state for _, _, task, index, state, _ in old.said["tasks"]}
    assert home.migrated.read_text() == version("apache-airflow-core")
    with closing(sqlite3.connect(home.database)) as database:
        assert [list(each) for each in database.execute(TASKS)] == old.said["tasks"]
        assert database.execute(_SCHEMA_IS).fetchall() != [(before,)]
