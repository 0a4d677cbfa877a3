"""Publishers and collectors at once, killed and stopped: no version in sight ever lacks a byte."""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.datasets import catalog, claims, gc, names, publish
from pipelines.datasets.manifest import read_manifest
from pipelines.errors import StillCollecting
from pipelines.settings import Settings
from pipelines.storage import Store
from tests import processes, servers
from tests.conftest import on
from tests.datasets import test_gc
from tests.datasets.test_gc import NONE, NOW, WEEK, D, make_older, published, request, require_whole, shards_in
from tests.datasets.test_gc import shards_of as named_by

_TURNS = ("a", "b", "c")


# --- races --------------------------------------------------------------------------------------------------


def test_publishers_of_just_collectable_shards_and_collectors_race_and_every_version_is_whole(
    settings: Settings, tmp_path: Path
) -> None:
    _race(settings, tmp_path, rounds=3)


@pytest.mark.integration
def test_they_race_for_longer(settings: Settings, tmp_path: Path) -> None:
    collected, given_way = _race(settings, tmp_path, rounds=15)
    assert collected > 0, "no collector ever deleted anything: the race was none"
    assert given_way > 0, "no collector ever met a publication: the race was none"


@pytest.mark.integration
def test_they_race_on_an_s3_server(
    settings: Settings, moto: servers.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _race(on(moto, settings, monkeypatch), tmp_path, rounds=3)


def _race(settings: Settings, folder: Path, rounds: int) -> tuple[int, int]:
    """Each round removes a version, so that its shards can be collected at once, and publishes it at that moment.

    Gives how many objects the collectors deleted, and how many of them gave way.
    """
    store = storage.open_store(settings)
    for tag in _TURNS:
        published(settings, folder / tag, tag=tag, seed=ord(tag), files=4)
    collected = given_way = 0
    for number in range(rounds):
        tag = _TURNS[number % len(_TURNS)]
        version = _removed(store, tag)
        chance = random.Random(number)
        tasks = [("publish", folder / tag, tag), ("collect", folder, ""), ("collect", folder, "")]
        if number % 2:
            tasks.append(("publish", folder / tag, f"{tag}2"))
        answers = processes.at_once(_take_part, [(settings, *task, chance.random() * 0.1) for task in tasks])
        require_whole(store)
        assert catalog.tag_of(store, D, tag).version == version
        collected += sum(answer for answer in answers if answer > 0)
        given_way += answers.count(-1)
    return collected, given_way


def _removed(store: Store, tag: str) -> str:
    """The version that a tag stood on, which is removed with every tag on it."""
    version = catalog.tag_of(store, D, tag).version
    assert version is not None
    for each in catalog.tags(store, D):
        if each.version == version:
            catalog.move_tag(store, each, None, NOW, by="test")
    catalog.remove(store, D, version)
    return version


def _take_part(settings: Settings, role: str, source: Path, tag: str, delay_s: float) -> int:
    """Publish or collect, a little later than the others; how many objects went, -1 for a collector that gave way."""
    time.sleep(delay_s)
    store = storage.open_store(settings)
    if role == "publish":
        _publish(settings, source, tag)
        return 0
    try:
        done = gc.collect(store, D, "collector", NONE, False, lambda _: None)
    except StillCollecting:
        return -1
    return done.gone_objects


def _publish(settings: Settings, source: Path, tag: str) -> None:
    wanted = request(source, tag, files=4, seed=ord(tag[0]))
    publish.publish(settings, storage.open_store(settings), wanted, NOW, lambda _: None)  # never fails over a collector


# --- kills --------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_collector_killed_at_any_point_leaves_every_version_whole_and_the_next_one_goes_on(
    settings: Settings, tmp_path: Path
) -> None:
    store = storage.open_store(settings)
    whole = published(settings, tmp_path / "whole", tag="whole", seed=99)
    span_s = 0.0
    in_the_middle = 0
    for number, part in enumerate([1.0, *processes.moments(seed=5, count=14, span_s=1.0)]):
        _collectable(store, number)
        before = shards_in(store)
        if number == 0:
            span_s = processes.duration_s(_collect, settings)
            assert shards_in(store) == named_by(whole)
            continue
        processes.kill_after(part * span_s, _collect, settings)
        require_whole(store)
        _require_removed_whole(settings)
        left = shards_in(store)
        in_the_middle += named_by(whole) < left < before
        _collect(settings)
        assert shards_in(store) == named_by(whole)
    assert in_the_middle > 0, "no collector was killed between its deletions"
    began = time.monotonic()
    published(settings, tmp_path / "last", tag="last", seed=3)
    assert time.monotonic() - began > 9.0  # it waits until it knows that the flags were left by the dead
    require_whole(store)
    assert store.keys_under(names.collecting_prefix(D)) == []


def _collectable(store: Store, number: int) -> None:
    """A version of 300 shards that was removed. Nobody reads them: a byte will do."""
    chance = random.Random(number)
    shards = [test_gc.some_shard(chance, index) for index in range(300)]
    for key in test_gc.keys_of(shards):
        path = Path(store.path(key))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    made = test_gc.some_manifest(shards, group="0" * 64)
    store.create(names.removed_key(D, made.version), made.model_dump_json().encode())


def _require_removed_whole(settings: Settings) -> None:
    """While a removed version is still there to be looked at, its shards are."""
    store = storage.open_store(settings)
    there = shards_in(store)
    for key in store.keys_under(names.removed_prefix(D)):
        made = read_manifest(store.read(key), key)
        assert named_by(made) <= there


def _collect(settings: Settings) -> None:
    done = gc.collect(storage.open_store(settings), D, "collector", NONE, False, lambda _: None)
    assert done.stopped == ""


@pytest.mark.integration
def test_publishers_killed_at_any_point_lose_nothing_to_the_collectors_between_them(
    settings: Settings, tmp_path: Path
) -> None:
    store = storage.open_store(settings)
    span_s = 0.0
    for number, part in enumerate([1.0, *processes.moments(seed=6, count=14, span_s=1.0)]):
        if number == 0:
            span_s = processes.duration_s(_publish, settings, tmp_path / "a", "a")
        else:
            processes.kill_after(part * span_s, _publish, settings, tmp_path / "a", "a")
        make_older(store, timedelta(days=3), names.publishers_prefix(D))  # so that collectors do not give way
        _collect(settings)
        require_whole(store)
        _publish(settings, tmp_path / "a", "a")
        require_whole(store)
        _removed(store, "a")


@pytest.mark.integration
def test_a_collector_that_was_stopped_and_goes_on_after_a_publication_deletes_nothing_of_it(
    settings: Settings, tmp_path: Path
) -> None:
    store = storage.open_store(settings)
    made = published(settings, tmp_path / "a", tag="a", seed=ord("a"), files=4)
    _removed(store, "a")
    stopped = processes.CONTEXT.Process(target=_collect_slowly, args=(settings,))
    stopped.start()
    collecting = Path(store.path(names.collecting_prefix(D)))
    while not (collecting.is_dir() and any(collecting.glob("collector.*"))):
        os.sched_yield()
    os.kill(stopped.pid or 0, signal.SIGSTOP)
    began = time.monotonic()
    _publish(settings, tmp_path / "a", "a")
    assert time.monotonic() - began > 9.0
    os.kill(stopped.pid or 0, signal.SIGCONT)
    stopped.join(60)
    assert stopped.exitcode == 0
    assert catalog.tag_of(store, D, "a").version == made.version
    require_whole(store)


def _collect_slowly(settings: Settings) -> None:
    try:
        done = gc.collect(storage.open_store(settings), D, "collector", NONE, False, lambda _: None)
    except StillCollecting:
        return
    assert done.stopped


def test_a_publication_does_not_wait_for_a_collector_that_is_done(settings: Settings, tmp_path: Path) -> None:
    store = storage.open_store(settings)
    published(settings, tmp_path / "a")
    with claims.collecting(store, D, "collector"), pytest.raises(StillCollecting, match="the collector collector"):
        claims.publishing(store, D, "publication", wait_s=0)
    claims.published(store, D, "publication")
    claims.publishing(store, D, "publication", wait_s=0)


def test_a_collector_at_work_gives_way_to_a_publication_that_waits(settings: Settings) -> None:
    store = storage.open_store(settings)
    with claims.collecting(store, D, "collector") as (claim, _):
        claim.require()
        store.replace(names.publisher_key(D, "publication"), b"")
        deadline = time.monotonic() + 30
        with pytest.raises(StillCollecting, match="publication publication"):
            _require_until(claim, deadline)


def _require_until(claim: claims.Claim, deadline: float) -> None:
    while time.monotonic() < deadline:
        claim.require()
        os.sched_yield()


# --- clocks -------------------------------------------------------------------------------------------------


_BEHIND = """
import datetime, sys
from moto.core import utils
real = utils.utcnow
utils.utcnow = lambda: real() - datetime.timedelta(days=400)
from moto.server import main
main(sys.argv[1:])
"""


@pytest.fixture
def server_with_another_clock(tmp_path: Path) -> Iterator[servers.S3]:
    """moto, whose clock is 400 days behind ours."""
    port = servers.free_port()
    command = (sys.executable, "-c", _BEHIND, "-H", "127.0.0.1", "-p", str(port))
    (tmp_path / "moto").mkdir()
    with servers.running(tmp_path / "moto", {"moto": command}, lambda: servers.listens(port)):
        yield servers.S3(f"http://127.0.0.1:{port}")


@pytest.mark.integration
def test_ages_are_by_the_stores_clock_whatever_ours_says(
    settings: Settings, server_with_another_clock: servers.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = on(server_with_another_clock, settings, monkeypatch)
    store = storage.open_store(there)
    made = published(there, tmp_path / "a", tag="a")
    assert NOW - store.stat(names.version_key(D, made.version)).modified_at > timedelta(days=300)
    _removed(store, "a")
    assert gc.collect(store, D, "collector", WEEK, False, lambda _: None).doomed == ()
    publish.plan(there, store, request(tmp_path / "a", "a"))
    with pytest.raises(StillCollecting):
        gc.collect(store, D, "collector", NONE, False, lambda _: None)
    publish.publish(there, store, request(tmp_path / "a", "a"), NOW, lambda _: None)
    require_whole(store)
