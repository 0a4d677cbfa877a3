"""Where things are: read once, at the edge, from FLEETMARK_* environment variables into one typed record."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from pipelines.errors import BadSettings
from pipelines.records import Record

PREFIX = "FLEETMARK_"
SCHEDULES = ("nightly", "weekly", "scrub", "gc")
"""The settings that say when a DAG runs."""
_PATHS = ("home", "inventory", "suites", "lease_dir", "dags", "cache", "hot")


class Settings(Record):
    """Every setting of a deployment. Embedded mode and a fleet differ in these values and in nothing else.

    S3 credentials and region are the AWS SDKs' own variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION),
    so that no secret passes through a record.
    """

    home: Path = Field(default=Path(".fleetmark"), description="state of this machine: scratch, Airflow, local store")
    store: str = Field(default="", description="object store URL; default file://<home>/store")
    s3_endpoint: str | None = Field(default=None, description="endpoint URL of an S3 server other than AWS")
    source_s3_endpoint: str | None = Field(
        default=None, description="endpoint URL of the S3 server that datasets are published from; default: the store's"
    )
    cache: Path | None = Field(default=None, description="this node's cache of shards; default <home>/cache")
    cache_bytes: int = Field(default=256 * 2**30, ge=0, description="what the cache may hold, in bytes")
    cache_floor_bytes: int = Field(default=8 * 2**30, ge=0, description="what it must leave free on its disk, in bytes")
    inventory: Path = Field(default=Path("infra/fleet.toml"), description="the inventory")
    suites: Path = Field(default=Path("infra/suites"), description="folder of suites")
    node: str = Field(default="localhost", description="this machine's name in the inventory")
    lease_dir: Path = Field(default=Path("/run/lock"), description="where the node's lease file lies")
    lease_wait_s: float = Field(default=1800.0, ge=0, description="how long to wait for the lease")
    store_retry_s: float = Field(default=60.0, ge=0, description="how long to retry an unreachable store")
    dags: Path = Field(default=Path("dags"), description="folder of the DAG files, for the embedded Airflow")
    nightly: str = Field(default="0 2 * * *", description="when fleet_benchmark runs, cron in UTC; empty: never")
    weekly: str = Field(default="0 5 * * 0", description="when results_maintenance runs, cron in UTC; empty: never")
    scrub: str = Field(default="0 6 * * 6", description="when dataset_scrub runs, cron in UTC; empty: never")
    gc: str = Field(default="", description="when dataset_gc runs, cron in UTC; empty: by hand only")
    hot: Path = Field(default=Path("infra/hot.toml"), description="the policy of which shards are hot")

    @property
    def store_url(self) -> str:
        return self.store or f"file://{self.home / 'store'}"

    @property
    def cache_root(self) -> Path:
        return self.cache or self.home / "cache"

    @property
    def source_endpoint(self) -> str | None:
        return self.source_s3_endpoint or self.s3_endpoint


def load(environ: Mapping[str, str] = os.environ, cwd: Path | None = None) -> Settings:
    """The settings of this process; relative paths are resolved against `cwd`.

    Raises:
        BadSettings: a value that does not fit, or a FLEETMARK_ variable that is not a setting (most likely a typo).
    """
    base = cwd or Path.cwd()
    given = {key.removeprefix(PREFIX).lower(): value for key, value in environ.items() if key.startswith(PREFIX)}
    try:
        settings = Settings.model_validate(given)
    except ValidationError as e:
        first = e.errors()[0]
        variable = PREFIX + str(first["loc"][0]).upper()
        known = ", ".join(PREFIX + name.upper() for name in Settings.model_fields)
        problem = f"there is no such setting; known: {known}" if first["type"] == "extra_forbidden" else first["msg"]
        raise BadSettings(variable, problem) from e
    paths = {name: base / given.expanduser() for name in _PATHS if (given := getattr(settings, name))}
    return settings.model_copy(update=paths)
