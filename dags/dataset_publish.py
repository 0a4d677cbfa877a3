"""
# Publish a dataset

Cuts the files of a source into checksummed shards and publishes them as a new version, which a tag then stands on.

| task | does | writes in `datasets/<name>/` |
|---|---|---|
| `plan_publication` | lists the source, decides which files come into which shard | `publishing/<publication>/` |
| `pack` | packs a chunk of the shards, each on its own | `shards/`, `indexes/`, `packed/` |
| `commit` | one create-only manifest, then the tag; emits the asset `fleetmark_datasets` | `versions/`, `tags/` |
| `land_versions` | the row in the table `datasets` | |

**Start one by hand:** *Trigger*, fill in the form. *Dry run* prints what would be read and written and stops there.

**Is it safe to run again?** Yes, always. Clear any task, or trigger the same again: shards that were packed are not
read a second time, equal shards are stored once, and readers see all of a version or nothing of it.

**A red `pack`** names a source file that changed, is gone or cannot be read. Nothing was published. Trigger again when
nobody writes to the source.

**A red `commit`** with *was moved meanwhile*: somebody else published under the same tag at the same time. Both
versions are there; `fleetmark dataset tag` decides.

**See it:** `fleetmark dataset list`, `fleetmark dataset show NAME`, `fleetmark dataset diff A B`.
"""

from datetime import timedelta

from airflow.sdk import dag

from fleetmark_airflow import dataset_forms, dataset_tasks, tasks


@dag(
    schedule=None,
    catchup=False,
    params=dataset_forms.publish_params(),
    default_args=tasks.DEFAULT_ARGS,
    dagrun_timeout=timedelta(days=2),
    doc_md=__doc__,
    description="Cut a source into verified shards and publish them as a version",
    tags=["fleetmark", "datasets"],
)
def dataset_publish() -> None:
    planned = dataset_tasks.plan_publication()
    committed = dataset_tasks.commit(planned)
    dataset_tasks.pack.expand(chunk=planned) >> committed >> dataset_tasks.land_versions()


dataset_publish()
