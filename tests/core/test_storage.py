"""The object store: one contract, on a directory, on moto and on a real Ceph gateway; and what happens without it."""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines import filesystems, storage
from pipelines.errors import BadKey, KeyNotFound, StoreRefused, StoreUnreachable, UnsafeStore
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tables import delta
from tests import processes, servers
from tests.conftest import on
from tests.node.conftest import public_dir
from tests.node.other_user import as_nobody
from tests.servers import S3

__all__ = ["public_dir"]  # a fixture

CALLS: dict[str, Callable[[Store], Any]] = {
    "read": lambda store: store.read("a/b"),
    "create": lambda store: store.create("a/b", b"x"),
    "replace": lambda store: store.replace("a/b", b"x"),
    "exists": lambda store: store.exists("a/b"),
    "keys_under": lambda store: store.keys_under("a/b"),
    "delete": lambda store: store.delete("a/b"),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: 95\r\n\r\n"
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>  '
)


# --- the contract -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 4096], ids=["empty", "one byte", "1 MiB"])
def test_what_was_created_reads_back(any_store: Store, data: bytes) -> None:
    assert any_store.create("a/b.json", data)
    assert any_store.read("a/b.json") == data


def test_a_created_object_is_never_overwritten(any_store: Store) -> None:
    assert any_store.create("a", b"first")
    assert not any_store.create("a", b"second")
    assert any_store.read("a") == b"first"


def test_a_large_object_is_created_once_too(any_store: Store) -> None:
    first, second = os.urandom(2**10) * 60_000, os.urandom(2**10) * 60_000  # above s3fs' threshold for multipart
    assert any_store.create("large", first)
    assert not any_store.create("large", second)
    assert any_store.read("large") == first


def test_of_racing_writers_exactly_one_wins_and_all_read_its_bytes(any_settings: Settings) -> None:
    wanted = [f"race/{number}" for number in range(12)]
    results = processes.at_once(_write_all, [(any_settings, wanted, writer) for writer in range(4)])
    store = storage.open_store(any_settings)
    for key in wanted:
        winners = [writer for writer, won in enumerate(results) if key in won]
        assert [store.read(key)] == [_body(writer, key) for writer in winners]


def _write_all(settings: Settings, wanted: list[str], writer: int) -> set[str]:
    store = storage.open_store(settings)
    with ThreadPoolExecutor(len(wanted)) as pool:
        won = pool.map(lambda key: store.create(key, _body(writer, key)), wanted)
        return {key for key, mine in zip(wanted, won, strict=True) if mine}


def _body(writer: int, key: str) -> bytes:
    return f"{writer} {key}".encode() * 1000


def test_the_probe_finds_that_create_is_atomic_and_leaves_nothing(any_store: Store) -> None:
    any_store.require_atomic_create()
    assert any_store.keys_under("probe") == []


def test_an_object_can_be_replaced_and_deleted_again_and_again(any_store: Store) -> None:
    for body in (b"one", b"two"):
        any_store.replace("pointer", body)
        assert any_store.read("pointer") == body
    for _ in range(2):
        any_store.delete("pointer")
        assert not any_store.exists("pointer")


def test_a_missing_object_is_named(any_store: Store) -> None:
    with pytest.raises(KeyNotFound) as raised:
        any_store.read("not/there")
    assert str(raised.value) == f"there is no object {any_store.url('not/there')}"


def test_listing_gives_whole_keys_below_the_folder_sorted_and_nothing_beside_it(any_store: Store) -> None:
    for key in ("a/2", "a/1/x", "a/10", "ab/1", "b"):
        any_store.create(key, b"")
    assert any_store.keys_under("a") == ["a/1/x", "a/10", "a/2"]
    assert any_store.keys_under("none") == []


def test_objects_are_listed_with_their_size_and_the_stores_time(any_store: Store) -> None:
    began = datetime.now(UTC) - timedelta(seconds=2)  # S3 tells whole seconds
    for key, size in (("a/1", 0), ("a/b/2", 5)):
        any_store.create(key, b"x" * size)
    listed = any_store.objects_under("a")
    assert [(each.key, each.size_bytes) for each in listed] == [("a/1", 0), ("a/b/2", 5)]
    assert all(began < each.modified_at < datetime.now(UTC) + timedelta(seconds=2) for each in listed)
    for each in listed:  # of S3 a listing may tell the time more exactly
        found = any_store.stat(each.key)
        assert (found.key, found.size_bytes) == (each.key, each.size_bytes)
        assert abs(found.modified_at - each.modified_at) < timedelta(seconds=1)


def test_folders_are_listed_by_name_and_objects_beside_them_are_not(any_store: Store) -> None:
    for key in ("a/2/x", "a/1/x/y", "a/10/z", "a/object", "ab/other/x"):
        any_store.create(key, b"")
    assert any_store.folders_under("a") == ["1", "10", "2"]
    assert any_store.folders_under("a/2") == []
    assert any_store.folders_under("none") == []


def test_a_folder_is_no_object(any_store: Store) -> None:
    any_store.create("a/b", b"")
    assert not any_store.exists("a")
    with pytest.raises(KeyNotFound):
        any_store.stat("a")
    with pytest.raises(KeyNotFound):
        any_store.stat("none")


def test_many_objects_are_read_in_the_order_asked_for(any_store: Store) -> None:
    for number in range(40):
        any_store.create(f"many/{number}", str(number).encode())
    assert any_store.read_many([f"many/{number}" for number in reversed(range(40))]) == [
        str(number).encode() for number in reversed(range(40))
    ]


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a//b", "a b", ".hidden"])
def test_a_key_that_is_not_plain_is_refused_by_every_call(store: Store, key: str) -> None:
    for call in (store.read, store.exists, store.keys_under, store.delete, store.url, store.path):
        with pytest.raises(BadKey):
            call(key)
    for write in (store.create, store.replace):
        with pytest.raises(BadKey):
            write(key, b"")


def test_a_store_opened_before_a_fork_works_in_the_child(any_store: Store) -> None:
    any_store.create("before", b"1")
    child = os.fork()  # as Airflow starts its tasks
    if child == 0:
        signal.alarm(20)
        os._exit(0 if any_store.read("before") == b"1" and any_store.create("in-child", b"2") else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert any_store.read("in-child") == b"2"  # and the parent's own connections still work


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.jpg", ("a.jpg", ".jpg"), ("a/b.jpg", "a.jpg.x", "a.JPG")),
        ("a/*", ("a/b", "a/.b"), ("a", "a/b/c", "b/a")),
        ("**/*.txt", ("a.txt", "a/b/c.txt"), ("a.txt/x",)),
        ("a/**", ("a/b", "a/b/c"), ("b/a",)),
        ("[a-c]?.x", ("b1.x",), ("d1.x", "b.x", "b12.x")),
        ("a.b+c", ("a.b+c",), ("aab+c", "a.bbc")),
    ],
)
def test_a_glob_stays_within_a_folder_unless_it_has_two_stars(
    pattern: str, yes: tuple[str, ...], no: tuple[str, ...]
) -> None:
    matches = filesystems.glob_matcher(pattern)
    assert [path for path in (*yes, *no) if matches(path)] == list(yes)


def test_only_directories_and_s3_are_stores(settings: Settings) -> None:
    with pytest.raises(StoreRefused, match=r"ftp://host/x.*must be a file:// or an s3:// URL"):
        storage.open_store(settings.model_copy(update={"store": "ftp://host/x"}))


# --- a directory --------------------------------------------------------------------------------------------


def test_a_directory_may_have_any_name(settings: Settings, tmp_path: Path) -> None:
    for name in ("with space", "é#?", "a+b=c"):
        store = storage.open_store(settings.model_copy(update={"store": f"file://{tmp_path}/{name}"}))
        store.create("a", b"1")
        assert delta.open_table(store, "runs").version() == 0
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["a", "tables"]


def test_a_directory_with_a_percent_sign_is_refused_as_delta_would_use_another(settings: Settings) -> None:
    with pytest.raises(StoreRefused, match="percent sign"):
        storage.open_store(settings.model_copy(update={"store": "file:///srv/100%25"}))


def test_a_directory_that_cannot_be_written_refuses(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = storage.open_store(settings.model_copy(update={"store": f"file://{tmp_path}/file/store"}))
    with pytest.raises(StoreRefused, match=r"file/store/a: NotADirectoryError"):
        store.create("a", b"")


def test_a_folder_that_may_not_be_listed_is_not_taken_for_an_empty_one(public_dir: Path) -> None:
    settings = Settings(home=public_dir, lease_dir=public_dir)
    storage.open_store(settings).create("a/b/c", b"")
    assert as_nobody(_keys, settings) == ["a/b/c"]
    (public_dir / "store/a/b").chmod(0o700)
    with pytest.raises(StoreRefused, match=r"store/a: PermissionError: .*/store/a/b"):
        as_nobody(_keys, settings)


def _keys(settings: Settings) -> list[str]:
    return storage.open_store(settings).keys_under("a")


def test_a_writer_killed_at_any_moment_leaves_whole_objects_or_none(settings: Settings) -> None:
    store = storage.open_store(settings)
    for number, moment_s in enumerate(processes.moments(seed=7, count=15, span_s=0.15)):
        assert processes.kill_after(moment_s, _write_for_ever, settings, f"killed/{number}")
    written = store.keys_under("killed")
    assert written
    assert {len(store.read(key)) for key in written} == {_WRITTEN_BYTES}
    assert list(tmp_files(settings)), "no writer was killed within a write: the test has proved nothing"


_WRITTEN_BYTES = 4 * 2**20


def _write_for_ever(settings: Settings, folder: str) -> None:
    store, data = storage.open_store(settings), b"x" * _WRITTEN_BYTES
    for number in itertools.count():
        store.create(f"{folder}/{number}", data)


def tmp_files(settings: Settings) -> Iterator[Path]:
    return (settings.home / "store").rglob(".tmp-*")


# --- servers that do not answer, answer later, or answer no -------------------------------------------------


@pytest.mark.parametrize("call", [CALLS[name] for name in ("read", "create", "keys_under")])
def test_a_store_that_does_not_answer_is_retried_then_given_up_naming_the_key(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, call: Callable[[Store], Any]
) -> None:
    store = _nobody(settings, monkeypatch)
    with pytest.raises(StoreUnreachable, match=r"gave up on s3://bucket/a/b after [2-9] attempts: .*Connect") as raised:
        call(store)
    assert raised.value.retryable


def test_a_table_on_a_store_that_does_not_answer_is_given_up_in_one_sentence(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreUnreachable, match=r"^object store gave up on s3://bucket/tables/runs after [^\n\x1b]*$"):
        delta.open_table(_nobody(settings, monkeypatch), "runs")


def _nobody(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Store:
    closed = S3(f"http://127.0.0.1:{servers.free_port()}")
    for name, value in closed.environ.items():
        monkeypatch.setenv(name, value)
    given = {"store": "s3://bucket", "s3_endpoint": closed.endpoint, "store_retry_s": 1.5}
    return storage.open_store(settings.model_copy(update=given))


@pytest.mark.integration
@pytest.mark.parametrize("answer", [b"", SLOW_DOWN], ids=["closed", "slow down"])
def test_a_store_that_fails_at_first_is_tried_again(
    settings: Settings, moto: S3, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    direct = on(moto, settings, monkeypatch)
    with servers.interfering(moto, [answer] * 3) as flaky:
        store = storage.open_store(direct.model_copy(update={"s3_endpoint": flaky.endpoint, "store_retry_s": 20.0}))
        assert store.create("a", b"1")
        assert store.read("a") == b"1"


@pytest.mark.integration
def test_a_store_that_comes_back_is_used_by_reads_and_by_tables(
    settings: Settings, moto: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = on(moto, settings, monkeypatch)
    for use in (lambda store: store.create("a", b"1"), lambda store: delta.open_table(store, "runs")):
        with servers.interfering(moto, [], after_s=0.4) as late:
            again = direct.model_copy(update={"s3_endpoint": late.endpoint, "store_retry_s": 20.0})
            assert use(storage.open_store(again))


@pytest.mark.integration
@each_call
@pytest.mark.parametrize("server", ["moto", "ceph"])
def test_a_bucket_that_is_not_there_is_said(
    request: pytest.FixtureRequest,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    server: str,
    call: Callable[[Store], Any],
) -> None:
    there = on(request.getfixturevalue(server), settings, monkeypatch)
    with pytest.raises(StoreRefused, match="refused s3://no-such-bucket/a/b: there is no such bucket"):
        call(storage.open_store(there.model_copy(update={"store": "s3://no-such-bucket"})))


@pytest.mark.integration
@each_call
def test_wrong_credentials_are_refused_without_a_retry(
    settings: Settings, ceph: S3, monkeypatch: pytest.MonkeyPatch, call: Callable[[Store], Any]
) -> None:
    there = on(ceph, settings, monkeypatch)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(StoreRefused, match=r"/results/a/b: (SignatureDoesNotMatch|403)"):
        call(storage.open_store(there))


@pytest.mark.integration
def test_a_store_that_lets_several_writers_win_is_refused_before_a_table_is_made(
    settings: Settings, rclone: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = storage.open_store(on(rclone, settings, monkeypatch))
    with pytest.raises(UnsafeStore) as raised:
        delta.open_table(store, "runs")
    assert raised.value.winners > 1
    assert store.keys_under("tables") == []
