"""
# Collect what no dataset version needs

Deletes shards and indexes that no version names, leftovers of abandoned publications and versions removed long ago,
each after the grace period. *Dry run*, on by default when triggered by hand, only prints them.

**Is it safe to run again?** Yes. It and publications keep out of each other's way: while one is under way for a
dataset, nothing of that dataset is deleted, and the task says so and tries again later. A removed version keeps its
shards for the grace period.

**What is lost:** only what `fleetmark dataset rm` removed, or what a publication left that was never finished.

**When it fails:** a manifest that cannot be read stops the collection of its dataset: nothing is deleted on a guess.
The log names it.
"""

from datetime import timedelta

from airflow.sdk import dag

from fleetmark_airflow import dataset_forms, dataset_tasks, form, tasks
from pipelines import settings

current = settings.load()


@dag(
    schedule=form.timetable(current.gc),
    catchup=False,
    max_active_runs=1,
    params=dataset_forms.gc_params(is_scheduled=bool(current.gc)),
    default_args=tasks.DEFAULT_ARGS,
    dagrun_timeout=timedelta(hours=12),
    doc_md=__doc__,
    description="Delete unreferenced shards after a grace period",
    tags=["fleetmark", "datasets"],
)
def dataset_gc() -> None:
    dataset_tasks.collect.expand(dataset=dataset_tasks.datasets_to_collect())


dataset_gc()
