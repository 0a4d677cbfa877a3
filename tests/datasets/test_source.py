"""Sources: what is listed, what is read, and that no change of a file goes unnoticed; of every kind that there is."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipelines.datasets import source
from pipelines.datasets.source import Piece, Source, SourceFile, open_source
from pipelines.errors import FleetmarkError, SourceChanged, SourceRefused, StoreRefused
from pipelines.settings import Settings
from tests.conftest import on
from tests.datasets import web
from tests.datasets.trees import BLOB, TAR, extracted, published, request, tree, write
from tests.servers import S3

FILES = {
    "a.jpg": b"a" * 5000,
    "a.txt": b"",
    "b/c.jpg": b"c" * 70_000,
    "b/d/e.jpg": b"e",
    "b/d/f.txt": b"f",
}


class Place:
    """A folder of some kind: its URL, and how a file in it is written and deleted."""

    def __init__(self, url: str, put: Callable[[str, bytes], Any], delete: Callable[[str], Any]) -> None:
        self.url = url
        self.put = put
        self.delete = delete


@pytest.fixture(
    params=["directory", "memory", "http", *(pytest.param(s, marks=pytest.mark.integration) for s in ("moto", "ceph"))]
)
def place(
    request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Place]:
    """An empty place of each kind in turn."""
    folder = tmp_path / "source"
    folder.mkdir()

    def put(path: str, data: bytes) -> None:
        write(folder, {path: data})

    def delete(path: str) -> None:
        (folder / path).unlink()

    if request.param == "directory":
        yield Place(str(folder), put, delete)
    elif request.param == "memory":
        memory = fsspec.filesystem("memory")
        root = f"/{tmp_path.name}"
        yield Place(
            f"memory:/{root}",
            lambda path, data: memory.pipe_file(f"{root}/{path}", data),
            lambda path: memory.rm_file(f"{root}/{path}"),
        )
        for path in memory.find(root):
            memory.rm_file(path)
    elif request.param == "http":
        with web.serving(folder) as (url, _):
            yield Place(f"{url}/", put, delete)  # what ends with a slash is a folder
    else:
        bucket, client = s3(request.getfixturevalue(request.param), settings, monkeypatch)
        yield Place(
            f"s3://{bucket}/some/folder",
            lambda path, data: client.put_object(Bucket=bucket, Key=f"some/folder/{path}", Body=data),
            lambda path: client.delete_object(Bucket=bucket, Key=f"some/folder/{path}"),
        )


@pytest.fixture
def here(place: Place, request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """The settings that the place needs; the store stays a directory."""
    server = request.node.callspec.params["place"]
    if server not in {"moto", "ceph"}:
        return settings
    return settings.model_copy(update={"source_s3_endpoint": request.getfixturevalue(server).endpoint})


def s3(server: S3, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """A new bucket, and boto3's client to it."""
    import boto3
    from botocore.config import Config

    there = on(server, settings, monkeypatch)
    client = boto3.client(
        "s3", endpoint_url=server.endpoint, region_name="us-east-1", config=Config(s3={"addressing_style": "path"})
    )
    return there.store.removeprefix("s3://").partition("/")[0], client


def listed(of: Source) -> dict[str, int]:
    return {file.path: file.size_bytes for file in of.files()}


def read(of: Source, pieces: list[Piece]) -> list[bytes]:
    """What the source gives for these pieces, read in portions."""
    found = []
    for piece, read_into in of.reading(pieces):
        data, space = bytearray(), memoryview(bytearray(4096))
        while len(data) < piece.length:
            count = read_into(space[: piece.length - len(data)])
            assert count, f"{piece} ends too early"
            data += space[:count]
        found.append(bytes(data))
    return found


# --- the contract, of every kind ----------------------------------------------------------------------------


def test_every_file_is_listed_with_its_size_and_read_as_it_is(place: Place, here: Settings) -> None:
    for path, data in FILES.items():
        place.put(path, data)
    opened = source.open_source(place.url, here)
    assert listed(opened) == {path: len(data) for path, data in FILES.items()}
    files = sorted(opened.files())
    assert read(opened, [Piece(file, 0, file.size_bytes) for file in files]) == [FILES[file.path] for file in files]
    for file in files:
        opened.check(file)
        with opened.open(file) as stream:
            assert stream.read() == FILES[file.path]


def test_parts_of_files_are_read(place: Place, here: Settings) -> None:
    data = random.Random(1).randbytes(200_000)
    place.put("large", data)
    opened = source.open_source(place.url, here)
    (file,) = opened.files()
    if place.url.startswith("http"):  # Python's web server gives no ranges
        with pytest.raises(SourceRefused, match="large: ValueError: The HTTP server doesn't appear to support range"):
            read(opened, [Piece(file, 100_000, 100_000)])
        return
    parts = [(0, 100_000), (100_000, 65_536), (165_536, 34_464)]
    assert read(opened, [Piece(file, *part) for part in parts]) == [data[at : at + length] for at, length in parts]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", {"a.jpg"}),
        ("b/*", {"b/c.jpg"}),
        ("**/*.txt", {"a.txt", "b/d/f.txt"}),
        ("b/**", {"b/c.jpg", "b/d/e.jpg", "b/d/f.txt"}),
        ("b/d/[ef].jpg", {"b/d/e.jpg"}),
        ("[a-z].txt", {"a.txt"}),
        ("*.png", set()),
    ],
)
def test_a_glob_selects_files(place: Place, here: Settings, pattern: str, expected: set[str]) -> None:
    for path, data in FILES.items():
        place.put(path, data)
    opened = source.open_source(f"{place.url.rstrip('/')}/{pattern}", here)
    fixed = pattern[: pattern.index(next(letter for letter in pattern if letter in "*?["))].rpartition("/")[0]
    assert {f"{fixed}/{path}".lstrip("/") for path in listed(opened)} == expected


def test_one_file_is_a_source(place: Place, here: Settings) -> None:
    for path, data in FILES.items():
        place.put(path, data)
    opened = source.open_source(f"{place.url.rstrip('/')}/b/c.jpg", here)
    assert listed(opened) == {"c.jpg": 70_000}
    assert read(opened, [Piece(file, 0, 70_000) for file in opened.files()]) == [FILES["b/c.jpg"]]


@pytest.mark.parametrize("change", ["other bytes", "shorter", "longer", "deleted", "no longer empty"])
def test_a_change_after_the_listing_is_noticed_by_name(place: Place, here: Settings, change: str) -> None:
    place.put("file.bin", b"" if change == "no longer empty" else b"1" * 10_000)
    opened = source.open_source(place.url, here)
    (file,) = opened.files()
    if place.url.startswith("http"):  # such a server tells times in whole seconds
        os.utime(here.home / "source/file.bin", (0, 1e9))
        (file,) = opened.files()
    if change == "deleted":
        place.delete("file.bin")
    else:
        place.put("file.bin", {"other bytes": b"2" * 10_000, "shorter": b"1" * 9_999}.get(change, b"1" * 10_001))
    with pytest.raises(SourceChanged, match=r"file\.bin"):
        opened.check(file)
    with pytest.raises(SourceChanged, match=r"file\.bin"):
        _packed(opened, file)


def _packed(opened: Source, file: SourceFile) -> None:
    """Read a file as packing does: to where it should end, or to where it does."""
    for piece, read_into in opened.reading([Piece(file, 0, file.size_bytes)]):
        left = piece.length
        while left and (count := read_into(memoryview(bytearray(min(4096, left))))):
            left -= count


LARGER = BLOB.model_copy(update={"shard_bytes": 2**17})


@pytest.mark.parametrize("how", [TAR, LARGER], ids=["tar", "blob"])
def test_any_kind_of_source_is_published(place: Place, here: Settings, how: Any) -> None:
    from pipelines import storage

    files = {**tree(40), **FILES}
    for path, data in files.items():
        place.put(path, data)
    made = published(here, request(place.url, how))
    assert extracted(storage.open_store(here), made) == files
    again = published(here, request(place.url, how))
    assert again == made


def test_what_is_not_there_is_said(place: Place, here: Settings) -> None:
    place.put("there", b"")
    with pytest.raises(SourceRefused, match="not-there"):
        published(here, request(f"{place.url.rstrip('/')}/not-there"))


# --- directories --------------------------------------------------------------------------------------------


def test_links_to_files_are_followed(settings: Settings, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", {"target": b"linked"})
    folder = write(tmp_path / "source", {"file": b"plain"})
    (folder / "link").symlink_to(tmp_path / "elsewhere/target")
    opened = source.open_source(f"file://{folder}", settings)
    assert listed(opened) == {"file": 5, "link": 6}
    assert read(opened, [Piece(file, 0, file.size_bytes) for file in sorted(opened.files())]) == [b"plain", b"linked"]


def _link_to_folder(path: Path) -> None:
    path.symlink_to(path.parent.parent)


def _dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def _socket(path: Path) -> None:
    import socket

    socket.socket(socket.AF_UNIX).bind(str(path))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (_link_to_folder, "a link to a directory"),
        (_dangling_link, "neither a file nor a directory"),
        (os.mkfifo, "neither a file nor a directory"),
        (_socket, "neither a file nor a directory"),
    ],
)
def test_what_is_no_file_is_refused_by_name(
    settings: Settings, tmp_path: Path, make: Callable[[Path], object], what: str
) -> None:
    folder = write(tmp_path / "s", {"file": b"", "sub/file": b""})
    make(folder / "sub/odd")
    with pytest.raises(SourceRefused) as raised:
        listed(source.open_source(str(folder), settings))
    assert str(raised.value) == f"source file://{folder}/sub/odd: it is {what}, and only files can be published"
    assert listed(source.open_source(f"{folder}/**/file", settings)) == {"file": 0, "sub/file": 0}


def test_a_name_that_is_not_utf_8_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "s") + b"/caf\xe9")).write_bytes(b"")
    with pytest.raises(SourceRefused, match=r"caf\\udce9': its name is not UTF-8"):
        listed(source.open_source(str(tmp_path / "s"), settings))


def test_a_file_that_becomes_a_fifo_does_not_keep_the_reader_waiting(settings: Settings, tmp_path: Path) -> None:
    folder = write(tmp_path / "s", {"file": b"1" * 1000})
    opened = source.open_source(str(folder), settings)
    (file,) = opened.files()
    (folder / "file").unlink()
    os.mkfifo(folder / "file")
    for start in (0, 500):
        with pytest.raises(SourceChanged):
            list(opened.reading([Piece(file, start, 500)]))


@pytest.mark.parametrize("name", ["data[1]", "a*b", "what?", "50%", "with space", "#1"])
def test_a_directory_and_a_file_may_have_any_name(settings: Settings, tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / name, {"one": b"1", name: b"22"})
    assert listed(source.open_source(str(folder), settings)) == {"one": 1, name: 2}
    assert listed(source.open_source(f"{folder}/{name}", settings)) == {name: 2}


@pytest.mark.parametrize(
    ("act", "is_noticed"),
    [
        (lambda path: path.write_bytes(b"2" * 1000), True),
        (lambda path: os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns)), True),
        (lambda path: path.read_bytes(), False),
    ],
    ids=["written", "written and its time set back", "read"],
)
def test_a_change_while_a_file_is_read_is_noticed_when_it_has_been(
    settings: Settings, tmp_path: Path, act: Callable[[Path], object], is_noticed: bool
) -> None:
    folder = write(tmp_path / "s", {"file": b"1" * 1000})
    opened = source.open_source(str(folder), settings)
    (file,) = opened.files()
    reading = opened.reading([Piece(file, 0, 1000)])
    _, read_into = next(reading)
    assert read_into(memoryview(bytearray(500))) == 500
    act(folder / "file")
    assert read_into(memoryview(bytearray(500))) == 500
    with pytest.raises(SourceChanged if is_noticed else StopIteration):
        next(reading)


# --- S3 -----------------------------------------------------------------------------------------------------

ODD_KEYS = [
    "with space", "ünïcode/数据", "per%20cent%", "plus+plus", "h#sh", "qu?stion", "amp&er=sand", "quote'\"", "a.b..c",
    "~tilde", "co:lon", "semi;colon", "at@", "comma,", "back\\slash", "{brace}", "[bracket]", "star*", "pipe|",
    "<less>", "caret^", "back`tick", "long" * 50,
]  # fmt: skip


@pytest.mark.integration
@pytest.mark.parametrize("server", ["moto", "ceph"])
def test_objects_with_odd_names_are_published_under_their_names(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, server: str
) -> None:
    from pipelines import storage
    from tests.datasets import trees

    bucket, client = s3(request.getfixturevalue(server), settings, monkeypatch)
    files = {key: f"this is {key}".encode() for key in ODD_KEYS}
    for key, data in files.items():
        client.put_object(Bucket=bucket, Key=f"odd folder #1/{key}", Body=data)
    client.put_object(Bucket=bucket, Key="odd folder #1/made by a console/", Body=b"")
    here = settings.model_copy(update={"source_s3_endpoint": request.getfixturevalue(server).endpoint})
    made = published(here, trees.request(f"s3://{bucket}/odd folder #1"))
    assert extracted(storage.open_store(here), made) == files


@pytest.mark.integration
@pytest.mark.parametrize("key", ["a//b", "/a", "../up", "a/./b"])
def test_an_object_whose_name_is_no_path_is_refused_by_name(
    settings: Settings, moto: S3, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    bucket, client = s3(moto, settings, monkeypatch)
    client.put_object(Bucket=bucket, Key=f"folder/{key}", Body=b"x")
    here = settings.model_copy(update={"source_s3_endpoint": moto.endpoint})
    with pytest.raises(SourceRefused, match=f"s3://{bucket}/folder"):
        listed(source.open_source(f"s3://{bucket}/folder", here))


@pytest.mark.integration
def test_many_objects_are_read_ahead_in_their_order(
    settings: Settings, moto: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, client = s3(moto, settings, monkeypatch)
    chance = random.Random(3)
    files = {f"{n:03d}": chance.randbytes(chance.choice([0, 1, 5000, 100_000])) for n in range(60)}
    files["large"] = chance.randbytes(20 * 2**20)  # several requests
    for key, data in files.items():
        client.put_object(Bucket=bucket, Key=key, Body=data)
    opened = source.open_source(f"s3://{bucket}", settings.model_copy(update={"source_s3_endpoint": moto.endpoint}))
    wanted = list(opened.files())
    chance.shuffle(wanted)
    assert read(opened, [Piece(file, 0, file.size_bytes) for file in wanted]) == [files[file.path] for file in wanted]


@pytest.mark.integration
@pytest.mark.parametrize("server", ["moto", "ceph"])
def test_a_bucket_that_is_not_there_and_credentials_that_are_wrong_are_said(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, server: str
) -> None:
    there = request.getfixturevalue(server)
    bucket, _ = s3(there, settings, monkeypatch)
    here = settings.model_copy(update={"source_s3_endpoint": there.endpoint})
    with pytest.raises(FleetmarkError, match="no-such-bucket"):
        listed(source.open_source("s3://no-such-bucket/a", here))
    if server == "ceph":  # moto takes any
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
        with pytest.raises((SourceRefused, StoreRefused), match=bucket):
            listed(source.open_source(f"s3://{bucket}/a", here))


# --- the web ------------------------------------------------------------------------------------------------


def test_a_file_on_the_web_is_asked_for_once(settings: Settings, tmp_path: Path) -> None:
    folder = write(tmp_path / "s", {"weights.bin": random.Random(4).randbytes(30_000)})
    with web.serving(folder) as (url, asked):
        published(settings, request(f"{url}/weights.bin", BLOB))
        assert asked.count("GET /weights.bin") == 1
        published(settings, request(f"{url}/weights.bin", BLOB))
        assert asked.count("GET /weights.bin") == 1


def test_a_folder_of_the_web_that_does_not_answer_fails_all_of_it(settings: Settings, tmp_path: Path) -> None:
    folder = write(tmp_path / "s", {"a": b"1", "sub/b": b"2"})
    (folder / "gone").symlink_to("nowhere")  # listed, and 404
    with web.serving(folder) as (url, _), pytest.raises(SourceRefused, match="FileNotFoundError"):
        published(settings, request(f"{url}/"))


@pytest.mark.parametrize(
    ("url", "error", "sentence"),
    [
        ("nonsense://x/y", StoreRefused, "Protocol not known: nonsense"),
        ("http://127.0.0.1:1/x", SourceRefused, "Cannot connect to host"),
        ("/no/such/folder", SourceRefused, "there is no such file or directory"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused(
    settings: Settings, url: str, error: type[FleetmarkError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        published(settings, request(url))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://somebody:hunter2@host/x",
        "https://host/x?X-Amz-Signature=hunter2",
        "https://host/x?sv=1&sig=hunter2",
        "s3://key:hunter2@bucket/x",
    ],
)
def test_a_url_with_a_secret_is_refused_without_repeating_it(settings: Settings, url: str) -> None:
    with pytest.raises(SourceRefused) as refused:
        open_source(url, settings)
    assert "hunter2" not in str(refused.value)
