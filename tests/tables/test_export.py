"""Exported files hold the rows of the answer, whole or not at all."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.errors import BadFile, BadQuery, Unknown
from pipelines.storage import Store
from pipelines.tables.export import export
from pipelines.tables.query import open_reader
from tests.tables import nights


@pytest.fixture
def landed(store: Store) -> Store:
    nights.put(store, nights.rows(values=(1.0, 2.0, 6.0)))
    return store


def test_a_table_becomes_a_parquet_file_with_its_types(landed: Store, tmp_path: Path) -> None:
    with open_reader(landed) as reader:
        assert export(reader, "measurements", tmp_path / "all.parquet") == 3
        assert pq.read_table(tmp_path / "all.parquet").equals(reader.arrow("FROM measurements"))


def test_csv_and_json_hold_the_same_rows(landed: Store, tmp_path: Path) -> None:
    sql = "SELECT repeat, value, unit, labels, started_at FROM results ORDER BY repeat"
    with open_reader(landed) as reader:
        assert export(reader, sql, tmp_path / "rows.csv") == export(reader, sql, tmp_path / "rows", "json") == 3
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    objects = json.loads((tmp_path / "rows").read_text())
    assert objects[0] == {
        "repeat": 1, "value": 1.0, "unit": "1/s", "labels": {"direct_io": "true"}, "started_at": "2026-11-20T02:01:00Z",
    }  # fmt: skip
    assert [{**row, "repeat": int(row["repeat"]), "value": float(row["value"]), "labels": json.loads(row["labels"])}
            for row in rows] == objects  # fmt: skip


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_an_answer_without_rows_is_a_valid_file(store: Store, tmp_path: Path, form: str) -> None:
    with open_reader(store) as reader:
        assert export(reader, "results", tmp_path / f"none.{form}") == 0
    assert (tmp_path / f"none.{form}").stat().st_size > 0


def test_a_failed_export_leaves_the_file_that_was_there(landed: Store, tmp_path: Path) -> None:
    target = tmp_path / "kept.csv"
    target.write_text("before")
    with open_reader(landed) as reader:
        with pytest.raises(BadQuery):
            export(reader, "SELECT error('no') FROM results", target)
        with pytest.raises(BadFile, match="export"):
            export(reader, "results", tmp_path / "no" / "such.csv")
    assert [path.name for path in tmp_path.glob("*.csv")] == ["kept.csv"]
    assert target.read_text() == "before"


def test_an_unknown_table_or_format_is_refused_with_the_known_ones(landed: Store, tmp_path: Path) -> None:
    with open_reader(landed) as reader:
        with pytest.raises(Unknown, match=r"unknown table 'result'; known: .*results"):
            export(reader, "result", tmp_path / "x.csv")
        with pytest.raises(Unknown, match="unknown file format 'xlsx'; known: parquet, csv, json"):
            export(reader, "results", tmp_path / "x.xlsx")
