"""Datasets: publishing, staging, the cache, reading."""

from dataclasses import dataclass
from typing import ClassVar

from pipelines.errors.error import FleetmarkError


@dataclass(eq=False)
class BadReference(FleetmarkError):
    text: str
    problem: str

    def __str__(self) -> str:
        return f"{self.text!r} names no dataset, tag or version: {self.problem}"


@dataclass(eq=False)
class SourceRefused(FleetmarkError):
    """A source, or a file of it, that cannot be published as it is."""

    url: str
    problem: str

    def __str__(self) -> str:
        return f"source {self.url}: {self.problem}"


@dataclass(eq=False)
class SourceChanged(FleetmarkError):
    """A source file is not what it was when the publication was planned; nothing is published."""

    url: str
    planned: str
    found: str

    def __str__(self) -> str:
        return (
            f"source file {self.url} changed while it was being published: planned {self.planned}, found {self.found}; "
            "publish again when nobody writes to it"
        )


@dataclass(eq=False)
class NotPacked(FleetmarkError):
    """A publication is to be committed and not all of it is packed."""

    retryable: ClassVar[bool] = True
    dataset: str
    publication: str
    missing: int
    chunks: int

    def __str__(self) -> str:
        return (
            f"publication {self.publication} of dataset {self.dataset}: {self.missing} of {self.chunks} chunks are not "
            "packed yet; the same publish again continues where it was"
        )


@dataclass(eq=False)
class TagMoved(FleetmarkError):
    """Somebody else moved a tag since it was looked at."""

    dataset: str
    tag: str
    expected: str
    found: str
    wanted: str

    def __str__(self) -> str:
        return (
            f"tag {self.dataset}@{self.tag} was moved meanwhile: expected it at {self.expected}, found it at "
            f"{self.found}; it stays there. To move it: fleetmark dataset tag {self.dataset}@{self.wanted} {self.tag}"
        )


@dataclass(eq=False)
class VersionInUse(FleetmarkError):
    dataset: str
    version: str
    tags: tuple[str, ...]

    def __str__(self) -> str:
        return f"version {self.dataset}@{self.version} is tagged {', '.join(self.tags)}; remove or move the tag first"


@dataclass(eq=False)
class DamagedShard(FleetmarkError):
    """Bytes of a shard are not what its manifest says, wherever they came from and however often they were fetched."""

    dataset: str
    shard: str
    url: str
    expected: str
    got: str

    def __str__(self) -> str:
        return (
            f"shard {self.shard[:12]} of dataset {self.dataset} is damaged: expected {self.expected}, got {self.got} "
            f"from {self.url}; nothing of it was kept. `fleetmark dataset scrub {self.dataset}` looks for a good copy"
        )


@dataclass(eq=False)
class CacheFull(FleetmarkError):
    path: str
    needed_bytes: int
    budget_bytes: int
    free_bytes: int
    floor_bytes: int
    kept_bytes: int  # by pins and by processes that read

    def __str__(self) -> str:
        return (
            f"cache {self.path}: {self.needed_bytes} B do not fit: budget {self.budget_bytes} B, of which "
            f"{self.kept_bytes} B are pinned or in use; {self.free_bytes} B are free on the disk and "
            f"{self.floor_bytes} B must stay free. Unpin or evict something, or raise FLEETMARK_CACHE_BYTES"
        )


@dataclass(eq=False)
class CacheUnusable(FleetmarkError):
    path: str
    problem: str

    def __str__(self) -> str:
        return f"cache {self.path} cannot be used: {self.problem}; see FLEETMARK_CACHE"


@dataclass(eq=False)
class AmbiguousSample(FleetmarkError):
    """Files of one sample that a sample's names cannot tell apart."""

    dataset: str
    path: str
    ending: str

    def __str__(self) -> str:
        return (
            f"dataset {self.dataset}: the sample of file {self.path!r} has the name {self.ending!r} twice; "
            "rename the file and publish again"
        )


@dataclass(eq=False)
class WrongState(FleetmarkError):
    """The state of a reader that is to go on in another one, which would read other samples."""

    what: str
    expected: str
    got: str

    def __str__(self) -> str:
        return (
            f"this reader cannot go on from that state: its {self.what} is {self.expected}, the state's {self.got}; "
            "open the reader as the one was that the state is of"
        )


@dataclass(eq=False)
class DownloadRefused(FleetmarkError):
    path: str
    problem: str

    def __str__(self) -> str:
        return f"download to {self.path}: {self.problem}"


@dataclass(eq=False)
class StillCollecting(FleetmarkError):
    """Publications and the collector of unreferenced shards keep out of each other's way."""

    retryable: ClassVar[bool] = True
    dataset: str
    who: str

    def __str__(self) -> str:
        return f"dataset {self.dataset}: {self.who} is at work; safe to try again when it is done"
