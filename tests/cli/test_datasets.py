"""The verbs on datasets as a stranger meets them: publish, look, move tags, check, fetch, collect."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipelines.cli import main
from pipelines.settings import Settings

Fleetmark = Callable[..., Result]


@pytest.fixture
def fleetmark(settings: Settings) -> Fleetmark:
    """Runs a verb on a store and a cache in the test's directory."""
    names = ("home", "inventory", "suites", "lease_dir", "store_retry_s")
    environ = {f"FLEETMARK_{name.upper()}": str(getattr(settings, name)) for name in names}
    environ |= {"FLEETMARK_CACHE_BYTES": "1000000000", "FLEETMARK_CACHE_FLOOR_BYTES": "0"}
    return lambda *argv: CliRunner().invoke(main, argv, env=environ)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Forty samples of two files each."""
    folder = tmp_path / "photos"
    for number in range(40):
        (folder / f"{number % 4}").mkdir(parents=True, exist_ok=True)
        (folder / f"{number % 4}/{number:03d}.jpg").write_bytes(bytes([number]) * (4000 + number))
        (folder / f"{number % 4}/{number:03d}.cls").write_text(str(number))
    return folder


def publish(fleetmark: Fleetmark, source: Path, *more: str) -> dict[str, object]:
    done = fleetmark("dataset", "publish", str(source), "--name", "photos", "--shard-size", "64KiB", "--json", *more)
    assert done.exit_code == 0, done.output
    made: dict[str, object] = json.loads(done.stdout)
    return made


def test_a_published_version_is_listed_shown_and_has_a_row(fleetmark: Fleetmark, source: Path) -> None:
    made = publish(fleetmark, source, "--note", "first")
    (listed,) = json.loads(fleetmark("dataset", "list", "--json").stdout)
    assert listed == {**made, "tags": ["latest"]}
    assert (made["samples"], made["files"], made["note"]) == (40, 80, "first")
    assert str(made["version"])[:12] in fleetmark("dataset", "list").stdout
    assert "photos" in fleetmark("dataset", "show", "photos").stdout
    (row,) = json.loads(fleetmark("query", "SELECT version, files FROM datasets", "--json").stdout)
    assert row == {"version": made["version"], "files": 80}


def test_a_dry_run_says_what_would_be_packed_and_touches_nothing(
    fleetmark: Fleetmark, source: Path, settings: Settings
) -> None:
    done = fleetmark("dataset", "publish", str(source), "--name", "photos", "--dry-run", "--json")
    assert json.loads(done.stdout)["files"] == 80
    assert not (settings.home / "store").exists()


def test_a_difference_names_files_and_counts_what_is_new(fleetmark: Fleetmark, source: Path) -> None:
    before = publish(fleetmark, source)["version"]
    (source / "0/new.jpg").write_bytes(b"new")
    (source / "1/001.cls").write_text("other")
    (source / "2/002.jpg").unlink()
    after = publish(fleetmark, source)["version"]
    done = json.loads(fleetmark("dataset", "diff", f"photos@{before}", f"photos@{after}", "--json").stdout)
    assert (done["added"], done["removed"], done["changed"]) == (["0/new.jpg"], ["2/002.jpg"], ["1/001.cls"])
    shown = fleetmark("dataset", "diff", f"photos@{str(before)[:6]}", "photos")
    assert "added\t0/new.jpg" in shown.stdout
    assert "1 files added, 1 removed, 1 changed" in shown.stderr


def test_a_tag_moves_is_removed_and_remembers(fleetmark: Fleetmark, source: Path) -> None:
    version = publish(fleetmark, source)["version"]
    assert fleetmark("dataset", "tag", "photos", "prod").exit_code == 0
    refused = fleetmark("dataset", "rm", f"photos@{version}")
    assert (refused.exit_code, "is tagged latest, prod" in refused.stderr) == (2, True)
    for tag in ("prod", "latest"):
        assert fleetmark("dataset", "tag", f"photos@{version}", tag, "--remove").exit_code == 0
    moves = json.loads(fleetmark("dataset", "tag", "photos", "--json").stdout)
    assert [(move["tag"], move["version"]) for move in moves] == [
        ("latest", version), ("latest", None), ("prod", version), ("prod", None),
    ]  # fmt: skip
    assert fleetmark("dataset", "rm", f"photos@{version}").exit_code == 0
    assert json.loads(fleetmark("dataset", "list", "--json").stdout) == []


def test_verify_finds_a_flipped_bit_and_names_the_object(
    fleetmark: Fleetmark, source: Path, settings: Settings
) -> None:
    publish(fleetmark, source)
    assert json.loads(fleetmark("dataset", "verify", "photos", "--json").stdout)["intact"]
    shard = next((settings.home / "store/datasets/photos/shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    done = fleetmark("dataset", "verify", "photos")
    assert (done.exit_code, shard.name in done.stderr) == (1, True)


def test_what_was_staged_is_in_the_cache_and_downloads_as_it_was(
    fleetmark: Fleetmark, source: Path, tmp_path: Path
) -> None:
    made = publish(fleetmark, source)
    staged = json.loads(fleetmark("dataset", "stage", "photos", "--json").stdout)
    assert {transfer["arrival"] for transfer in staged["transfers"]} == {"fetched"}
    cached = json.loads(fleetmark("cache", "ls", "--json").stdout)
    assert len(cached) == made["shards"]
    assert fleetmark("cache", "verify").exit_code == 0
    assert fleetmark("cache", "pin", "photos").exit_code == 0
    assert json.loads(fleetmark("cache", "evict", "--all", "--json").stdout)["evicted"] == []
    assert fleetmark("cache", "unpin", "photos").exit_code == 0
    assert len(json.loads(fleetmark("cache", "evict", "--all", "--json").stdout)["evicted"]) == made["shards"]
    assert fleetmark("cache", "gc").exit_code == 0
    target = tmp_path / "copy"
    assert fleetmark("dataset", "download", "photos", str(target), "--as", "files").exit_code == 0
    assert contents(target) == contents(source)
    (rows,) = json.loads(fleetmark("query", "SELECT count(*) AS n FROM staging", "--json").stdout)
    assert rows == {"n": made["shards"]}


def test_a_scrub_lands_a_row_for_each_shard_and_the_collector_prints_before_it_deletes(
    fleetmark: Fleetmark, source: Path
) -> None:
    made = publish(fleetmark, source)
    done = fleetmark("dataset", "scrub", "photos", "--json")
    assert done.exit_code == 0, done.output
    (rows,) = json.loads(fleetmark("query", "SELECT count(*) AS n FROM scrubs", "--json").stdout)
    assert rows["n"] >= int(str(made["shards"]))
    done = fleetmark("dataset", "gc", "photos", "--json")
    assert done.exit_code == 0, done.output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            ("dataset", "publish", "/nowhere", "--name", "x"),
            "source file:///nowhere: there is no such file or directory",
        ),
        (("dataset", "publish", "foo://x", "--name", "x"), "Protocol not known: foo"),
        (("dataset", "publish", "/tmp", "--name", "../x"), "'../x' names no dataset, tag or version"),
        (("dataset", "publish", "/tmp", "--name", "x", "--shard-size", "big"), "'big' is no size such as 128MiB"),
        (("dataset", "publish", "/tmp", "--name", "x", "--shard-size", "1B"), "greater than or equal to 65536"),
        (("dataset", "publish", "/tmp", "--name", "x", "--parent", "y"), "unknown dataset 'x'"),
        (("dataset", "show", "nope"), "unknown dataset 'nope'; known: none"),
        (("dataset", "list", "nope"), "unknown dataset 'nope'"),
        (("dataset", "diff", "a", "b"), "unknown dataset 'a'"),
        (("dataset", "tag", "nope"), "unknown dataset 'nope'"),
        (("dataset", "tag", "nope", "prod"), "unknown dataset 'nope'"),
        (("dataset", "tag", "nope", "prod", "--remove"), "unknown dataset 'nope'"),
        (("dataset", "rm", "nope@abcdef"), "unknown dataset 'nope'"),
        (("dataset", "verify", "a@b@c"), "names no dataset"),
        (("dataset", "stage", "nope"), "unknown dataset 'nope'"),
        (("dataset", "download", "nope", "out"), "unknown dataset 'nope'"),
        (("dataset", "gc", "nope"), "unknown dataset 'nope'"),
        (("dataset", "scrub", "nope"), "unknown dataset 'nope'"),
        (("cache", "pin", "nope"), "unknown dataset 'nope'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input_ends_with_one_sentence_and_status_2(
    fleetmark: Fleetmark, argv: tuple[str, ...], sentence: str
) -> None:
    done = fleetmark(*argv)
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
