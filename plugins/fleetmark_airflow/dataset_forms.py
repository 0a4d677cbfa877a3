"""The forms of the dataset DAGs: typed parameters, with the choices that the inventory gives."""

from airflow.sdk import Param

from fleetmark_airflow.form import as_read_by, node_params
from pipelines import inventory
from pipelines.settings import Settings

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_REFERENCE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}(@[A-Za-z0-9][A-Za-z0-9._-]{0,62})?$"
_MOST_NODES = 10_000


def publish_params() -> dict[str, Param]:
    """What is published, from where, and how it is packed."""
    return {
        "source": Param(
            type="string",
            minLength=1,
            title="Source",
            description="An absolute path on the workers, a glob, or a URL: s3://bucket/prefix, gs://.., https://..",
        ),
        "dataset": Param(type="string", pattern=_NAME, title="Dataset", description="Its name in the store."),
        "tag": Param(
            "latest",
            type="string",
            pattern=_NAME,
            title="Tag",
            description="Moves to the new version when all of it is there.",
        ),
        "format": Param(
            "tar",
            type="string",
            enum=["tar", "parquet", "blob"],
            values_display={
                "tar": "tar: many small files, as WebDataset reads them",
                "parquet": "parquet: rows of Parquet, CSV or JSONL",
                "blob": "blob: large files such as model weights",
            },
            title="Format",
        ),
        "shard_mib": Param(
            128,
            type="integer",
            minimum=1,
            maximum=65_536,
            title="Shard size in MiB",
            description="Aimed at, before compression.",
        ),
        "zstd_level": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            maximum=19,
            title="Compression",
            description="zstd's level; empty: as it is.",
        ),
        "parent": Param(
            None,
            type=["null", "string"],
            pattern=_NAME,
            title="Parent",
            description="Keep the packing of this tag or id. Empty: of the version that the tag stands on.",
            section="Incremental versions",
        ),
        "pack_anew": Param(
            False,
            type="boolean",
            title="Pack anew",
            description="Keep no packing: every file may come into another shard.",
            section="Incremental versions",
        ),
        "dry_run": Param(
            False,
            type="boolean",
            title="Dry run",
            description="Only print in the log of the task plan what would be read and written.",
        ),
        "note": Param(None, type=["null", "string"], maxLength=500, title="Note", description="Kept with the version."),
    }


def stage_params(settings: Settings) -> dict[str, Param]:
    """Which version goes to which nodes. Raises: BadFile: the inventory is malformed."""
    return {
        "versions": Param(
            [],
            type="array",
            items={"type": "string", "pattern": _REFERENCE},
            title="Versions",
            description="NAME@TAG or NAME@ID, one per line. None: what the hot policy (infra/hot.toml) names.",
        ),
        "shards": Param(
            "all",
            type="string",
            pattern=r"^(all|hot|[0-9]+/[0-9]+)$",
            title="Shards",
            description="all, hot (what the policy's byte budget holds), or i/n: the i-th of n parts, from 1.",
        ),
        **as_read_by(settings, node_params(inventory.load(settings.inventory))),
        "copies": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            maximum=_MOST_NODES,
            title="Copies",
            description="On how many of the nodes each shard lies (rendezvous hashing). Empty: on each of them.",
        ),
    }


def scrub_params(settings: Settings) -> dict[str, Param]:
    """What is read again, and how fast. Raises: BadFile: the inventory is malformed."""
    return {
        "datasets": _datasets(),
        "sample_percent": Param(
            10.0,
            type="number",
            exclusiveMinimum=0,
            maximum=100,
            title="Sample in percent",
            description="How many of the shards are read, drawn anew each time; 100 reads every byte.",
        ),
        "rate_mb_per_s": Param(
            200.0,
            type=["null", "number"],
            exclusiveMinimum=0,
            title="Rate in MB/s",
            description="What each task reads at most. Empty: as fast as it can.",
        ),
        "sha256": Param(
            False, type="boolean", title="sha256", description="Compare the identity too, not only the fast hash."
        ),
        "caches": Param(True, type="boolean", title="Caches", description="Scrub the caches of the nodes below, too."),
        **as_read_by(settings, node_params(inventory.load(settings.inventory))),
    }


def gc_params(is_scheduled: bool) -> dict[str, Param]:
    """What may go. By hand a dry run comes first; where it is scheduled, somebody has decided."""
    return {
        "datasets": _datasets(),
        "grace_days": Param(
            7.0,
            type="number",
            minimum=1,
            maximum=3650,
            title="Grace in days",
            description="What is unreferenced for less than this stays.",
        ),
        "dry_run": Param(
            not is_scheduled,
            type="boolean",
            title="Dry run",
            description="Only print in the log what would be deleted.",
        ),
    }


def _datasets() -> Param:
    return Param(
        [],
        type="array",
        items={"type": "string", "pattern": _NAME},
        title="Datasets",
        description="One per line. None: all of them.",
    )
