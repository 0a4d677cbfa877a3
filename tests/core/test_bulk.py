"""Large objects: put whole, read in ranges, on a directory, on moto and on a real Ceph gateway."""

import os
import random
import signal
from pathlib import Path

import pytest

from pipelines import bulk, storage
from pipelines.bulk import Bulk
from pipelines.errors import KeyNotFound, StoreRefused, StoreUnreachable
from pipelines.settings import Settings
from pipelines.storage import Store
from tests import processes, servers
from tests.conftest import on
from tests.servers import S3

MIB = 2**20
DATA = random.Random(1).randbytes(20 * MIB)
KEY = "datasets/photos/shards/one"


@pytest.fixture
def large(any_store: Store) -> Bulk:
    return bulk.of(any_store)


def put(large: Bulk, key: str, data: bytes, elsewhere: Path) -> None:
    """Write the file where the store wants it, and adopt it."""
    file = (large.folder_for(key) or elsewhere) / f".tmp-{len(data)}"
    file.write_bytes(data)
    large.adopt(key, str(file))
    file.unlink()


@pytest.mark.parametrize("length", [0, 1, 5 * MIB, 20 * MIB])
def test_an_adopted_file_is_the_object(any_store: Store, large: Bulk, tmp_path: Path, length: int) -> None:
    put(large, KEY, DATA[:length], tmp_path)
    assert large.size(KEY) == length
    assert any_store.read(KEY) == DATA[:length]
    assert any_store.keys_under("datasets") == [KEY]


@pytest.mark.parametrize(
    ("start", "length"), [(0, 20 * MIB), (0, 1), (12_345, 3 * MIB), (20 * MIB - 1, 1), (20 * MIB - 5, 100), (7, 0)]
)
def test_a_range_is_what_lies_there_and_shorter_where_the_object_ends(
    large: Bulk, tmp_path: Path, start: int, length: int
) -> None:
    put(large, KEY, DATA, tmp_path)
    assert large.range(KEY, start, length) == DATA[start : start + length]


def test_what_is_not_there_has_no_size_and_no_range(any_store: Store, large: Bulk) -> None:
    assert large.size(KEY) is None
    with pytest.raises(KeyNotFound) as raised:
        large.range(KEY, 0, 1)
    assert str(raised.value) == f"there is no object {any_store.url(KEY)}"


def test_a_file_adopted_again_is_left_or_replaced_by_the_same(any_store: Store, large: Bulk, tmp_path: Path) -> None:
    for _ in range(2):
        put(large, KEY, DATA[:MIB], tmp_path)
    assert any_store.read(KEY) == DATA[:MIB]


def test_a_fork_of_a_process_that_has_read_is_answered_or_told_why_not_and_never_hangs(
    any_store: Store, large: Bulk, tmp_path: Path
) -> None:
    put(large, KEY, DATA[:MIB], tmp_path)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(_answered_or_told(any_store, large))
    assert os.waitpid(child, 0)[1] == 0
    assert large.range(KEY, 0, MIB) == DATA[:MIB]


def _answered_or_told(store: Store, large: Bulk) -> int:
    try:
        return 0 if large.range(KEY, 0, MIB) == DATA[:MIB] else 1
    except StoreRefused as e:
        return 0 if "spawn or forkserver" in str(e) and not store.is_local else 2


def test_writers_of_the_same_object_at_once_all_succeed(any_settings: Settings, tmp_path: Path) -> None:
    processes.at_once(_put_all, [(any_settings, tmp_path / str(writer)) for writer in range(4)])
    store = storage.open_store(any_settings)
    assert {key: store.read(key) for key in store.keys_under("datasets")} == {
        f"{KEY}-{number}": DATA[: number * MIB] for number in range(4)
    }


def _put_all(settings: Settings, folder: Path) -> None:
    large = bulk.of(storage.open_store(settings))
    folder.mkdir()
    for number in range(4):
        file = (large.folder_for(KEY) or folder) / f".tmp-{folder.name}"
        file.write_bytes(DATA[: number * MIB])
        large.adopt(f"{KEY}-{number}", str(file))
        file.unlink()


# --- etags and listings of S3 -------------------------------------------------------------------------------


@pytest.fixture(params=["moto", "ceph"])
def bucket(request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> bulk.S3:
    there = on(request.getfixturevalue(request.param), settings, monkeypatch)
    return bulk.S3(there.store_url, there.s3_endpoint, there.store_retry_s)


@pytest.mark.integration
def test_every_object_is_listed_with_its_size_and_an_etag_that_changes_with_its_bytes(
    bucket: bulk.S3, tmp_path: Path
) -> None:
    names = sorted(f"{number % 7}/{number:04d}" for number in range(120))
    for name in names:
        put(bucket, name, name.encode(), tmp_path)
    first = {each.key: each for each in bucket.list()}
    assert list(first) == names
    assert all(each.size_bytes == len(each.key) for each in first.values())
    put(bucket, names[0], b"other", tmp_path)
    then = {each.key: each for each in bucket.list()}
    assert [name for name in names if then[name] != first[name]] == names[:1]


@pytest.mark.integration
@pytest.mark.parametrize("length", [0, 10])
def test_a_range_of_another_etag_is_not_given(bucket: bulk.S3, tmp_path: Path, length: int) -> None:
    put(bucket, "a", b"0123456789"[:length], tmp_path)
    (listed,) = bucket.list()
    assert bucket.range("a", 0, length, listed.etag) == b"0123456789"[:length]
    put(bucket, "a", b"other bytes", tmp_path)
    assert bucket.range("a", 0, length, listed.etag) is None


# --- what goes wrong ----------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("server", ["moto", "ceph"])
def test_a_bucket_that_is_not_there_is_said_by_every_call(
    request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch, server: str, tmp_path: Path
) -> None:
    there = on(request.getfixturevalue(server), settings, monkeypatch)
    nowhere = bulk.S3("s3://no-such-bucket/x", there.s3_endpoint, 1.0)
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(StoreRefused, match="refused s3://no-such-bucket/x/a: there is no such bucket"):
        nowhere.adopt("a", str(tmp_path / "file"))
    with pytest.raises(StoreRefused, match="refused s3://no-such-bucket/x/: there is no such bucket"):
        list(nowhere.list())
    with pytest.raises(StoreRefused, match="refused s3://no-such-bucket/x/a: there is no such bucket"):
        nowhere.range("a", 0, 1)


@pytest.mark.integration
def test_wrong_credentials_are_refused(ceph: S3, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    there = on(ceph, settings, monkeypatch)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    large = bulk.S3(there.store_url, there.s3_endpoint, 1.0)
    with pytest.raises(StoreRefused, match=r"/results/a: [^\n]*(SignatureDoesNotMatch|403)"):
        large.range("a", 0, 1)


def test_a_server_that_does_not_answer_is_tried_for_the_time_given_then_given_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = S3(f"http://127.0.0.1:{servers.free_port()}")
    for name, value in closed.environ.items():
        monkeypatch.setenv(name, value)
    large = bulk.S3("s3://bucket/x", closed.endpoint, 1.0)
    for call in (lambda: large.size("a"), lambda: large.range("a", 0, 1), lambda: list(large.list())):
        with pytest.raises(
            StoreUnreachable, match=r"^object store gave up on s3://bucket/x/[^\n]* attempts: "
        ) as raised:
            call()
        assert raised.value.attempts > 1


def test_a_directory_that_cannot_be_read_refuses(settings: Settings, tmp_path: Path) -> None:
    store = storage.open_store(settings)
    (tmp_path / "store/datasets").mkdir(parents=True)
    (tmp_path / "store/datasets/loop").symlink_to("loop")
    for call in (lambda: bulk.of(store).size("datasets/loop"), lambda: bulk.of(store).range("datasets/loop", 0, 1)):
        with pytest.raises(StoreRefused, match=r"datasets/loop: Too many levels of symbolic links"):
            call()
