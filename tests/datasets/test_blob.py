"""Shards of format blob: files cut in ranges, put together again bit for bit."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as how_hard
from hypothesis import strategies as st

from pipelines.datasets import packing
from pipelines.datasets.formats import blob
from pipelines.datasets.manifest import Packing, digest
from pipelines.datasets.newfile import new_file
from pipelines.datasets.source import Piece, SourceFile

SHARD_BYTES = 2**16
sizes = st.one_of(
    st.integers(0, 100), st.sampled_from([SHARD_BYTES - 1, SHARD_BYTES, SHARD_BYTES + 1]), st.integers(0, 300_000)
)


def content(path: str, size_bytes: int) -> bytes:
    """Bytes that differ from file to file and from place to place."""
    return (path.encode() + bytes(range(251))) * (size_bytes // 251 + 1)


@given(sizes=st.dictionaries(st.text("abc./", min_size=1, max_size=6), sizes, min_size=1, max_size=8))
@how_hard(max_examples=40, deadline=None)
def test_files_put_together_by_their_indexes_are_the_files_that_were_cut(
    sizes: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = {path: content(path, size)[:size] for path, size in sizes.items()}
    listed = [SourceFile(path, size, "1") for path, size in sizes.items()]
    rebuilt = {path: bytearray() for path in files}
    how = Packing(format="blob", shard_bytes=SHARD_BYTES)
    with packing.pack(blob.units(listed, SHARD_BYTES), (), how) as groups:
        for group in groups:
            with new_file(tmp_path_factory.getbasetemp()) as file:
                entries = list(blob.pack(((piece, _reader(files, piece)) for piece in group), file))
                assert file.finish().size_bytes >= 1
                data = Path(file.path).read_bytes()
            assert len(data) == max(1, sum(entry.length for entry in entries))
            for entry in entries:
                part = data[entry.offset : entry.offset + entry.length]
                assert entry.xxh3 == digest(part)
                assert entry.at == len(rebuilt[entry.path]), "a group has the parts of a file in their order"
                rebuilt[entry.path] += part
    assert rebuilt == files


def _reader(files: dict[str, bytes], piece: Piece):
    return io.BytesIO(files[piece.file.path][piece.start : piece.start + piece.length]).readinto


def test_a_file_is_cut_at_multiples_of_the_shards_size() -> None:
    files = [
        SourceFile("large", 2 * SHARD_BYTES + 1, "1"),
        SourceFile("exact", SHARD_BYTES, "1"),
        SourceFile("empty", 0, "1"),
    ]
    assert [(unit.piece.file.path, unit.piece.start, unit.piece.length) for unit in blob.units(files, SHARD_BYTES)] == [
        ("large", 0, SHARD_BYTES),
        ("large", SHARD_BYTES, SHARD_BYTES),
        ("large", 2 * SHARD_BYTES, 1),
        ("exact", 0, SHARD_BYTES),
        ("empty", 0, 0),
    ]
