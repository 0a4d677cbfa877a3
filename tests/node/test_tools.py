"""The tools of a machine: found in their version, missing, too old, or stand-ins that say so."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import benchmark, tools
from pipelines.records import Outcome, Refusal

FIO = benchmark.get("fio")


def _fio(folder: Path, script: str) -> dict[str, str]:
    (folder / "fio").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "fio").chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_installed_fio_is_found_with_its_version() -> None:
    found = tools.find_all()["fio"]
    assert (found.name, found.refusal, found.simulated) == ("fio", None, False)
    assert found.version is not None
    assert found.version[0].isdigit()


def test_missing_fio_is_not_measured_and_says_how_to_install_it(tmp_path: Path) -> None:
    reason = "fio is not installed on this node, or not on its PATH; install it: apt-get install fio"
    found = tools.find(FIO, {"PATH": str(tmp_path)})
    assert found == tools.Tool("fio", refusal=Refusal(outcome=Outcome.NOT_MEASURED, reason=reason))


def test_fio_that_is_too_old_is_a_matter_of_set_up_and_names_both_versions(tmp_path: Path) -> None:
    found = tools.find(FIO, _fio(tmp_path, "echo fio-2.1"))
    assert found.version == "2.1"
    assert found.refusal == Refusal(
        outcome=Outcome.CONFIG, reason="fio 2.1 is too old; 3.16 or later is needed: apt-get install fio"
    )


@pytest.mark.parametrize("script", ["echo hello", "exit 1", "kill -9 $$", r"printf '\377\376'"])
def test_answer_that_names_no_version_is_not_measured(script: str, tmp_path: Path) -> None:
    found = tools.find(FIO, _fio(tmp_path, script))
    assert found.version is None
    assert found.refusal is not None
    assert found.refusal.outcome is Outcome.NOT_MEASURED
    assert found.refusal.reason.startswith("fio --version printed")


@pytest.mark.parametrize(("printed", "enough"), [("3.15", False), ("3.16", True), ("3.9", False), ("4.0-rc1", True)])
def test_versions_are_compared_as_numbers(printed: str, enough: bool) -> None:
    assert (tools.judge(FIO, f"fio-{printed}\n").refusal is None) is enough


def test_options_are_asked_where_the_benchmark_says_how(tmp_path: Path) -> None:
    asking = replace(FIO, help_argv=("fio", "--help"))
    environ = _fio(tmp_path, '[ "$1" = --help ] && echo "-o, --output FILE" || echo fio-3.33')
    assert tools.find(asking, environ).help == "-o, --output FILE\n"
    assert tools.find(FIO, environ).help == ""


def test_stand_in_marks_itself_as_simulated(tmp_path: Path) -> None:
    found = tools.find(FIO, _fio(tmp_path, "echo fio-3.33; echo fleetmark-simulated >&2"))
    assert (found.version, found.simulated, found.refusal) == ("3.33", True, None)
