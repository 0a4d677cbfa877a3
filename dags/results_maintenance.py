"""
# Upkeep of the result tables, every week

Rewrites months so that each is one sorted file, rebuilds the table `latest`, and removes files that only versions
older than *Time travel in days* need.

**Is it safe to run again?** Yes, at any time and beside landings: each rewrite is one commit, and a lost commit race
is tried again. Readers keep the version they opened.

**What is lost:** no result, unless *Months to keep* is filled in. Versions of the tables older than *Time travel in
days* can no longer be read with `--as-of`.

**When it fails:** its log names the table and the reason. Nothing is half done; clear the task, or wait a week.
"""

from datetime import timedelta

from airflow.sdk import dag

from fleetmark_airflow import form, tasks
from pipelines import settings


@dag(
    schedule=form.timetable(settings.load().weekly),
    catchup=False,
    max_active_runs=1,
    params=form.maintenance_params(),
    default_args=tasks.DEFAULT_ARGS,
    dagrun_timeout=timedelta(hours=6),
    doc_md=__doc__,
    description="Rewrite finished months sorted, remove expired files",
    tags=["fleetmark"],
)
def results_maintenance() -> None:
    tasks.maintain()


results_maintenance()
