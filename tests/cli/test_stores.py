"""The same run on a directory and on S3: only settings differ."""

import json

import pytest
from click.testing import CliRunner, Result

from pipelines.cli import main
from pipelines.settings import Settings

SHORT = ("--set", "runtime_s=0.2", "--set", "ramp_s=0", "--set", "size_bytes=1048576", "--set", "profile=mixed")


def fleetmark(settings: Settings, *argv: str) -> Result:
    names = ("home", "inventory", "suites", "lease_dir", "store", "s3_endpoint")
    environ = {f"FLEETMARK_{name.upper()}": str(value) for name in names if (value := getattr(settings, name))}
    done = CliRunner().invoke(main, argv, env=environ)
    assert done.exit_code == 0, done.output
    return done


def test_a_run_goes_from_plan_to_report_and_is_reparsed_on_every_store(
    any_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    done = fleetmark(any_settings, "run", "--suite", "quick", *SHORT, "--repeats", "1", "--json")
    run_id = json.loads(done.stdout)[0]["run_id"]
    assert f"/reports/{run_id}/index.html" in done.stderr
    assert fleetmark(any_settings, "reparse", run_id, "--json").stdout == done.stdout
    (counted,) = json.loads(fleetmark(any_settings, "query", "SELECT count(*) AS n FROM results", "--json").stdout)
    exported = tmp_path_factory.mktemp("out") / "results.csv"
    fleetmark(any_settings, "export", "results", str(exported))
    assert len(exported.read_text().splitlines()) == counted["n"] + 1
