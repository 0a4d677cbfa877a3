"""The command line as a stranger meets it."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from pipelines.cli import main
from pipelines.settings import Settings

Fleetmark = Callable[..., Result]
SHORT = ("--set", "runtime_s=0.2", "--set", "ramp_s=0", "--set", "size_bytes=4194304", "--repeats", "2")


@pytest.fixture
def fleetmark(settings: Settings) -> Fleetmark:
    """Runs a verb with the test's own settings; stdout, stderr and the exit status apart."""
    environ = {
        f"FLEETMARK_{name.upper()}": str(getattr(settings, name))
        for name in ("home", "inventory", "suites", "lease_dir", "store_retry_s")
    }

    def run(*argv: str) -> Result:
        return CliRunner().invoke(main, argv, env=environ)

    return run


def verbs(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from verbs(command, (*path, name))
        else:
            yield (*path, name), command


VERBS = dict(verbs())
by_verb = pytest.mark.parametrize("path", VERBS, ids=" ".join)


@by_verb
def test_every_verb_and_every_option_is_documented(path: tuple[str, ...]) -> None:
    verb = VERBS[path]
    assert verb.help
    assert [p.name for p in verb.params if isinstance(p, click.Option) and not p.help] == []


@by_verb
def test_help_of_every_verb_is_printed(fleetmark: Fleetmark, path: tuple[str, ...]) -> None:
    done = fleetmark(*path, "--help")
    assert (done.exit_code, done.stdout.split()[0]) == (0, "Usage:")


@by_verb
def test_every_verb_that_prints_a_result_has_a_form_for_scripts(path: tuple[str, ...]) -> None:
    options = {option for p in VERBS[path].params for option in p.opts}
    assert "--json" in options or path in {("up",), ("down",), ("export",)} or path[0] == "node"


@pytest.mark.parametrize(
    "argv", [("nodes",), ("suites",), ("settings",), ("env",), ("bench", "list"), ("bench", "show", "fio")]
)
def test_what_is_listed_for_people_is_one_json_document_for_scripts(
    fleetmark: Fleetmark, argv: tuple[str, ...]
) -> None:
    people, scripts = fleetmark(*argv), fleetmark(*argv, "--json")
    assert (people.exit_code, scripts.exit_code) == (0, 0)
    assert people.stdout
    assert json.loads(scripts.stdout)


def test_a_dry_run_prints_nodes_commands_seconds_and_bytes_and_touches_nothing(
    fleetmark: Fleetmark, settings: Settings
) -> None:
    done = fleetmark("plan", "--suite", "quick", "--dry-run")
    assert done.exit_code == 0
    assert "localhost" in done.stdout
    assert "fio --output=" in done.stdout
    assert "about" in done.stderr
    assert list(settings.home.iterdir()) == []


def test_a_published_plan_says_its_run(fleetmark: Fleetmark, settings: Settings) -> None:
    made = json.loads(fleetmark("plan", "--suite", "quick", "--json").stdout)
    assert (settings.home / "store/plans" / f"{made['run_id']}.json").exists()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("plan", "--suite", "nope"), "unknown suite 'nope'; known:"),
        (("plan", "--nodes", "gpu-99"), "unknown node 'gpu-99'; known: localhost"),
        (("plan", "--nodes", "gpu-*"), "matches none of the 1 nodes"),
        (("plan", "--set", "colour=red"), "'colour': there is no such parameter; known: profile,"),
        (("plan", "--set", "runtime_s=-1"), "parameter 'runtime_s'"),
        (("plan", "--set", "runtime_s"), "'runtime_s' is not PARAM=VALUE"),
        (("plan", "--repeats", "0"), "1<=x<=100"),
        (("bench", "show", "nope"), "unknown benchmark 'nope'; known: "),
        (("bench", "run", "fio", "--param", "profile=warp"), "benchmark fio, parameter 'profile'"),
        (("bench", "run", "fio", "--node", "gpu-99"), "unknown node 'gpu-99'"),
        (("run", "--suite", "disks"), "start it in the Airflow UI"),
        (("bench", "run", "raw_device"), "start it in the Airflow UI"),
        (("reparse", "20261121T020000Z-000000"), "unknown run '20261121T020000Z-000000'"),
        (("reparse", "../../etc"), "object key"),
        (("query", "DROP TABLE runs"), "only a single SELECT is answered here"),
        (("query", "SELECT nope FROM runs"), "nope"),
        (("query", "SELECT * FROM read_text('/etc/passwd')"), "Permission Error"),
        (("results", "--as-of", "soon"), "neither a version (12) nor a time"),
        (("export", "nothing", "x.csv"), "unknown table 'nothing'"),
        (("export", "runs", "x.xls"), "unknown file format 'xls'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input_ends_with_one_sentence_and_status_2(
    fleetmark: Fleetmark, argv: tuple[str, ...], sentence: str
) -> None:
    done = fleetmark(*argv)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.output


def test_a_misspelt_setting_ends_every_verb(fleetmark: Fleetmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETMARK_STOER", "s3://bench")
    done = fleetmark("nodes")
    assert (done.exit_code, "FLEETMARK_STOER: there is no such setting" in done.stderr) == (2, True)


def test_a_malformed_inventory_is_named_with_its_line(
    fleetmark: Fleetmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "broken.toml"
    path.write_text('[[nodes]]\nname = "a"\nqueue = 3\n')
    done = CliRunner().invoke(main, ["nodes"], env={"FLEETMARK_INVENTORY": str(path)})
    assert done.exit_code == 2
    assert "broken.toml, line 3, field nodes[0].queue" in done.stderr


def test_a_benchmark_that_was_not_measured_is_a_failure_that_says_why(
    fleetmark: Fleetmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = fleetmark("bench", "run", "fio")
    assert done.exit_code == 1
    assert "not_measured" in done.stderr
    assert "apt-get install fio" in done.stderr


def test_a_benchmark_runs_on_a_bare_machine_that_has_no_inventory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"FLEETMARK_HOME": "state", "FLEETMARK_LEASE_DIR": str(tmp_path), "FLEETMARK_TELEMETRY_S": "0"}
    asked = ["bench", "run", "small_files", "--param", "files=100"]
    done = CliRunner().invoke(main, [*asked, "--json"], env=environ)
    assert (done.exit_code, json.loads(done.stdout)["outcome"]) == (0, "ok")
    assert f"there is no inventory here; what is written lies in {tmp_path}/state/scratch" in done.stderr
    for where, more in ((str(tmp_path / "infra/other.toml"), []), (None, ["--node", "gpu-01"])):
        refused = CliRunner().invoke(main, [*asked, *more], env={**environ, "FLEETMARK_INVENTORY": where})
        assert (refused.exit_code, ".toml, line 1: cannot be read" in refused.stderr) == (2, True)


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fleetmark, str]:
    """A verb runner over a home in which one short run has landed, and the run's id."""
    home = tmp_path_factory.mktemp("home")
    environ = {"FLEETMARK_HOME": str(home), "FLEETMARK_LEASE_DIR": str(home)}

    def run(*argv: str) -> Result:
        return CliRunner().invoke(main, argv, env=environ)

    done = run("run", "--suite", "quick", *SHORT, "--json")
    assert done.exit_code == 0, done.output
    return run, json.loads(done.stdout)[0]["run_id"]


def test_a_run_on_this_machine_lands_every_case(landed: tuple[Fleetmark, str]) -> None:
    fleetmark, run_id = landed
    rows = json.loads(
        fleetmark("query", f"SELECT DISTINCT \"case\" AS c FROM results WHERE run_id = '{run_id}'", "--json").stdout
    )
    profiles = {row["c"].split("-")[0] for row in rows}
    assert profiles == {"seq_read", "seq_write", "rand_read", "rand_write", "mixed", "checkpoint"}


def test_results_show_the_median_of_the_repeats_with_units(landed: tuple[Fleetmark, str]) -> None:
    fleetmark, _ = landed
    done = fleetmark("results", "--metric", "read_bandwidth")
    assert done.stdout.split("\n")[0].split() == [
        "node",
        "benchmark",
        "case",
        "metric",
        "median",
        "low",
        "high",
        "repeats",
    ]
    assert "B/s" in done.stdout
    first = json.loads(fleetmark("results", "--metric", "read_bandwidth", "--json").stdout)[0]
    assert first["low"] <= first["median"] <= first["high"]
    assert (first["unit"], first["repeats"]) == ("B/s", 2)


def test_results_as_csv_are_those_as_json(landed: tuple[Fleetmark, str]) -> None:
    fleetmark, _ = landed
    rows = list(csv.DictReader(io.StringIO(fleetmark("results", "--csv").stdout)))
    assert [row["metric"] for row in rows] == [
        each["metric"] for each in json.loads(fleetmark("results", "--json").stdout)
    ]


def test_results_as_of_a_time_before_the_run_are_none(landed: tuple[Fleetmark, str]) -> None:
    fleetmark, _ = landed
    done = fleetmark("results", "--as-of", "2020-01-01", "--json")
    assert (json.loads(done.stdout), "no run is complete yet" in done.stderr) == ([], True)


def test_results_as_of_the_version_of_its_landing_are_the_runs(landed: tuple[Fleetmark, str]) -> None:
    fleetmark, run_id = landed
    assert json.loads(fleetmark("results", "--as-of", "1", "--json").stdout)[0]["run_id"] == run_id


@pytest.mark.parametrize("form", ["parquet", "csv", "json"])
def test_an_export_has_the_rows_of_the_table(landed: tuple[Fleetmark, str], tmp_path: Path, form: str) -> None:
    fleetmark, _ = landed
    count = json.loads(fleetmark("query", "SELECT count(*) AS n FROM results", "--json").stdout)[0]["n"]
    done = fleetmark("export", "results", str(tmp_path / f"out.{form}"))
    assert (done.exit_code, done.stderr.split()[0]) == (0, str(count))
    assert (tmp_path / f"out.{form}").stat().st_size > 0


def test_reparsing_what_has_not_changed_lands_nothing(landed: tuple[Fleetmark, str]) -> None:
    fleetmark, run_id = landed
    before = fleetmark("query", "SELECT count(*) AS n, max(landed_at) AS at FROM measurements", "--json").stdout
    assert fleetmark("reparse", run_id).exit_code == 0
    assert fleetmark("query", "SELECT count(*) AS n, max(landed_at) AS at FROM measurements", "--json").stdout == before


def test_one_benchmark_runs_without_a_store(fleetmark: Fleetmark, settings: Settings) -> None:
    done = fleetmark(
        "bench",
        "run",
        "fio",
        "--param",
        "runtime_s=0.2",
        "--param",
        "ramp_s=0",
        "--param",
        "size_bytes=1048576",
        "--json",
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["outcome"] == "ok"
    assert not (settings.home / "store").exists()
