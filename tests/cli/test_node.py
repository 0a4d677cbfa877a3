"""The verbs by which a node's part of a run is started where there is no Airflow."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipelines import keys, stages, storage
from pipelines.cli import main
from pipelines.commands.node import variables
from pipelines.errors import BadFile
from pipelines.settings import Settings

Node = Callable[..., Result]


@pytest.fixture
def node(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Runs a verb with the node's settings in a file, and nothing of them in the environment."""
    for name in [each for each in os.environ if each.startswith("FLEETMARK_")]:
        monkeypatch.delenv(name)
    names = ("home", "lease_dir", "store_retry_s", "spool_wait_s")

    def run(*argv: str, **other: str) -> Result:
        lines = {f"FLEETMARK_{name.upper()}": str(getattr(settings, name)) for name in names} | other
        file = tmp_path / "node.env"
        file.write_text("# this node\n" + "".join(f"{name}='{value}'\n" for name, value in lines.items()))
        with monkeypatch.context() as patch:
            for name in lines:
                patch.setenv(name, "")  # so that what the verb sets is taken back
            return CliRunner().invoke(main, ("node", "--env-file", str(file), *argv))

    return run


@pytest.fixture
def run_id(settings: Settings) -> str:
    request = stages.Request(suite="quick", overrides={"runtime_s": 0.2, "ramp_s": 0, "size_bytes": 4194304}, repeats=1)
    made = stages.make_plan(settings, request, "run-1", datetime.now(UTC))
    return stages.publish_plan(storage.open_store(settings), made).run_id


def test_measure_stores_the_nodes_raw_outputs_with_the_attempt_and_says_its_progress(
    node: Node, run_id: str, settings: Settings
) -> None:
    done = node("measure", run_id, "localhost", "--attempt", "3")
    assert done.exit_code == 0, done.output
    found = storage.open_store(settings).keys_under(keys.raw_prefix(run_id))
    assert len(found) == len(stages.load_plan(storage.open_store(settings), run_id).jobs)
    assert {key.rpartition("/")[2] for key in found} == {"003.json"}
    assert "fio seq_read-4MiB repeat 1: exit 0" in done.stdout


def test_another_nodes_work_is_not_done_and_may_be_tried_again(node: Node, run_id: str, settings: Settings) -> None:
    done = node("measure", run_id, "localhost", FLEETMARK_NODE="gpu-01")
    assert done.exit_code == 1
    assert "this machine is node gpu-01" in done.stderr
    assert storage.open_store(settings).keys_under(keys.raw_prefix(run_id)) == []


@pytest.mark.parametrize("verb", ["measure", "exchange", "exchange-again"])
def test_a_run_that_is_not_there_is_not_tried_again(node: Node, verb: str) -> None:
    done = node(verb, "no-such-run", "localhost")
    assert done.exit_code == 2
    assert "unknown run 'no-such-run'" in done.stderr


def test_a_store_that_is_away_may_be_tried_again(node: Node) -> None:
    done = node(
        "measure", "run-1", "localhost", FLEETMARK_STORE="s3://bucket", FLEETMARK_S3_ENDPOINT="http://127.0.0.1:1",
        AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", FLEETMARK_STORE_RETRY_S="0",
    )  # fmt: skip
    assert done.exit_code == 1, done.output


def test_a_file_of_variables_is_read_as_a_shell_or_systemd_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "node.env"
    file.write_text("# a node\nA=1\n\nB='two words' # why\nC=\nD=\"x=y\"\n")
    assert variables(file) == {"A": "1", "B": "two words", "C": "", "D": "x=y"}


@pytest.mark.parametrize("line", ["word", "=value", "A=1 B=2", "A='open", "1A=x"])
def test_a_line_that_is_no_variable_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "node.env"
    file.write_text(f"A=1\n{line}\n")
    with pytest.raises(BadFile, match="line 2"):
        variables(file)
