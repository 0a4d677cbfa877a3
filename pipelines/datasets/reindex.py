"""The index of a tar shard, made again from the shard. Of the other formats a shard does not say all that is in it."""

import io
import tarfile
from typing import IO

import xxhash
import zstandard

from pipelines.bulk import Bulk
from pipelines.datasets import manifest
from pipelines.datasets.manifest import Entry, Packing, Shard

_BUFFER_BYTES = 2**20
_NOTHING = memoryview(b"")


def index_again(large: Bulk, key: str, shard: Shard, packing: Packing) -> bytes | None:
    """The index object of the shard that is stored at `key`, if what lies in it gives the very one that is wanted."""
    if packing.format != "tar":
        return None
    raw: IO[bytes] = io.BufferedReader(_Reader(large, key, shard))
    if packing.zstd_level is not None:
        raw = zstandard.ZstdDecompressor().stream_reader(raw)
    try:
        sha256, made = manifest.write_index(_entries(raw))
    except (tarfile.TarError, zstandard.ZstdError):
        return None
    return made if sha256 == shard.index else None


class _Reader(io.RawIOBase):
    """A stored shard from its beginning to its end, in requests of a block."""

    def __init__(self, large: Bulk, key: str, shard: Shard) -> None:
        self._blocks = (large.range(key, start, length) or _NOTHING for start, length, _ in shard.blocks)
        self._left = _NOTHING

    def readable(self) -> bool:
        return True

    def readinto(self, space: memoryview) -> int:  # type: ignore[override]
        if not self._left:
            self._left = next(self._blocks, _NOTHING)
        count = min(len(space), len(self._left))
        space[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def _entries(raw: IO[bytes]) -> list[Entry]:
    """What lies where in a tar archive."""
    found = []
    with tarfile.open(fileobj=raw, mode="r|") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None:
                raise tarfile.TarError(f"{member.name} is no file")
            digest = xxhash.xxh3_64()
            while data := content.read(_BUFFER_BYTES):
                digest.update(data)
            entry = Entry(path=member.name, offset=member.offset_data, length=member.size, xxh3=digest.hexdigest())
            found.append(entry)
    return found
