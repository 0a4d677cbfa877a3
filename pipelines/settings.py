"""Where things are: read once, at the edge, from FLEETMARK_* environment variables into one typed record."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from pipelines import busy
from pipelines.errors import BadSettings, WrongNode
from pipelines.records import Name, Record

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
    node: Name | None = Field(
        default=None,
        description="this machine's name in the inventory, and only that node's work runs here; unset: localhost, "
        "and any node's work does",
    )
    node_executor: str = Field(
        default="", description="the Airflow executor of tasks on nodes, e.g. edge; empty: they run on this machine"
    )
    lease_dir: Path = Field(default=Path("/run/lock"), description="where the node's lease file lies")
    lease_wait_s: float = Field(default=1800.0, ge=0, description="how long to wait for the lease")
    busy: str = Field(
        default="none",
        description="how this machine sees that real work runs on it: none, lock-file PATH, flock PATH, slurm [NODE], "
        "kubernetes [NODE], or command ARGV... (exit status 0: free)",
    )
    telemetry_s: float = Field(
        default=1.0, ge=0, description="how often power, clocks and temperatures are read beside a tool; 0: never"
    )
    store_retry_s: float = Field(default=60.0, ge=0, description="how long to retry an unreachable store")
    spool_bytes: int = Field(
        default=2**30, ge=0, description="what the node may keep for a store that is away, in bytes"
    )
    spool_wait_s: float = Field(
        default=600.0, ge=0, description="how long a node's task waits at its end for a store that is away"
    )
    approval_wait_s: float = Field(
        default=14400.0, gt=0, description="how long a run waits for somebody to approve its jobs on raw devices"
    )
    dags: Path = Field(default=Path("dags"), description="folder of the DAG files, for the embedded Airflow")
    nightly: str = Field(default="0 2 * * *", description="when fleet_benchmark runs, cron in UTC; empty: never")
    weekly: str = Field(default="0 5 * * 0", description="when results_maintenance runs, cron in UTC; empty: never")
    scrub: str = Field(default="0 6 * * 6", description="when dataset_scrub runs, cron in UTC; empty: never")
    gc: str = Field(default="", description="when dataset_gc runs, cron in UTC; empty: by hand only")
    hot: Path = Field(default=Path("infra/hot.toml"), description="the policy of which shards are hot")

    @field_validator("busy")
    @classmethod
    def _busy_can_be_asked(cls, text: str) -> str:
        busy.parsed(text)
        return text

    @property
    def node_name(self) -> str:
        """What this machine is called where nobody gave it a name."""
        return self.node or "localhost"

    def require_node(self, name: str) -> None:
        """Work for this node may be done here. Where the machine was given no name it may always.

        Raises:
            WrongNode: this machine is another one.
        """
        if self.node is not None and self.node != name:
            raise WrongNode(name, self.node)

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
        problem = (
            f"there is no such setting; known: {known}"
            if first["type"] == "extra_forbidden"
            else first["msg"].removeprefix("Value error, ")
        )
        raise BadSettings(variable, problem) from e
    paths = {name: base / _home_of(name, given) for name in _PATHS if (given := getattr(settings, name))}
    return settings.model_copy(update=paths)


def _home_of(name: str, given: Path) -> Path:
    try:
        return given.expanduser()
    except RuntimeError as e:
        raise BadSettings(PREFIX + name.upper(), f"{given}: there is no such user, or he has no home") from e
