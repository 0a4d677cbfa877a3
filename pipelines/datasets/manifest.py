"""The manifest of a version and the index of a shard: records, their canonical form, their ids. Pure.

A version is a manifest: parameters and shards. Its id is the hash of that body alone, so that the same content packed
the same way is the same version on any machine; who published it when, from where, stands beside the body.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

import xxhash
import zstandard
from pydantic import (
    AwareDatetime,
    Field,
    ModelWrapValidatorHandler,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    computed_field,
    model_validator,
)

from pipelines import keys
from pipelines.datasets.names import ID_DIGITS
from pipelines.errors import CorruptObject
from pipelines.records import Name, Record

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
VersionId = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{ID_DIGITS}}}$")]
Format = Literal["tar", "parquet", "blob"]

BLOCK_BYTES = 8 * 2**20
"""A shard is checked, fetched and resumed in blocks of this size; the last one is shorter."""

BLOCK_DIGITS = 16  # hex digits of xxh3_64
_MAX_INDEX_BYTES = 2**28  # 1 million files of 100-character names are half of it: more is no index of ours


class Packing(Record):
    """The parameters that decide what bytes a source becomes."""

    format: Format
    shard_bytes: Annotated[int, Field(ge=2**16, le=2**36)]  # aimed at, before compression
    zstd_level: Annotated[int, Field(ge=1, le=19)] | None = None  # None: as it is


class Shard(Record):
    """One object of a version."""

    sha256: Sha256  # of the stored bytes: its name
    size_bytes: PositiveInt
    xxh3: Annotated[str, Field(pattern=r"^([0-9a-f]{16})+$")]  # of each block in turn, for a fast check
    index: Sha256
    files: PositiveInt  # entries of its index
    samples: NonNegativeInt  # tar: samples; parquet: rows; blob: entries
    content_bytes: NonNegativeInt  # of the files in it, before headers and compression

    @model_validator(mode="after")
    def _has_a_digest_for_each_block(self) -> Self:
        blocks = -(-self.size_bytes // BLOCK_BYTES)
        if len(self.xxh3) != blocks * BLOCK_DIGITS:
            raise ValueError(f"{self.size_bytes} B are {blocks} blocks, xxh3 is of {len(self.xxh3) / BLOCK_DIGITS:g}")
        return self

    @property
    def blocks(self) -> Iterator[tuple[int, int, str]]:
        """Start, length and xxh3 of each block."""
        for number, start in enumerate(range(0, self.size_bytes, BLOCK_BYTES)):
            digest = self.xxh3[number * BLOCK_DIGITS : (number + 1) * BLOCK_DIGITS]
            yield start, min(BLOCK_BYTES, self.size_bytes - start), digest


class Body(Record):
    """What a version is. Its canonical JSON decides the version's id."""

    schema_version: Literal[1] = 1
    dataset: Name
    packing: Packing
    shards: tuple[Shard, ...] = Field(min_length=1)

    @property
    def version(self) -> str:
        return keys.content_id(self.model_dump(mode="json"), ID_DIGITS)


class Provenance(Record):
    """How a version came to be. Not part of its identity."""

    source: str  # URL
    listing: Sha256  # of every source file's name, size and etag
    packed: tuple[str, ...]  # for each shard the group of source files it was made from, see publications.Packed
    parent: VersionId | None  # the version whose packing it kept
    code_version: str
    environment_id: str
    hostname: str
    published_at: AwareDatetime
    note: str = ""


class Manifest(Record):
    """What is stored of a version: each part of it is covered by one of two hashes."""

    version: VersionId
    body: Body
    provenance: Provenance

    @computed_field  # type: ignore[prop-decorator]
    @property
    def provenance_sha256(self) -> str:
        return keys.content_id(self.provenance.model_dump(mode="json"), 64)

    @model_validator(mode="wrap")
    @classmethod
    def _has_the_provenance_it_was_stored_with(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(given, dict) or "provenance_sha256" not in given:
            return handler(given)
        made = handler({name: value for name, value in given.items() if name != "provenance_sha256"})
        if made.provenance_sha256 != given["provenance_sha256"]:
            raise ValueError(f"its provenance has the sha256 {made.provenance_sha256}, another one is noted")
        return made

    @model_validator(mode="after")
    def _is_named_by_its_body(self) -> Self:
        if self.version != self.body.version:
            raise ValueError(f"its body has the id {self.body.version}, not {self.version}")
        if len(self.provenance.packed) != len(self.body.shards):
            raise ValueError("it does not say of each shard what it was packed from")
        return self

    @property
    def dataset(self) -> str:
        return self.body.dataset

    @property
    def reference(self) -> str:
        return f"{self.dataset}@{self.version}"

    @property
    def files(self) -> int:
        """Entries of all indexes. A file of format blob has one in each shard it lies in."""
        return sum(shard.files for shard in self.body.shards)

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.body.shards)

    @property
    def content_bytes(self) -> int:
        return sum(shard.content_bytes for shard in self.body.shards)

    @property
    def stored_bytes(self) -> int:
        """Of its distinct shards: equal ones are stored once."""
        return sum({shard.sha256: shard.size_bytes for shard in self.body.shards}.values())


class Entry(Record):
    """A file, or a part of one, in a shard. Offsets count before compression.

    In a Parquet shard `offset` and `length` count rows, and there is no digest.
    """

    path: str  # relative to the source, with `/`
    at: NonNegativeInt = 0  # where in the file this part begins
    offset: NonNegativeInt
    length: NonNegativeInt
    xxh3: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None


Index = tuple[Entry, ...]
"""What lies where in a shard, in its order."""


def digest(data: bytes | memoryview) -> str:
    """xxh3_64 in hex."""
    return xxhash.xxh3_64_hexdigest(data)


def write_index(index: Sequence[Entry]) -> tuple[str, bytes]:
    """The sha256 of the index's canonical form, and the object to store."""
    columns = {
        "paths": [entry.path for entry in index],
        "at": [entry.at for entry in index],
        "offsets": [entry.offset for entry in index],
        "lengths": [entry.length for entry in index],
        "xxh3": [entry.xxh3 for entry in index],
    }
    text = json.dumps(columns, separators=(",", ":"), ensure_ascii=False).encode()
    return keys.sha256(text), zstandard.compress(text, 3)


def read_index(data: bytes, sha256: str, url: str) -> Index:
    """The index in the object at `url`, verified.

    Raises:
        CorruptObject: it is not what was stored under that name, or names a path that leads out of a folder.
    """
    try:
        if zstandard.frame_content_size(data) > _MAX_INDEX_BYTES:  # which would be believed, and allocated
            raise CorruptObject(url, f"it says that it unpacks to more than {_MAX_INDEX_BYTES} B")
        text = zstandard.ZstdDecompressor().decompress(data, max_output_size=_MAX_INDEX_BYTES)
    except zstandard.ZstdError as e:
        raise CorruptObject(url, str(e)) from e
    if (got := keys.sha256(text)) != sha256:
        raise CorruptObject(url, f"expected sha256 {sha256}, got {got}")
    try:
        columns = json.loads(text)
        rows = zip(*(columns[name] for name in ("paths", "at", "offsets", "lengths", "xxh3")), strict=True)
        return tuple(
            Entry(path=checked_path(path), at=at, offset=offset, length=length, xxh3=xxh3)
            for path, at, offset, length, xxh3 in rows
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise CorruptObject(url, f"it is not the index of a shard: {e}") from e


def read_manifest(data: bytes, url: str) -> Manifest:
    """The manifest in the object at `url`; its id is that of its body.

    Raises:
        CorruptObject: it is not, or this is no manifest.
    """
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise CorruptObject(url, f"{where}: {first['msg'].removeprefix('Value error, ')}") from e


def read_version(data: bytes, url: str, dataset: str, version: str) -> Manifest:
    """The same, if it is the manifest of this version. Raises: CorruptObject: it is not."""
    found = read_manifest(data, url)
    if (found.dataset, found.version) != (dataset, version):
        raise CorruptObject(url, f"it is the manifest of {found.reference}")
    return found


def checked_path(path: str) -> str:
    """`path` itself, if it is relative and stays below the folder it is put in.

    Raises:
        ValueError: it is absolute, empty, has `.`, `..` or an empty segment, or a character that no file's name has.
    """
    if any(part in {"", ".", ".."} for part in path.split("/")) or "\0" in path:
        raise ValueError(f"path {path!r} does not stay below its folder")
    path.encode()  # half of a surrogate pair, which JSON can say, is no character: a ValueError
    return path
