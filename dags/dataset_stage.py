"""
# Stage datasets on the nodes

Fetches the shards of dataset versions into the nodes' caches on NVMe, verified, within each cache's budget.

| task | does | writes |
|---|---|---|
| `plan_staging` | resolves versions and tags, chooses shards and nodes | `stagings/<id>.json` |
| `stage` | fetches a node's share; what is there is verified and kept | its cache, `staged/<date>/<id>/<node>.json` |
| `land_staging` | a row in the table `staging` for every transfer | |

**Start one by hand:** *Trigger*, fill in the form. No version and *Shards* `hot` stages what `infra/hot.toml` names.

**Is it safe to run again?** Yes, always. Shards that are there are read and verified, not fetched; an interrupted
download goes on at its last good block. Several stagings may meet on a node: they share the cache, and each shard is
fetched once.

**A shard that could not be had** is a row with the reason (damaged in the store, or no room beside what is pinned and
in use); the rest is staged. **A red `stage`** is a node that could not be reached, or whose cache cannot be used.

**See it:** `fleetmark cache ls` on a node, or
`fleetmark query "SELECT node, arrival, count(*), sum(size_bytes) FROM staging GROUP BY ALL"`.
"""

from datetime import timedelta

from airflow.sdk import dag

from fleetmark_airflow import dataset_forms, dataset_tasks, on_node, tasks
from pipelines import settings


@dag(
    schedule=None,
    catchup=False,
    params=dataset_forms.stage_params(settings.load()),
    default_args=tasks.DEFAULT_ARGS,
    dagrun_timeout=timedelta(hours=12),
    doc_md=__doc__,
    description="Fetch dataset shards into the nodes' caches",
    tags=["fleetmark", "datasets"],
)
def dataset_stage() -> None:
    planned = dataset_tasks.plan_staging()
    [planned, on_node.expand(dataset_tasks.stage, planned)] >> dataset_tasks.land_staging()


dataset_stage()
