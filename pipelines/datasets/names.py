"""What a dataset's objects are called in the store, and how a person names a version. Pure."""

import re

from pydantic import TypeAdapter, ValidationError

from pipelines import keys
from pipelines.errors import BadReference
from pipelines.records import Name, Record

LATEST = "latest"
ID_DIGITS = 32
_SHORTEST_PREFIX = 6  # hex digits of a version's id that a person may type instead of all of them
_ROOT = "datasets"
_NAME = TypeAdapter[str](Name)
_ID_PREFIX = re.compile(rf"^[0-9a-f]{{{_SHORTEST_PREFIX},{ID_DIGITS}}}\Z")


class Reference(Record):
    """`NAME` or `NAME@WHICH`: a dataset, and a tag or the first digits of a version's id."""

    dataset: Name
    which: Name = LATEST

    def __str__(self) -> str:
        return f"{self.dataset}@{self.which}"

    @property
    def may_be_id(self) -> bool:
        return _ID_PREFIX.match(self.which) is not None


def parse(text: str) -> Reference:
    """`NAME[@TAG|@ID]` as a reference; without `@` it is the tag `latest`.

    Raises:
        BadReference: a name that could not be a path segment, or nothing after the `@`.
    """
    dataset, at, which = text.partition("@")
    return Reference(dataset=checked("dataset", dataset), which=checked("tag or version", which) if at else LATEST)


def checked(what: str, name: str) -> str:
    """`name`, if it can be one of a dataset or a tag. Raises: BadReference."""
    try:
        return _NAME.validate_python(name)
    except ValidationError as e:
        problem = f"a {what} has 1 to 63 letters, digits, '.', '_' or '-' and begins with a letter or digit"
        raise BadReference(name, problem) from e


def prefix(dataset: str) -> str:
    return keys.checked(f"{_ROOT}/{dataset}")


def root() -> str:
    """The folder that has a folder for each dataset."""
    return _ROOT


def shards_prefix(dataset: str) -> str:
    return f"{prefix(dataset)}/shards"


def shard_key(dataset: str, sha256: str) -> str:
    """A shard, named by the sha256 of its bytes."""
    return keys.checked(f"{shards_prefix(dataset)}/{sha256}")


def indexes_prefix(dataset: str) -> str:
    return f"{prefix(dataset)}/indexes"


def index_key(dataset: str, sha256: str) -> str:
    """What lies where in a shard, named by the sha256 of the index before compression."""
    return keys.checked(f"{indexes_prefix(dataset)}/{sha256}.json.zst")


def versions_prefix(dataset: str) -> str:
    return f"{prefix(dataset)}/versions"


def version_key(dataset: str, version: str) -> str:
    """A manifest. A version is published when this object is there."""
    return keys.checked(f"{versions_prefix(dataset)}/{version}.json")


def removed_prefix(dataset: str) -> str:
    return f"{prefix(dataset)}/removed"


def removed_key(dataset: str, version: str) -> str:
    """The manifest of a version that was removed; its shards stay until the collector's grace is over."""
    return keys.checked(f"{removed_prefix(dataset)}/{version}.json")


def tags_prefix(dataset: str) -> str:
    return f"{prefix(dataset)}/tags"


def tag_prefix(dataset: str, tag: str) -> str:
    return keys.checked(f"{tags_prefix(dataset)}/{tag}")


def tag_key(dataset: str, tag: str, number: int) -> str:
    """The n-th place a tag was moved to, from 1; the last one counts."""
    return f"{tag_prefix(dataset, tag)}/{number:09d}.json"


def packed_prefix(dataset: str) -> str:
    return f"{prefix(dataset)}/packed"


def packed_key(dataset: str, group: str) -> str:
    """Which shards a group of source files, as they then were, became."""
    return keys.checked(f"{packed_prefix(dataset)}/{group}.json.zst")


def publishing_prefix(dataset: str) -> str:
    return f"{prefix(dataset)}/publishing"


def publication_key(dataset: str, publication: str, name: str) -> str:
    """An object of a publication under way."""
    return keys.checked(f"{publishing_prefix(dataset)}/{publication}/{name}")


def publishers_prefix(dataset: str) -> str:
    """Where publications say that they are at work, an empty object for each."""
    return f"{prefix(dataset)}/publishers"


def publisher_key(dataset: str, publication: str) -> str:
    return keys.checked(f"{publishers_prefix(dataset)}/{publication}")


def collecting_prefix(dataset: str) -> str:
    """Where a collector says that it is at work."""
    return f"{prefix(dataset)}/collecting"


def quarantined_prefix(dataset: str) -> str:
    return f"{prefix(dataset)}/quarantined"


def quarantined_key(dataset: str, sha256: str, scrub: str) -> str:
    """Where a scrub puts the bytes of a damaged shard away."""
    return keys.checked(f"{quarantined_prefix(dataset)}/{sha256}.{scrub}")


def staging_prefix(staging: str) -> str:
    """What a staging did, an object for each node. The id begins with the time, as a run's."""
    return keys.checked(f"staged/{keys.run_date(staging)}/{staging}")


def staging_of_run(run: str, attempt: int) -> str:
    """The id of the staging with which an attempt at the jobs of a run begins."""
    return f"{run}.{attempt}"


def staging_key(staging: str, node: str) -> str:
    return keys.checked(f"{staging_prefix(staging)}/{node}.json")


def scrub_prefix(scrub: str) -> str:
    """What a scrub found, an object for each place."""
    return keys.checked(f"scrubbed/{keys.run_date(scrub)}/{scrub}")


def scrub_key(scrub: str, place: str) -> str:
    return keys.checked(f"{scrub_prefix(scrub)}/{place}.json")


def staging_plan_key(staging: str) -> str:
    """What a staging over nodes is to do."""
    return keys.checked(f"stagings/{staging}.json")
