"""Shards of format tar: byte for byte what Python's tarfile would write, and what any tar reads."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import settings as how_hard
from hypothesis import strategies as st

from pipelines.datasets.formats import tar
from pipelines.datasets.manifest import Entry, digest
from pipelines.datasets.newfile import Compressed, new_file
from pipelines.datasets.source import Piece, SourceFile
from tests.datasets.trees import Tree


def _is_utf_8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


segments = st.text(min_size=1, max_size=130).filter(lambda s: "/" not in s and "\0" not in s and s not in {".", ".."})
paths = st.lists(segments, min_size=1, max_size=4).map("/".join).filter(_is_utf_8)
trees = st.dictionaries(paths, st.binary(max_size=1500), min_size=1, max_size=12)


@given(path=paths, size_bytes=st.integers(0, 2**45))
@example(path="n" * 100, size_bytes=0)
@example(path="n" * 101, size_bytes=0)
@example(path="é" * 50, size_bytes=0)
@example(path=f"{'d' * 155}/{'n' * 100}", size_bytes=0)
@example(path="large", size_bytes=8**11 - 1)
@example(path="large", size_bytes=8**11)
def test_a_header_is_what_tarfile_makes_for_any_name_and_size(path: str, size_bytes: int) -> None:
    info = tarfile.TarInfo(path)
    info.size = size_bytes
    assert tar.header(path, size_bytes) == info.tobuf(tarfile.PAX_FORMAT)


@given(files=trees)
@how_hard(max_examples=60, deadline=None)
@pytest.mark.parametrize("level", [None, 1], ids=["plain", "zstd"])
def test_what_is_packed_is_what_tarfile_reads_and_lies_where_the_index_says(
    files: Tree, level: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data, entries = packed(files, level, tmp_path_factory.getbasetemp())
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
        read = {member.name: archive.extractfile(member) for member in members}
        assert {path: content.read() if content else None for path, content in read.items()} == files
    assert len(members) == len(files)
    assert [(entry.path, entry.offset) for entry in entries] == [(m.name, m.offset_data) for m in members]
    for entry in entries:
        content = data[entry.offset : entry.offset + entry.length]
        assert (content, entry.xxh3, entry.at) == (files[entry.path], digest(content), 0)
    assert data.endswith(bytes(1024))
    assert len(data) == 1024 + sum(unit.weight for unit in tar.units(_listed(files)))


def packed(files: Tree, level: int | None, folder: Path) -> tuple[bytes, list[Entry]]:
    """The archive, unpacked if it was compressed, and its index."""
    import zstandard

    with new_file(folder) as file:
        sink = Compressed(file, level) if level else file
        reading = ((Piece(each, 0, each.size_bytes), io.BytesIO(files[each.path]).readinto) for each in _listed(files))
        entries = list(tar.pack(reading, sink))
        if isinstance(sink, Compressed):
            sink.finish()
        file.finish()
        data = Path(file.path).read_bytes()
    return zstandard.ZstdDecompressor().decompressobj().decompress(data) if level else data, entries


def _listed(files: Tree) -> list[SourceFile]:
    return [SourceFile(path, len(content), "1") for path, content in files.items()]


def test_gnu_tar_extracts_it(tmp_path: Path) -> None:
    files = {"a.txt": b"one", f"{'d' * 90}/{'n' * 90}.bin": b"two" * 500, "ünïcode/数据": b"", "sp ace": b"3"}
    data, _ = packed(files, None, tmp_path)
    (tmp_path / "out").mkdir()
    done = subprocess.run(("tar", "-xv", "-C", tmp_path / "out"), input=data, capture_output=True, check=True)
    assert (len(done.stdout.splitlines()), done.stderr) == (4, b"")
    found = {str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {path: file.read_bytes() for path, file in found.items()} == files
    assert {file.stat().st_mode & 0o777 for file in found.values()} == {0o644}


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a/b.seg.png", "a/b"),
        ("a.b/c.jpg", "a.b/c"),
        ("noext", "noext"),
        ("a/.hidden", "a/"),
        ("x.tar.gz", "x"),
        ("a/b", "a/b"),
    ],
)
def test_the_key_of_a_sample_is_webdatasets(path: str, key: str) -> None:
    from webdataset.tariterators import base_plus_ext

    assert tar.sample_key(path) == key
    base, _ = base_plus_ext(path)
    assert base in {key, None}, "webdataset leaves out what it has no extension or no key for"


def test_a_source_that_ends_too_early_is_an_error(tmp_path: Path) -> None:
    with new_file(tmp_path) as file, pytest.raises(EOFError):
        list(tar.pack([(Piece(SourceFile("a", 5, "1"), 0, 5), io.BytesIO(b"four").readinto)], file))
