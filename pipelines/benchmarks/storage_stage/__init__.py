"""storage_stage: how fast a dataset comes from the object store to the node's NVMe, verified."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from pipelines import histograms
from pipelines.benchmark import Command, Cost, Metric, Workplace
from pipelines.families import probe_tool, scratch
from pipelines.families.probe_tool import Count, Seconds
from pipelines.records import DatasetName, Labels, Measurement, Outcome, Parsed, RawOutput, Record

MIB, GIB = 2**20, 2**30
_SLOW_STORE_BYTES_PER_S = 100_000_000  # what planning assumes: less than 1 Gbit/s
_STARTING_S = 5.0
_CACHE_BYTES = MIB  # notes and folders beside the shards
_PERCENTILES = {"p50": 50.0, "p99": 99.0}
_REASON_LENGTH = 300


class Params(Record):
    dataset: DatasetName = Field(
        default="benchmark", description="a published dataset, NAME or NAME@TAG; its first shards are taken"
    )
    most_bytes: Annotated[int, Field(ge=MIB, le=1024 * GIB)] = Field(
        default=4 * GIB, description="bytes that are staged at most: whole shards, as many as fit"
    )


class _Transfer(probe_tool.Printed):
    probe: str = ""
    arrival: Literal["fetched", "resumed", "present", "failed"]
    reason: str = ""
    size_bytes: Count
    fetched_bytes: Annotated[int, Field(ge=0, le=2**53)]
    duration_s: Annotated[float, Field(ge=0, le=1e7)]


class _Document(probe_tool.Printed):
    dataset: str
    store: str
    cache: Literal["dropped", "warm"] | None = None  # of a store that is a directory
    seconds: Seconds
    transfers: Annotated[tuple[_Transfer, ...], Field(min_length=1)]
    first_byte_s: Seconds | None = None


def case(params: Params) -> str:
    """`benchmark-4GiB`, `weights-at-prod-512MiB`: a dataset's name and tag have at most 63 characters each."""
    size = params.most_bytes
    named = f"{size // GIB}GiB" if size % GIB == 0 else f"{size // MIB}MiB" if size % MIB == 0 else f"{size}B"
    name, _, tag = params.dataset.partition("@")
    return f"{name[:24]}{f'-at-{tag[:16]}' if tag else ''}-{named}"


def cost(params: Params) -> Cost:
    seconds = _STARTING_S + params.most_bytes / _SLOW_STORE_BYTES_PER_S
    return Cost(seconds=seconds, written_bytes=params.most_bytes + _CACHE_BYTES)


def required(_: Params) -> frozenset[str]:
    return frozenset({"stage_bandwidth", "stage_time", "staged_bytes", "shard_time_p50", "shard_time_p99"})


def command(params: Params, _: Workplace) -> Command:
    options = (f"--dataset={params.dataset}", f"--most-bytes={params.most_bytes}")
    return Command(argv=(probe_tool.PROGRAM, "storage_stage", *options))


def parse(raw: RawOutput) -> Parsed:
    """Raises: UnknownOutput: the probe ended well and printed something else than its document."""
    found = probe_tool.read(raw, "storage_stage", _Document)
    if isinstance(found, Parsed):
        return found
    if failed := [each for each in found.transfers if each.arrival == "failed"]:
        reason = f"{len(failed)} of {len(found.transfers)} shards did not arrive: {failed[0].reason[:_REASON_LENGTH]}"
        return Parsed(outcome=Outcome.TOOL_FAILED, reason=reason)
    if any(each.fetched_bytes != each.size_bytes for each in found.transfers):
        return Parsed(outcome=Outcome.TOOL_FAILED, reason="not every byte was fetched: the cache was not empty")
    measurements = tuple(_measurements(found, scratch.labels(raw)))
    missing = required(Params()) - {each.metric for each in measurements}
    reason = f"the document gives no {', '.join(sorted(missing))}" if missing else ""
    outcome = Outcome.TRUNCATED if missing else Outcome.OK
    return Parsed(outcome=outcome, reason=reason, measurements=measurements)


def _measurements(document: _Document, where: Labels) -> Iterator[Measurement]:
    store = {"dataset": document.dataset, "store": document.store}
    labels = {**store, **where, **({"cache": document.cache} if document.cache else {})}
    total = sum(each.fetched_bytes for each in document.transfers)
    yield Measurement(metric="stage_bandwidth", value=total / document.seconds, unit="B/s", labels=labels)
    yield Measurement(metric="stage_time", value=document.seconds, unit="s", labels=labels)
    yield Measurement(metric="staged_bytes", value=total, unit="B", labels=labels)
    bins = histograms.merged({each.duration_s: 1} for each in document.transfers if each.duration_s)
    if bins:
        for name, value in zip(_PERCENTILES, histograms.percentiles(bins, tuple(_PERCENTILES.values())), strict=True):
            yield Measurement(metric=f"shard_time_{name}", value=value, unit="s", labels=labels)
    if document.first_byte_s is not None:
        yield Measurement(metric="first_byte_time", value=document.first_byte_s, unit="s", labels=store)


BENCHMARK = probe_tool.benchmark(
    name="storage_stage",
    title="From the object store to the node's NVMe",
    caveat="It is store, network, verification and disk together, as `fleetmark dataset stage` does it: the slowest "
    "of them decides. Whether the store's servers had the shards in memory cannot be known: repeats, and nodes that "
    "stage after others, may be faster than the first. One node by itself says nothing of many at once. Requests that "
    "were tried again are in the time and are not counted. The time to the first byte is measured after the staging, "
    "on open connections, and of bytes that were just read. Where the store is a directory (label store=file) it may "
    "lie on this node; its shards are put out of the node's memory before (label cache=dropped), and where they cannot "
    "be, cache=warm says that they may have come from there.",
    cadence="nightly",
    writes=True,
    source="https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html",
    params=Params,
    metrics=(
        Metric("stage_bandwidth", "B/s", "higher", 1e2, 1e12, "verified bytes per second that came to the cache"),
        Metric("stage_time", "s", "lower", 1e-6, 1e7, "from the first request to the last verified shard on the disk"),
        Metric("staged_bytes", "B", "neither", 1.0, 1e16, "bytes that were fetched"),
        Metric("shard_time_p50", "s", "lower", 1e-7, 1e7, "median seconds of a shard, from its first request on"),
        Metric("shard_time_p99", "s", "lower", 1e-7, 1e7, "99th percentile of that"),
        Metric("first_byte_time", "s", "lower", 1e-7, 1e4, "median seconds of a request for one byte"),
    ),
    case=case,
    cost=cost,
    required=required,
    command=command,
    parse=parse,
    passed=(
        "FLEETMARK_HOME",
        "FLEETMARK_STORE",
        "FLEETMARK_S3_ENDPOINT",
        "FLEETMARK_STORE_RETRY_S",
        "FLEETMARK_NODE",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_PROFILE",
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_EC2_METADATA_DISABLED",
        "AWS_CA_BUNDLE",
        "SSL_CERT_FILE",
        "HTTPS_PROXY",
        "NO_PROXY",
    ),
)
