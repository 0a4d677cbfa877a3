"""
# Scrub the datasets

Reads shards in the store and in the nodes' caches again and compares them with their manifests, as far as *Sample in
percent* says and no faster than *Rate in MB/s*.

What is damaged is put away (`datasets/<name>/quarantined/`, or the cache's `damaged/`) and repaired where there is a
good copy: a stored shard from the cache of the node that scrubs, a cached shard from the store.

**Is it safe to run again?** Yes, at any time, beside publications and stagings.

**What to look at:** `fleetmark query "SELECT * FROM scrubs WHERE finding <> 'intact' ORDER BY checked_at DESC"`. A row
with `damaged` or `missing` needs a person: publish the dataset again from its source, which puts the shard back.

**When it fails:** its log names the store or the node; nothing is half repaired. Clear the task.
"""

from datetime import timedelta

from airflow.sdk import dag

from fleetmark_airflow import dataset_forms, dataset_tasks, form, on_node, tasks
from pipelines import settings

current = settings.load()


@dag(
    schedule=form.timetable(current.scrub),
    catchup=False,
    max_active_runs=1,
    params=dataset_forms.scrub_params(current),
    default_args=tasks.DEFAULT_ARGS,
    dagrun_timeout=timedelta(days=2),
    doc_md=__doc__,
    description="Re-hash shards in the store and in the caches; repair what has a good copy",
    tags=["fleetmark", "datasets"],
)
def dataset_scrub() -> None:
    stored = dataset_tasks.scrub_store.expand(dataset=dataset_tasks.datasets_to_scrub())
    cached = on_node.expand(dataset_tasks.scrub_cache, dataset_tasks.nodes_to_scrub(), *dataset_tasks.THOROUGHNESS)
    [stored, cached] >> dataset_tasks.land_scrub()


dataset_scrub()
