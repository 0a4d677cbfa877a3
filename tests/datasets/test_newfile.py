"""A new file: unseen until it is whole, hashed right however its bytes come, gone if it is not linked."""

import hashlib
import io
import os
import random
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import settings as how_hard
from hypothesis import strategies as st

from pipelines.datasets.manifest import BLOCK_BYTES, digest
from pipelines.datasets.newfile import Compressed, new_file
from pipelines.errors import StoreRefused
from tests import processes
from tests.node.conftest import Mount, mount

__all__ = ["mount"]  # a fixture

MIB = 2**20
DATA = random.Random(1).randbytes(20 * MIB)


@given(
    steps=st.lists(
        st.tuples(
            st.booleans(), st.one_of(st.integers(0, 5000), st.sampled_from([MIB - 1, MIB, MIB + 1, 4096, 3 * MIB]))
        ),
        max_size=6,
    )
)
@how_hard(max_examples=60, deadline=None)
def test_bytes_that_come_in_any_portions_are_written_in_order_and_hashed(
    steps: list[tuple[bool, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    expected = bytearray()
    with new_file(tmp_path_factory.getbasetemp()) as file:
        for is_filled, length in steps:
            part = DATA[len(expected) : len(expected) + length]
            if is_filled:
                assert file.fill(length, io.BytesIO(part).readinto) == digest(part)
            else:
                assert file.write(part) == length
            expected += part
            assert file.size_bytes == len(expected)
        written = file.finish()
        assert Path(file.path).read_bytes() == expected
    assert written.sha256 == hashlib.sha256(expected).hexdigest()
    assert written.size_bytes == len(expected)
    assert written.xxh3 == "".join(
        digest(expected[at : at + BLOCK_BYTES]) for at in range(0, len(expected), BLOCK_BYTES)
    )


@pytest.mark.parametrize("length", [BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES])
def test_each_block_has_its_hash(tmp_path: Path, length: int) -> None:
    with new_file(tmp_path) as file:
        file.write(memoryview(DATA)[:length])
        written = file.finish()
    blocks = [DATA[at : min(at + BLOCK_BYTES, length)] for at in range(0, length, BLOCK_BYTES)]
    assert written.xxh3 == "".join(map(digest, blocks))


def test_nobody_sees_it_before_it_is_linked_and_it_is_gone_if_it_never_is(tmp_path: Path) -> None:
    with new_file(tmp_path) as file:
        file.write(b"data")
        file.finish()
        assert list(tmp_path.iterdir()) == []
        os.link(file.path, tmp_path / "seen", src_dir_fd=os.open("/", os.O_RDONLY), follow_symlinks=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"data"]
    with pytest.raises(EOFError), new_file(tmp_path) as file:
        file.fill(10, io.BytesIO(b"never").readinto)
    assert [path.name for path in tmp_path.iterdir()] == ["seen"]


def test_a_filesystem_without_direct_access_or_nameless_files_will_do(mount: Mount) -> None:
    folder = mount("memory", "size=64m")
    with new_file(folder) as file:
        file.write(DATA)
        written = file.finish()
        assert Path(file.path).read_bytes() == DATA
    assert written.sha256 == hashlib.sha256(DATA).hexdigest()
    assert list(folder.iterdir()) == []


def test_a_disk_that_fills_up_is_said_and_nothing_is_left(mount: Mount) -> None:
    folder = mount("full", "size=1m")
    with pytest.raises(StoreRefused, match=f"{folder}: No space left on device"), new_file(folder) as file:
        file.fill(len(DATA), io.BytesIO(DATA).readinto)
    assert list(folder.iterdir()) == []
    assert os.statvfs(folder).f_bfree == os.statvfs(folder).f_blocks


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="nowhere: No such file or directory"), new_file(tmp_path / "nowhere"):
        pass


def test_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    for moment_s in processes.moments(seed=5, count=5, span_s=0.2):
        assert processes.kill_after(moment_s, _write_for_ever, tmp_path)
    assert list(tmp_path.iterdir()) == []


def _write_for_ever(folder: Path) -> None:
    while True:
        with new_file(folder) as file:
            file.write(DATA)
            file.finish()


@given(portions=st.lists(st.integers(0, 200_000), max_size=8))
@how_hard(max_examples=30, deadline=None)
def test_what_is_compressed_depends_on_the_bytes_alone_and_unpacks_to_them(
    portions: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    total, stored = sum(portions), []
    for lengths in (portions, [total]):
        with new_file(tmp_path_factory.getbasetemp()) as file:
            sink, at = Compressed(file, 3), 0
            for number, length in enumerate(lengths):
                part = DATA[at : at + length]
                if number % 2:
                    sink.write(part)
                else:
                    assert sink.fill(length, io.BytesIO(part).readinto) == digest(part)
                at += length
            sink.finish()
            file.finish()
            stored.append(Path(file.path).read_bytes())
    assert stored[0] == stored[1]
    assert zstandard.ZstdDecompressor().decompressobj().decompress(stored[0]) == DATA[:total]
