"""Backup and restore: what is restored answers as the store did, whatever happened while the backup was made."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines import backup, bulk, database, keys, process, storage
from pipelines.cli import main
from pipelines.datasets import catalog, claims, download
from pipelines.errors import (
    BadKey,
    CorruptObject,
    DatabaseRefused,
    StillCollecting,
    StoreNotEmpty,
    StoreRefused,
    Unknown,
)
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tables.query import open_reader
from tests import processes
from tests.datasets.published import publish, random_files
from tests.tables import nights

AT = datetime(2026, 11, 25, 12, tzinfo=UTC)
QUERIES = (
    "FROM runs ORDER BY ALL",
    "FROM results ORDER BY ALL",
    "FROM latest ORDER BY ALL",
    "SELECT node, median(value) FROM results GROUP BY ALL ORDER BY ALL",
)


def quiet(line: str) -> None:
    del line


def place(settings: Settings, name: str) -> Store:
    """A store in a directory of its own."""
    return storage.open_store(
        settings.model_copy(update={"store": f"file://{settings.home}/{name}", "s3_endpoint": None})
    )


def answers(store: Store) -> list[object]:
    with open_reader(store) as reader:
        return [reader.query(sql).rows for sql in QUERIES]


def fill(settings: Settings, store: Store, count: int = 3) -> None:
    """Some nights, some evidence, and a dataset in two versions."""
    for number in range(count):
        nights.put(store, nights.rows(nights.NIGHT + timedelta(days=number)))
        store.create(keys.raw_key(nights.run_of(), "gpu-01", f"job-{number}", 1), f"evidence {number}".encode())
    publish(settings, store, random_files(1, 20, 9000))
    publish(settings, store, random_files(2, 5, 9000), dataset="tags", form="tar")


def test_a_restored_store_gives_the_same_answers_and_the_same_files(
    any_settings: Settings, any_store: Store, tmp_path: Path
) -> None:
    fill(any_settings, any_store)
    made = backup.make(any_store, place(any_settings, "backup"), AT, quiet)
    restored = place(any_settings, "restored")
    assert backup.restore(place(any_settings, "backup"), made, restored, quiet) == len(made.objects)
    assert answers(restored) == answers(any_store)
    for name in ("d", "tags"):
        of = catalog.load(restored, name)
        assert of == catalog.load(any_store, name)
        for number, each in enumerate((restored, any_store)):
            download.download(each, of, tmp_path / f"{number}/{name}", "files", quiet)
        assert files(tmp_path / f"0/{name}") == files(tmp_path / f"1/{name}") != {}
    nights.put(restored, nights.rows(date(2026, 12, 24)))
    publish(any_settings, restored, random_files(3, 5, 9000))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_backup_is_restored_into_either_kind_of_store(
    any_settings: Settings, any_store: Store, tmp_path: Path
) -> None:
    source = place(any_settings, "source")
    fill(any_settings, source)
    made = backup.make(source, place(any_settings, "backup"), AT, quiet)
    backup.restore(place(any_settings, "backup"), made, any_store, quiet)
    assert answers(any_store) == answers(source)
    with pytest.raises(StoreNotEmpty):
        backup.restore(place(any_settings, "backup"), made, any_store, quiet)


def test_a_backup_in_either_kind_of_store_is_read_back(any_settings: Settings, any_store: Store) -> None:
    source = place(any_settings, "source")
    fill(any_settings, source)
    made = backup.make(source, any_store, AT, quiet)
    assert backup.load(any_store) == made
    assert backup.damaged(any_store, made) == []
    restored = place(any_settings, "restored")
    backup.restore(any_store, made, restored, quiet)
    assert answers(restored) == answers(source)


def test_a_second_backup_copies_what_is_new_and_both_can_be_restored(settings: Settings, store: Store) -> None:
    fill(settings, store)
    to, before = place(settings, "backup"), answers(store)
    first = backup.make(store, to, AT, quiet)
    nights.put(store, nights.rows(date(2026, 12, 1)))
    second = backup.make(store, to, AT + timedelta(days=1), quiet)
    third = backup.make(store, to, AT + timedelta(days=2), quiet)
    assert (first.copied_objects, third.copied_objects) == (len(first.objects), 0)
    assert 0 < second.copied_objects <= len(second.objects) - len(first.objects) + 2
    backup.restore(to, backup.load(to, first.backup_id), place(settings, "one"), quiet)
    backup.restore(to, backup.load(to), place(settings, "two"), quiet)
    assert answers(place(settings, "one")) == before
    assert answers(place(settings, "two")) == answers(store)


def test_what_lands_while_a_backup_is_made_is_in_it_as_a_whole_or_not_at_all(settings: Settings, store: Store) -> None:
    nights.put(store, nights.rows())
    to = place(settings, "backup")
    later = [nights.NIGHT + timedelta(days=number) for number in range(1, 9)]
    made: list[backup.Backup] = []

    def again() -> bool:
        made.append(backup.make(store, to, AT + timedelta(minutes=len(made)), quiet))
        return len(made) > 60

    processes.kill_when(again, nights.land_nights, str(settings.home), later)
    seen = set()
    for number, each in enumerate(made):
        restored = place(settings, f"restored-{number}")
        backup.restore(to, each, restored, quiet)
        with open_reader(restored) as reader:
            complete = reader.query("SELECT run_id FROM completed ORDER BY ALL").rows
            rows = reader.query("SELECT run_id, count(*) FROM results GROUP BY ALL ORDER BY ALL").rows
        assert rows == tuple((run, 3) for (run,) in complete)
        seen.add(len(complete))
        shutil.rmtree(settings.home / f"restored-{number}")
    assert len(seen) > 2, "nothing landed meanwhile"


def _make(settings: Settings) -> None:
    backup.make(storage.open_store(settings), place(settings, "backup"), AT, quiet)


def _restore(settings: Settings) -> None:
    to = place(settings, "backup")
    backup.restore(to, backup.load(to), place(settings, "restored"), quiet)


def _killed_again_and_again(what: Callable[[Settings], None], settings: Settings) -> None:
    span_s = processes.duration_s(what, settings)
    shutil.rmtree(settings.home / "backup" if what is _make else settings.home / "restored")
    for delay_s in processes.moments(7, 6, span_s):
        processes.kill_after(delay_s, what, settings)


def test_a_backup_that_was_killed_is_none_and_the_next_one_goes_on(settings: Settings, store: Store) -> None:
    fill(settings, store)
    _killed_again_and_again(_make, settings)
    _make(settings)
    _restore(settings)
    assert answers(place(settings, "restored")) == answers(store)
    assert backup.damaged(place(settings, "backup"), backup.load(place(settings, "backup"))) == []


def test_a_restoring_that_was_killed_goes_on(settings: Settings, store: Store) -> None:
    fill(settings, store)
    _make(settings)
    _killed_again_and_again(_restore, settings)
    restored = place(settings, "restored")
    if restored.keys_under("restoring") or not restored.keys_under("tables"):
        _restore(settings)
    assert answers(restored) == answers(store)
    assert restored.keys_under("restoring") == []


def test_pruning_keeps_the_newest_and_every_object_that_they_have(any_settings: Settings, any_store: Store) -> None:
    to, told, source = any_store, [], place(any_settings, "source")
    for number in range(3):
        nights.put(source, nights.rows(nights.NIGHT + timedelta(days=number)))
        source.create(f"plans/{number}.json", f"plan {number}".encode())
        told.append(answers(source))
        backup.make(source, to, AT + timedelta(days=number), quiet)
        source.delete(f"plans/{number}.json")
    of_other = place(any_settings, "other")
    nights.put(of_other, nights.rows(date(2026, 12, 1)))
    other = backup.make(of_other, to, AT - timedelta(days=1), quiet)
    before = {key: to.read(key) for root in to.roots() for key in to.keys_under(root)}
    planned = backup.prune(to, 2, dry_run=True)
    assert {key: to.read(key) for root in to.roots() for key in to.keys_under(root)} == before
    done = backup.prune(to, 2, dry_run=False)
    assert done == planned.model_copy(update={"dry_run": False})
    assert (len(done.stay), len(done.go), done.objects > 0) == (3, 1, True)
    assert backup.prune(to, 2, dry_run=False) == done.model_copy(update={"go": (), "objects": 0, "size_bytes": 0})
    assert len(before) - len({key for root in to.roots() for key in to.keys_under(root)}) == done.objects + 1
    assert backup.load(to, other.backup_id) == other
    assert [backup.damaged(to, backup.load(to, each)) for each in done.stay] == [[], [], []]
    for number, backup_id in enumerate(each for each in done.stay if each != other.backup_id):
        restored = place(any_settings, f"restored-{number}")
        backup.restore(to, backup.load(to, backup_id), restored, quiet)
        assert answers(restored) == told[number + 1]


def test_the_newest_backup_stays_whatever_is_asked(settings: Settings, store: Store) -> None:
    store.create("plans/1.json", b"1")
    to = place(settings, "backup")
    made = backup.make(store, to, AT, quiet)
    with pytest.raises(ValueError, match="newest"):
        backup.prune(to, 0, dry_run=False)
    assert backup.prune(to, 1, dry_run=False).stay == (made.backup_id,)
    assert backup.damaged(to, made) == []


def test_nothing_is_pruned_while_a_backup_is_made_nor_where_one_that_stays_is_incomplete(
    settings: Settings, store: Store
) -> None:
    to = place(settings, "backup")
    for number in range(2):
        store.create(f"plans/{number}.json", str(number).encode())
        made = backup.make(store, to, AT + timedelta(days=number), quiet)
    before = [key for root in to.roots() for key in to.keys_under(root)]
    claims.publishing(to, "backups", "backup-other", 1.0)
    with pytest.raises(StillCollecting, match="backup-other"):
        backup.prune(to, 1, dry_run=False)
    claims.published(to, "backups", "backup-other")
    assert [key for root in to.roots() for key in to.keys_under(root)] == before
    to.delete(f"objects/{made.objects[-1].sha256}")
    with pytest.raises(CorruptObject, match=made.objects[-1].key):
        backup.prune(to, 1, dry_run=False)
    backup.make(store, to, AT + timedelta(days=2), quiet)
    assert len(backup.prune(to, 1, dry_run=False).go) == 2
    assert backup.damaged(to, backup.load(to)) == []


def _prune(settings: Settings) -> None:
    backup.prune(place(settings, "backup"), 1, dry_run=False)


@pytest.mark.integration
def test_a_pruning_that_was_killed_goes_on_and_hurts_no_backup_that_stays(settings: Settings, store: Store) -> None:
    to = place(settings, "backup")
    for number in range(200):
        store.create(f"plans/{number}.json", str(number).encode())
    backup.make(store, to, AT, quiet)
    for number in range(199):
        store.delete(f"plans/{number}.json")
    backup.make(store, to, AT + timedelta(days=1), quiet)
    shutil.copytree(settings.home / "backup", settings.home / "template")
    span_s = processes.duration_s(_prune, settings)
    for delay_s in processes.moments(7, 6, span_s):
        shutil.rmtree(settings.home / "backup")
        shutil.copytree(settings.home / "template", settings.home / "backup")
        processes.kill_after(delay_s, _prune, settings)
        assert backup.damaged(to, backup.load(to)) == []
        _prune(settings)
        assert len(to.keys_under("objects")) == len(to.keys_under("backups")) == 1


@pytest.mark.integration
def test_backups_and_prunings_at_once_leave_every_backup_whole(settings: Settings, store: Store) -> None:
    to, made = place(settings, "backup"), []
    for number in range(30):
        store.create(f"plans/{number}.json", str(number).encode())

    def again() -> bool:
        at = AT + timedelta(minutes=len(made))
        store.replace("plans/0.json", at.isoformat().encode())
        made.append(backup.make(store, to, at, quiet).backup_id)
        assert backup.damaged(to, backup.load(to)) == []
        return len(made) > 20

    processes.kill_when(again, _prune_for_ever, settings)
    assert len(to.keys_under("backups")) < len(made), "nothing was pruned meanwhile"
    _prune(settings)
    assert to.keys_under("backups") == [f"backups/{made[-1]}.json"]
    assert backup.damaged(to, backup.load(to)) == []


def _prune_for_ever(settings: Settings) -> None:
    while True:
        with suppress(StillCollecting, Unknown):
            _prune(settings)


def test_a_damaged_object_of_a_backup_is_named_and_never_restored(settings: Settings, store: Store) -> None:
    fill(settings, store)
    to = place(settings, "backup")
    made = backup.make(store, to, AT, quiet)
    victim = next(each for each in made.objects if each.key.startswith("raw/"))
    path = Path(to.path(f"objects/{victim.sha256}"))
    path.chmod(0o644)
    path.write_bytes(b"x" * victim.size_bytes)
    (sentence,) = backup.damaged(to, made)
    assert victim.key in sentence
    restored = place(settings, "restored")
    with pytest.raises(CorruptObject, match=victim.sha256):
        backup.restore(to, made, restored, quiet)
    assert not restored.exists(victim.key)


def test_a_backup_that_names_another_place_restores_nothing(settings: Settings, store: Store) -> None:
    fill(settings, store, 1)
    to = place(settings, "backup")
    made = backup.make(store, to, AT, quiet)
    forged = made.model_copy(update={"objects": (*made.objects, made.objects[0].model_copy(update={"key": "../../x"}))})
    with pytest.raises(BadKey):
        backup.restore(to, forged, place(settings, "restored"), quiet)
    assert not (settings.home / "restored").exists()


def test_what_is_of_the_moment_is_not_kept(settings: Settings, store: Store) -> None:
    fill(settings, store)
    for key in ("datasets/d/publishers/x", "datasets/d/collecting/x", "datasets/d/publishing/p/x", "probe/x"):
        store.create(key, b"")
    made = backup.make(store, place(settings, "backup"), AT, quiet)
    kept = {each.key for each in made.objects}
    there = {key for root in store.roots() for key in store.keys_under(root)}
    left = {key for key in there - kept if not key.endswith("/_last_checkpoint")}
    assert {"probe/x", "datasets/d/publishers/x", "datasets/d/collecting/x", "datasets/d/publishing/p/x"} <= left
    assert all(
        key.startswith(("probe/", "datasets/d/publish", "datasets/tags/publish", "datasets/d/coll")) for key in left
    )


def test_a_backup_into_the_store_itself_and_one_that_is_not_there_are_refused(settings: Settings, store: Store) -> None:
    fill(settings, store)
    with pytest.raises(StoreRefused, match="lies in the store"):
        backup.make(store, place(settings, "store/backup"), AT, quiet)
    with pytest.raises(Unknown, match="backup in"):
        backup.load(place(settings, "nothing"))


def test_bytes_of_any_size_come_back(settings: Settings, store: Store) -> None:
    sizes = (0, 1, 2**23 - 1, 2**23, 2**23 + 1, 2**24 + 5)
    for size in sizes:
        store.create(f"plans/{size}.json", bytes(size))
    to = place(settings, "backup")
    backup.restore(to, backup.make(store, to, AT, quiet), place(settings, "restored"), quiet)
    restored = bulk.of(place(settings, "restored"))
    assert [restored.size(f"plans/{size}.json") for size in sizes] == list(sizes)


def test_the_verbs_make_check_and_restore(settings: Settings, store: Store) -> None:
    fill(settings, store)
    environ = {"FLEETMARK_HOME": str(settings.home), "FLEETMARK_LEASE_DIR": str(settings.home)}
    run = CliRunner().invoke
    to = str(settings.home / "backup")
    assert run(main, ["backup", to, "--json"], env=environ).exit_code == 0
    assert run(main, ["restore", to, "--check"], env=environ).exit_code == 0
    refused = run(main, ["restore", to], env=environ)
    assert (refused.exit_code, "is not empty" in refused.stderr) == (2, True)
    assert run(main, ["backup", "make", to], env=environ).exit_code == 0
    said = json.loads(run(main, ["backup", "prune", to, "--keep", "1", "--json"], env=environ).stdout)
    assert (said["dry_run"], len(said["stay"])) == (True, 1)
    assert run(main, ["backup", "prune", to, "--keep", "0"], env=environ).exit_code == 2
    pruned = run(main, ["backup", "prune", to, "--keep", "1", "--delete"], env=environ)
    assert (pruned.exit_code, f"stays       {said['stay'][0]}" in pruned.stderr) == (0, True), pruned.stderr
    elsewhere = environ | {"FLEETMARK_STORE": f"file://{settings.home}/restored"}
    done = run(main, ["restore", to], env=elsewhere)
    assert (done.exit_code, "are in the store" in done.stderr) == (0, True), done.stderr
    assert answers(place(settings, "restored")) == answers(store)


@pytest.mark.integration
def test_a_database_is_dumped_and_restored_into_an_empty_one_and_into_no_other(
    settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.fleet.control import postgres

    fill(settings, store, 1)
    with postgres() as url:
        host = url.partition("host=")[2]

        def sql(name: str, statement: str) -> str:
            argv = ("psql", "-h", host, "-U", "postgres", "-d", name, "-Atqc", statement)
            done = process.run(argv, timeout_s=60)
            assert done.exit_status == 0, done.stderr
            return done.stdout.strip()

        sql("postgres", "CREATE TABLE dag_run AS SELECT 'run ' || n AS run_id FROM generate_series(1, 1000) AS n")
        sql("postgres", "CREATE DATABASE other")
        monkeypatch.setenv(database.VARIABLE, url)
        environ = {"FLEETMARK_HOME": str(settings.home)}
        to = str(settings.home / "backup")
        done = CliRunner().invoke(main, ["backup", to], env=environ)
        assert (done.exit_code, "and the database of Airflow" in done.stderr) == (0, True), done.stderr
        elsewhere = environ | {"FLEETMARK_STORE": f"file://{settings.home}/restored"}
        monkeypatch.setenv(database.VARIABLE, url.replace("/postgres?", "/other?"))
        done = CliRunner().invoke(main, ["restore", to], env=elsewhere)
        assert done.exit_code == 0, done.stderr
        assert sql("other", "SELECT count(*), max(run_id) FROM dag_run") == "1000|run 999"
        of = backup.load(place(settings, "backup"))
        assert of.database is not None
        backup.fetch(place(settings, "backup"), of.database, tmp_path / "dump")
        with pytest.raises(DatabaseRefused, match="already exists"):
            database.restore(url.replace("/postgres?", "/other?"), tmp_path / "dump")
        assert sql("other", "SELECT count(*) FROM dag_run") == "1000"


def test_the_password_of_a_database_is_on_no_command_line(tmp_path: Path) -> None:
    tool = tmp_path / "pg_dump"
    tool.write_text('#!/bin/sh\necho "$@" > "$HOME/argv"; printf %s "$PGPASSWORD" > "$HOME/password"\n')
    tool.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        patch.setenv("HOME", str(tmp_path))
        database.dump("postgresql+psycopg2://air:p%40ss@db.example:5433/airflow?sslmode=require", tmp_path / "dump")
    said = (tmp_path / "argv").read_text()
    assert "--dbname=postgresql://air@db.example:5433/airflow?sslmode=require " in said
    assert "p%40ss" not in said
    assert (tmp_path / "password").read_text() == "p@ss"
