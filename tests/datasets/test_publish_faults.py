"""Publishing when something goes wrong: sources that change, kill -9, servers that fail, disks that are full."""

import os
import random
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines import bulk, storage
from pipelines.datasets import catalog, commit, names, publications, publish, verify
from pipelines.datasets.manifest import Body, Manifest
from pipelines.datasets.meter import Meter
from pipelines.datasets.publications import Publication, Request
from pipelines.errors import FleetmarkError, SourceChanged, SourceRefused, StoreRefused, StoreUnreachable
from pipelines.settings import Settings
from pipelines.storage import Store
from tests import processes, servers
from tests.conftest import on
from tests.datasets import flaky, trees
from tests.datasets.trees import BLOB, NOW, TAR, extracted, opened, published, request, stored, tree, write
from tests.node.conftest import Mount, mount, public_dir
from tests.node.other_user import NOBODY, as_nobody
from tests.servers import S3

__all__ = ["mount", "public_dir"]  # fixtures


def silent() -> Meter:
    return Meter(lambda _: None, 1, 1, "shards")


# --- sources that change ------------------------------------------------------------------------------------


def overwrite(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


def replace(file: Path) -> None:
    shutil.copy2(file, file.with_name("copy"))  # the same bytes, size and modification time
    file.with_name("copy").rename(file)


def make_a_fifo_of_it(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


CHANGES: list[Callable[[Path], object]] = [overwrite, truncate, grow, replace, Path.unlink, make_a_fifo_of_it]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("how", [TAR, BLOB], ids=["tar", "blob"])
def test_a_file_that_changes_after_the_plan_fails_the_publication_by_name_and_nothing_is_published(
    settings: Settings, store: Store, tmp_path: Path, change: Callable[[Path], object], how: trees.Packing
) -> None:
    source = write(tmp_path / "source", tree(60))
    planned = publish.plan(settings, store, request(source, how))
    file = next(source.rglob("00030.jpg"))
    change(file)
    with pytest.raises(SourceChanged, match=f"source file file://{file} changed while it was being published"):
        publish.pack(settings, store, planned, 0, silent())
    assert catalog.datasets(store) == []
    assert stored(settings, ".tmp-*") == {}


def test_a_file_that_somebody_keeps_writing_to_is_never_published(settings: Settings, tmp_path: Path) -> None:
    source = write(tmp_path / "source", {**tree(10), "growing.log": b"line\n"})
    stop = threading.Event()
    writer = threading.Thread(target=_append_until, args=(stop, source / "growing.log"))
    writer.start()
    try:
        with pytest.raises(SourceChanged, match=r"growing\.log changed while it was being published"):
            published(settings, request(source))
    finally:
        stop.set()
        writer.join()
    assert catalog.datasets(storage.open_store(settings)) == []
    assert published(settings, request(source)).files == 11


def _append_until(stop: threading.Event, file: Path) -> None:
    with file.open("a") as opened_file:
        while not stop.wait(0.0005):
            opened_file.write("line\n")
            opened_file.flush()


def test_a_file_that_may_not_be_read_is_refused_by_name(public_dir: Path) -> None:
    settings = Settings(home=public_dir / "home", lease_dir=public_dir)
    source = write(public_dir / "source", tree(10))
    settings.home.mkdir()
    os.chown(settings.home, NOBODY, NOBODY)
    secret = next(source.rglob("00004.jpg"))
    secret.chmod(0o600)
    with pytest.raises(SourceRefused, match=f"source file://{secret}: Permission denied"):
        as_nobody(published, settings, request(source))
    assert catalog.datasets(storage.open_store(settings)) == []
    secret.chmod(0o644)
    (source / "1").chmod(0o700)
    with pytest.raises(SourceRefused, match=f"source file://{source}/1/?: Permission denied"):
        as_nobody(published, settings, request(source))


# --- kill -9 ------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_publisher_killed_at_any_point_leaves_nothing_half_and_a_retry_makes_it_whole(
    settings: Settings, tmp_path: Path
) -> None:
    _sweep(settings, write(tmp_path / "source", tree(160)), points=60)
    in_shards = [path for path in stored(settings, ".tmp-*") if "/shards/" in path]
    assert in_shards == []


@pytest.mark.integration
@pytest.mark.parametrize("server", ["moto", "ceph"])
def test_a_publisher_killed_on_an_s3_server_leaves_nothing_half_and_a_retry_makes_it_whole(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, server: str
) -> None:
    there = on(request.getfixturevalue(server), settings, monkeypatch)
    _sweep(there, write(tmp_path / "source", tree(160)), points=12)
    assert list((settings.home / "publishing").iterdir()) == []


def _sweep(settings: Settings, source: Path, points: int) -> None:
    """Kill a publisher of as many datasets, each at another point of the time that one takes."""
    store = storage.open_store(settings)
    expected = published(settings, request(source, dataset="undisturbed"))
    span_s = processes.duration_s(published, settings, request(source, dataset="timed"))
    reached: list[tuple[int, bool]] = []
    for number, moment_s in enumerate(processes.moments(seed=points, count=points, span_s=span_s)):
        wanted = request(source, dataset=f"killed-{number}")
        processes.kill_after(moment_s, published, settings, wanted)
        is_published = _is_whole_or_nothing(store, wanted.dataset, expected)
        finished = _files_packed(store, wanted.dataset)
        reached.append((len(finished), is_published))
        with opened(*(path for path in source.iterdir() if path.is_dir())) as seen:
            made = published(settings, wanted)
        assert made.body == _in(wanted.dataset, expected)
        assert not finished & set(seen), "a shard that was packed has been read again"
        assert store.keys_under(names.publishers_prefix(wanted.dataset)) == []
    assert len(set(reached)) >= 3, f"publishers were not killed at different points: {reached}"
    _is_whole_or_nothing(store, "killed-0", expected)


def _is_whole_or_nothing(store: Store, dataset: str, expected: Manifest) -> bool:
    """Whether the version is published; if it is, all of it is there."""
    standing = catalog.tag_of(store, dataset, "latest").version
    versions = catalog.versions(store, dataset)
    assert versions in ([], [_in(dataset, expected).version])
    assert standing is None or [standing] == versions
    for version in versions:
        made = catalog.load_version(store, dataset, version)
        assert verify.damaged(store, bulk.of(store), made, silent()) == []
    return bool(versions)


def _in(dataset: str, of: Manifest) -> Body:
    return of.body.model_copy(update={"dataset": dataset})


def _files_packed(store: Store, dataset: str) -> set[str]:
    """The names of the files in shards that are noted as packed."""
    found = set()
    for key in store.keys_under(names.packed_prefix(dataset)):
        group = key.rpartition("/")[2].removesuffix(".json.zst")
        noted = publications.noted(store, dataset, group)
        assert noted is not None
        for shard in noted.shards:
            found |= {entry.path.rpartition("/")[2] for entry in catalog.index_of(store, dataset, shard)}
    return found


@pytest.mark.integration
def test_a_commit_killed_between_any_of_its_steps_is_made_whole_by_a_retry(settings: Settings, tmp_path: Path) -> None:
    source, store = write(tmp_path / "source", tree(40)), storage.open_store(settings)
    expected = published(settings, request(source, dataset="undisturbed"))
    reached = []
    for number in range(24):
        planned = _packed(settings, store, request(source, dataset=f"killed-{number}"))
        dataset, root = planned.request.dataset, settings.home / "store"
        steps = [
            root / names.version_key(dataset, _in(dataset, expected).version),
            root / names.publisher_key(dataset, planned.publication),  # which goes
            root / names.tag_key(dataset, "latest", 1),
            root / names.publication_key(dataset, planned.publication, "version"),
        ]
        before = [step.exists() for step in steps]
        awaited = number % len(steps)
        processes.kill_when(lambda: steps[awaited].exists() != before[awaited], _commit, settings, planned)  # noqa: B023
        reached.append(tuple(step.exists() != was for step, was in zip(steps, before, strict=True)))
        _is_whole_or_nothing(store, dataset, expected)
        made = commit.commit(settings, store, planned, datetime(2026, 12, 1, tzinfo=UTC))
        assert made.body == _in(dataset, expected)
        assert catalog.load(store, dataset) == made
        assert len(list(catalog.history(store, dataset, "latest"))) == 1
        assert store.keys_under(names.publishers_prefix(dataset)) == []
        assert len(store.keys_under(names.publishing_prefix(dataset))) == 2
    assert len(set(reached)) >= 3, f"no commit was killed between its steps: {reached}"


def _packed(settings: Settings, store: Store, wanted: Request) -> Publication:
    planned = publish.plan(settings, store, wanted)
    publish.pack(settings, store, planned, 0, silent())
    return planned


def _commit(settings: Settings, planned: Publication) -> None:
    commit.commit(settings, storage.open_store(settings), planned, NOW)


# --- servers that fail --------------------------------------------------------------------------------------

INTERNAL_ERROR = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: 93\r\n\r\n"
    b'<?xml version="1.0"?><Error><Code>InternalError</Code><Message>Try it again.</Message></Error>'
)[:-1]


@pytest.mark.integration
@pytest.mark.parametrize("server", ["moto", "ceph"])
def test_a_network_that_cuts_connections_in_the_middle_costs_time_and_nothing_else(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, server: str
) -> None:
    there = on(request.getfixturevalue(server), settings, monkeypatch)
    files = tree(160)
    source = write(tmp_path / "source", files)
    expected = published(settings, trees.request(source))
    store = storage.open_store(there)
    refusals: list[FleetmarkError] = []
    made = None
    for seed in range(20):
        with flaky.cutting(request.getfixturevalue(server), seed, cuts=30, delay_s=0.002) as cut:
            through = there.model_copy(update={"s3_endpoint": cut.endpoint, "store_retry_s": 10.0})
            try:
                made = published(through, trees.request(source))
                break
            except FleetmarkError as e:
                refusals.append(e)
            _is_whole_or_nothing(store, "photos", expected)
    assert made is not None, refusals
    assert all(refusal.retryable for refusal in refusals), refusals
    assert made.body == expected.body
    assert extracted(store, catalog.load(store, "photos")) == files


@pytest.mark.integration
@pytest.mark.parametrize("answer", [INTERNAL_ERROR, b""], ids=["500", "closed"])
def test_a_server_that_fails_at_first_is_tried_again(
    settings: Settings, moto: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: bytes
) -> None:
    direct = on(moto, settings, monkeypatch)
    source = write(tmp_path / "source", tree(20))
    with servers.interfering(moto, [answer] * 6) as failing:
        through = direct.model_copy(update={"s3_endpoint": failing.endpoint, "store_retry_s": 20.0})
        made = published(through, request(source))
    assert catalog.load(storage.open_store(direct), "photos") == made


@pytest.mark.integration
def test_a_server_that_goes_away_ends_it_with_one_retryable_sentence(
    settings: Settings, moto: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    direct = on(moto, settings, monkeypatch)
    store = storage.open_store(direct)
    planned = publish.plan(direct, store, request(write(tmp_path / "source", tree(20))))
    gone = direct.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{servers.free_port()}"})
    with pytest.raises(StoreUnreachable, match=r"^object store gave up on s3://[^\n]*$") as raised:
        publish.pack(gone, storage.open_store(gone), planned, 0, silent())
    assert raised.value.retryable
    publish.pack(direct, store, planned, 0, silent())
    assert commit.commit(direct, store, planned, NOW).files == 20


# --- disks that are full ------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(mount: Mount) -> Path:
    """A filesystem of one MiB."""
    return mount("small", "size=1m")


def test_a_store_on_a_full_disk_refuses_and_leaves_no_shard(
    settings: Settings, tmp_path: Path, small_disk: Path
) -> None:
    small = settings.model_copy(update={"store": f"file://{small_disk}/store"})
    source = write(tmp_path / "source", {"large": random.Random(1).randbytes(2**21)})
    how = BLOB.model_copy(update={"shard_bytes": 2**22})
    with pytest.raises(StoreRefused, match=r"shards: No space left on device"):
        published(small, request(source, how))
    assert stored(small, "shards/*") == stored(small, ".tmp-*") == {}
    assert catalog.datasets(storage.open_store(small)) == []


@pytest.mark.integration
def test_a_work_folder_on_a_full_disk_refuses_and_the_same_goes_on_elsewhere(
    settings: Settings, moto: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_disk: Path
) -> None:
    there = on(moto, settings, monkeypatch)
    source = write(tmp_path / "source", {"large": random.Random(1).randbytes(2**21)})
    wanted = request(source, BLOB.model_copy(update={"shard_bytes": 2**22}))
    with pytest.raises(StoreRefused, match=r"publishing: No space left on device"):
        published(there.model_copy(update={"home": small_disk}), wanted)
    assert list((small_disk / "publishing").iterdir()) == []
    assert published(there, wanted).files == 1


# --- clocks that are wrong ----------------------------------------------------------------------------------


def test_neither_the_publishers_clock_nor_the_times_of_files_decide_anything(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    source = write(tmp_path / "source", tree(40))
    years, made = (1990, 2100, 2011), []
    for year in years:
        write(source, {"year": str(year).encode()})
        for file in source.rglob("*"):
            os.utime(file, (0, (year - 1970) * 31_556_952))
        made.append(published(settings, request(source), datetime(year, 1, 1, tzinfo=UTC)))
        assert catalog.load(store, "photos").version == made[-1].version
    assert [move.moved_at.year for move in catalog.history(store, "photos", "latest")] == list(years)
    assert made[-1].body == published(settings.model_copy(update={"home": tmp_path / "x"}), request(source)).body
