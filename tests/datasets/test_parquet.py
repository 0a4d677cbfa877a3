"""Format parquet: rows of Parquet, CSV and JSON lines are in the shards, all of them, unchanged, in one schema."""

import gzip
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import boto3
import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st

from pipelines import storage
from pipelines.datasets import catalog, names, publications, publish
from pipelines.datasets.formats import columns, parquet, rows
from pipelines.datasets.manifest import Entry, Manifest, Packing
from pipelines.datasets.meter import Meter
from pipelines.datasets.source import Piece, open_source
from pipelines.errors import SourceChanged, SourceRefused
from pipelines.settings import Settings
from pipelines.storage import Store
from tests.servers import S3

AT = datetime(2026, 11, 25, tzinfo=UTC)
ROWS = [
    {
        "id": number,
        "x": number / 7,
        "text": f"row {number}, été",
        "flag": number % 3 == 0,
        "gap": None if number % 5 else "g",
    }
    for number in range(1000)
]
TABLE = pa.Table.from_pylist(ROWS)


def silent(line: str) -> None:
    pass


def request(source: Path | str, shard_bytes: int = 2**20, zstd_level: int | None = None) -> publications.Request:
    packing = Packing(format="parquet", shard_bytes=shard_bytes, zstd_level=zstd_level)
    return publications.Request(source=str(source), dataset="d", packing=packing)


def published(settings: Settings, source: Path | str, shard_bytes: int = 2**20) -> Manifest:
    return publish.publish(settings, storage.open_store(settings), request(source, shard_bytes), AT, silent)


def paths(store: Store, of: Manifest) -> list[Path]:
    return [store.path(names.shard_key("d", shard.sha256)) for shard in of.body.shards]


def table(store: Store, of: Manifest) -> pa.Table:
    return pyarrow.dataset.dataset([str(path) for path in paths(store, of)], format="parquet").to_table()


def entries(store: Store, of: Manifest) -> list[list[Entry]]:
    return [list(catalog.index_of(store, "d", shard)) for shard in of.body.shards]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's library asks no server."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


# --- what goes in comes out ---------------------------------------------------------------------------------


def as_json_lines(of: pa.Table) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n" for row in of.to_pylist())


def as_csv(of: pa.Table, delimiter: str = ",") -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(of, sink, pyarrow.csv.WriteOptions(delimiter=delimiter))
    return sink.getvalue().to_pybytes()


def as_parquet(of: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(of, sink, **options)
    return sink.getvalue().to_pybytes()


KINDS: dict[str, Callable[[pa.Table], bytes]] = {
    "a.parquet": as_parquet,
    "many groups.parquet": lambda of: as_parquet(of, row_group_size=64),
    "snappy.PARQUET": lambda of: as_parquet(of, compression="snappy", data_page_version="2.0"),
    "a.csv": as_csv,
    "a.tsv": lambda of: as_csv(of, "\t"),
    "a.csv.gz": lambda of: gzip.compress(as_csv(of)),
    "a.jsonl": as_json_lines,
    "a.ndjson.zst": lambda of: zstandard.compress(as_json_lines(of)),
    "two members.jsonl.gz": lambda of: gzip.compress(as_json_lines(of[:10])) + gzip.compress(as_json_lines(of[10:])),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_row_of_a_file_is_in_the_shard_in_its_order(
    settings: Settings, store: Store, source: Path, name: str
) -> None:
    (source / name).write_bytes(KINDS[name](TABLE))
    made = published(settings, source)
    assert table(store, made).to_pylist() == ROWS
    assert made.samples == len(ROWS)


def test_files_of_all_kinds_become_one_table(settings: Settings, store: Store, source: Path) -> None:
    for name, written in KINDS.items():
        (source / name).write_bytes(written(TABLE))
    made = published(settings, source, 2**16)
    assert len(made.body.shards) > 1
    found = table(store, made)
    assert found.schema == TABLE.schema
    assert found.sort_by("id").column("id").to_pylist() == [row["id"] for row in ROWS for _ in KINDS]


def test_the_index_says_which_rows_of_a_shard_are_of_which_file(settings: Settings, store: Store, source: Path) -> None:
    (source / "a.csv").write_bytes(as_csv(TABLE[:10]))
    (source / "b.parquet").write_bytes(as_parquet(TABLE[10:30], row_group_size=15))
    (source / "c.jsonl").write_bytes(as_json_lines(TABLE[30:37]))
    made = published(settings, source)
    assert entries(store, made) == [
        [
            Entry(path="a.csv", at=0, offset=0, length=10),
            Entry(path="b.parquet", at=0, offset=10, length=15),
            Entry(path="b.parquet", at=1, offset=25, length=5),
            Entry(path="c.jsonl", at=0, offset=30, length=7),
        ]
    ]
    assert table(store, made).to_pylist() == ROWS[:37]


def test_hugging_face_datasets_and_pandas_read_the_shards(
    settings: Settings, store: Store, source: Path, tmp_path: Path, offline: None
) -> None:
    (source / "a.jsonl").write_bytes(as_json_lines(TABLE))
    made = published(settings, source)
    files = [str(path) for path in paths(store, made)]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "hf"))
    assert loaded.to_list() == ROWS
    pd.testing.assert_frame_equal(pd.concat(map(pd.read_parquet, files)), TABLE.to_pandas())


def test_the_feature_types_of_hugging_face_datasets_are_kept(settings: Settings, store: Store, source: Path) -> None:
    features = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog"])})
    for name in ("a", "b"):
        datasets.Dataset.from_dict({"label": [0, 1]}, features).to_parquet(source / f"{name}.parquet")
    made = published(settings, source)
    (path,) = paths(store, made)
    assert datasets.Features.from_arrow_schema(pq.read_schema(path)) == features


def test_what_describes_other_columns_than_there_are_is_dropped(
    settings: Settings, store: Store, source: Path, tmp_path: Path, offline: None
) -> None:
    datasets.Dataset.from_dict({"a": [1]}).to_parquet(source / "a.parquet")
    datasets.Dataset.from_dict({"b": [2]}).to_parquet(source / "b.parquet")
    made = published(settings, source)
    files = [str(path) for path in paths(store, made)]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "hf"))
    assert loaded.to_list() == [{"a": 1, "b": None}, {"a": None, "b": 2}]


def test_categories_come_out_as_their_values_and_pandas_says_nothing_of_its_index(
    settings: Settings, store: Store, source: Path
) -> None:
    frame = pd.DataFrame({"kind": pd.Categorical(["a", "b", "a"])}, index=[5, 6, 7])
    frame.to_parquet(source / "a.parquet")
    frame[:1].to_parquet(source / "b.parquet")
    found = table(store, published(settings, source))
    assert found.column("kind").to_pylist() == ["a", "b", "a", "a"]
    assert found.column("__index_level_0__").to_pylist() == [5, 6, 7, 5]
    assert found.schema.metadata is None
    assert found.schema.field("kind").type in {pa.string(), pa.large_string()}


def test_a_large_row_group_is_read_page_by_page_and_comes_out_whole(
    settings: Settings, store: Store, source: Path
) -> None:
    many = pa.table({"key": range(300_000), "hash": [os.urandom(24) for _ in range(300_000)]})
    (source / "a.parquet").write_bytes(as_parquet(many, compression="none", row_group_size=300_000))
    made = published(settings, source, 2**22)
    assert len(made.body.shards) > 1
    assert table(store, made).equals(many)


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "i": st.none() | st.integers(-(2**62), 2**62),
        "f": st.none() | st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0),
        "s": st.none() | st.text(st.characters(codec="utf-8")),
        "l": st.none() | st.lists(st.none() | st.booleans()),
        "n": st.none()
        | st.fixed_dictionaries({"a": st.none() | st.text('ab "\\\n,'), "b": st.lists(st.integers(0, 9))}),
    },
)
SCHEMA = pa.schema(
    {
        "i": pa.int64(),
        "f": pa.float64(),
        "s": pa.string(),
        "l": pa.list_(pa.bool_()),
        "n": pa.struct({"a": pa.string(), "b": pa.list_(pa.int64())}),
    }
)


@how(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(st.lists(st.lists(VALUES, max_size=30), min_size=1, max_size=4), st.integers(1, 7))
def test_any_rows_come_out_as_they_went_in(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory, files: list[list[dict[str, Any]]], group: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "s").mkdir()
    kinds: dict[str, Callable[[pa.Table], bytes]] = {
        "parquet": lambda of: as_parquet(of, row_group_size=group),
        "jsonl": as_json_lines,
    }
    every = {field.name: None for field in SCHEMA}
    full = {"i": 1, "f": 0.5, "s": "s", "l": [True], "n": {"a": "a", "b": [1]}}
    expected = []
    for number, some in enumerate(files):
        kind = "jsonl" if number % 2 else "parquet"
        whole = [full, *({**every, **row} for row in some)]  # the first row of JSON lines shows the types
        (folder / f"s/{number}.{kind}").write_bytes(kinds[kind](pa.Table.from_pylist(whole, SCHEMA)))
        expected.extend(whole)
    own = settings.model_copy(update={"home": folder})
    made = published(own, folder / "s", 2**16)
    assert table(storage.open_store(own), made).to_pylist() == expected


# --- CSV and JSON lines -------------------------------------------------------------------------------------


def test_csv_has_quoted_newlines_and_tells_null_from_an_empty_string(
    settings: Settings, store: Store, source: Path
) -> None:
    (source / "a.csv").write_bytes(b'id,text\r\n1,"two\nlines, ""quoted"""\r\n2,\r\n3,""\r\n,NULL\r\n')
    assert table(store, published(settings, source)).to_pylist() == [
        {"id": 1, "text": 'two\nlines, "quoted"'},
        {"id": 2, "text": None},
        {"id": 3, "text": ""},
        {"id": None, "text": "NULL"},
    ]


def test_a_csv_row_larger_than_a_block_is_read_and_the_rows_before_it_are_there_once(
    settings: Settings, store: Store, source: Path
) -> None:
    small, large = [f"{number}," + "s" * 1000 for number in range(3000)], f"3000,{'L' * 1_500_000}"
    (source / "a.csv").write_text("\n".join(["id,text", *small, large, "3001,end"]))
    found = table(store, published(settings, source))
    assert found.column("id").to_pylist() == list(range(3002))
    assert pa.compute.utf8_length(found.column("text")).to_pylist() == [*[1000] * 3000, 1_500_000, 3]


def test_nested_json_becomes_nested_columns_and_strings_stay_strings(
    settings: Settings, store: Store, source: Path
) -> None:
    wanted = [
        {"day": "2026-11-25", "box": {"at": [1, 2], "by": {"name": "ü"}}, "tags": []},
        {"day": "2026-11-25T10:00:00Z", "box": None, "tags": [{"k": "v"}]},
    ]
    (source / "a.jsonl").write_text("\n".join(map(json.dumps, wanted)))
    found = table(store, published(settings, source))
    assert found.to_pylist() == wanted
    assert found.schema.field("day").type == pa.string()


def test_a_json_line_longer_than_a_block_is_one_row(settings: Settings, store: Store, source: Path) -> None:
    wanted = [{"a": "w" * 5_000_000}, {"a": "x"}, {"a": "y" * 5_000_000}, {"a": "z"}]
    (source / "a.jsonl").write_text("\n".join(map(json.dumps, wanted)) + "\n\n")
    assert table(store, published(settings, source)).to_pylist() == wanted


BROKEN: dict[str, tuple[bytes, str]] = {
    "null.jsonl": (b'null\n{"a": 1}\n', "an object on each line"),
    "second value.jsonl": (b'{"a": 1} null\n{"a": 2}\n', "Extra data"),
    "two objects.jsonl": (b'{"a": 1} {"a": 2}\n', "more"),
    "array.jsonl": (b'[{"a": 1}]\n', "an object on each line"),
    "several lines.jsonl": (b'{"a":\n1}\n', "an object on each line"),
    "not utf-8.jsonl": (b'{"a": "\xff"}\n', "column 'a'"),
    "cut.jsonl": (b'{"a": 1}\n{"a', "JSON"),
    "cut.jsonl.gz": (gzip.compress(as_json_lines(TABLE))[:-20], "Truncated"),
    "other columns.csv": (b"a,b\n1,2\n3\n", "Expected 2 columns"),
    "twice.csv": (b"a,a\n1,2\n", "two columns 'a'"),
    "long row.csv": (b"a,b\n1,2\n3," + b"x" * 5_000_000 + b"\n", "straddl"),
    "no.parquet": (b"PAR1 but it is not", "Parquet"),
    "cut.parquet": (as_parquet(TABLE)[:-1], "Parquet"),
    "notes.txt": (b"words", ".parquet, .csv"),
    "a.parquet.gz": (b"", ".parquet, .csv"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_not_what_its_name_says_is_refused_by_name(
    settings: Settings, store: Store, source: Path, name: str
) -> None:
    body, why = BROKEN[name]
    (source / "good.jsonl").write_text('{"a": 1}\n')
    (source / name).write_bytes(body)
    with pytest.raises(SourceRefused) as refused:
        published(settings, source)
    assert refused.value.url.endswith(f": {name}")
    assert why in refused.value.problem
    assert catalog.versions(store, "d") == []


def test_damage_inside_a_parquet_file_is_refused_by_name(settings: Settings, source: Path) -> None:
    body = bytearray(as_parquet(TABLE, write_page_checksum=True))
    body[200] ^= 1
    (source / "bad.parquet").write_bytes(body)
    with pytest.raises(SourceRefused, match=r"bad\.parquet.*checksum"):
        published(settings, source)


LATE: dict[str, tuple[bytes, bytes, str]] = {
    "a.csv": (b"a,b\n" + b"1,2\n" * 600_000, b"x,2\n", "invalid value 'x'"),
    "number.jsonl": (b'{"a": 1}\n' * 300_000, b'{"a": 1.5}\n', "lines 2"),
    "name.jsonl": (b'{"a": 1}\n' * 300_000, b'{"a": 1, "new": 1}\n', "'new'"),
}


@pytest.mark.parametrize("name", LATE)
def test_a_row_beyond_the_first_block_that_does_not_fit_fails_by_name(
    settings: Settings, store: Store, source: Path, name: str
) -> None:
    begin, row, why = LATE[name]
    (source / name).write_bytes(begin + row)
    with pytest.raises(SourceRefused) as refused:
        published(settings, source)
    assert refused.value.url.endswith(f": {name}")
    assert why in refused.value.problem
    assert catalog.versions(store, "d") == []


# --- one schema ---------------------------------------------------------------------------------------------


def test_types_are_promoted_and_missing_columns_are_null(settings: Settings, store: Store, source: Path) -> None:
    (source / "a.csv").write_bytes(b"id,value,empty\n1,10,\n")
    (source / "b.jsonl").write_bytes(b'{"value": 2.5, "id": 2, "box": {"x": 1}}\n')
    (source / "c.parquet").write_bytes(
        as_parquet(pa.table({"id": pa.array([3], pa.int16()), "box": [{"y": "s"}], "day": [date(2026, 1, 1)]}))
    )
    found = table(store, published(settings, source))
    assert found.schema.names == ["id", "value", "empty", "box", "day"]
    assert found.to_pylist() == [
        {"id": 1, "value": 10.0, "empty": None, "box": None, "day": None},
        {"id": 2, "value": 2.5, "empty": None, "box": {"x": 1, "y": None}, "day": None},
        {"id": 3, "value": None, "empty": None, "box": {"x": None, "y": "s"}, "day": date(2026, 1, 1)},
    ]
    assert [field.type for field in found.schema][:3] == [pa.int64(), pa.float64(), pa.string()]


def test_types_that_nothing_holds_together_are_refused_by_both_names(settings: Settings, source: Path) -> None:
    (source / "a.csv").write_bytes(b"id,value\n1,2\n")
    (source / "b.csv").write_bytes(b"id,value\n1,n/a\n")
    with pytest.raises(SourceRefused, match=r"b\.csv: column 'value' is string, and int64 in a\.csv"):
        published(settings, source)


def test_a_number_that_its_column_cannot_hold_is_refused_by_name(settings: Settings, source: Path) -> None:
    (source / "a.parquet").write_bytes(as_parquet(pa.table({"n": [2**60 + 1]})))
    (source / "b.parquet").write_bytes(as_parquet(pa.table({"n": [0.5]})))
    with pytest.raises(SourceRefused, match=r"a\.parquet: column 'n'"):
        published(settings, source)


def test_files_without_a_row_are_in_the_index(settings: Settings, store: Store, source: Path) -> None:
    (source / "a.csv").write_bytes(b"")
    (source / "b.csv").write_bytes(b"id,text\n")
    (source / "c.jsonl").write_bytes(b"")
    (source / "d.jsonl.gz").write_bytes(gzip.compress(b""))
    (source / "e.parquet").write_bytes(as_parquet(pa.table({"id": pa.array([], pa.int64())})))
    (source / "f.csv").write_bytes(b"id,text\n1,x\n")
    made = published(settings, source)
    assert table(store, made).to_pylist() == [{"id": 1, "text": "x"}]
    assert [(entry.path, entry.length) for entry in entries(store, made)[0]] == [
        ("a.csv", 0), ("b.csv", 0), ("c.jsonl", 0), ("d.jsonl.gz", 0), ("e.parquet", 0), ("f.csv", 1),
    ]  # fmt: skip


def test_a_version_may_have_columns_and_no_row_but_not_no_column(
    settings: Settings, store: Store, source: Path
) -> None:
    (source / "a.csv").write_bytes(b"")
    with pytest.raises(SourceRefused, match="no file has a column"):
        published(settings, source)
    (source / "a.csv").write_bytes(b"id\n")
    found = table(store, published(settings, source))
    assert (found.num_rows, found.schema.names) == (0, ["id"])


# --- shards -------------------------------------------------------------------------------------------------


def numbered(source: Path, count: int, lines: int = 200) -> None:
    for number in range(count):
        body = "".join(f'{{"id": {line}, "text": "{number * line:x}"}}\n' for line in range(lines))
        (source / f"{number:03d}.jsonl").write_text(body)


def test_a_file_larger_than_a_shard_becomes_several_and_stays_so_in_the_next_version(
    settings: Settings, store: Store, source: Path
) -> None:
    wanted = [{"id": number, "key": f"{number * 2654435761 % 2**64:016x}"} for number in range(60_000)]
    (source / "large.jsonl").write_text("\n".join(map(json.dumps, wanted)))
    first = published(settings, source, 2**17)
    assert table(store, first).to_pylist() == wanted
    assert [[entry.path for entry in shard] for shard in entries(store, first)] == [["large.jsonl"]] * len(
        first.body.shards
    )
    sizes = [shard.size_bytes for shard in first.body.shards]
    assert len(sizes) > 3
    assert all(2**17 <= size < 2 * 2**17 for size in sizes[:-1])
    (source / "more.jsonl").write_text('{"id": 1, "key": "k"}\n')
    second = published(settings, source, 2**17)
    assert second.body.shards[: len(sizes)] == first.body.shards
    assert table(store, second).num_rows == len(wanted) + 1


def test_one_file_more_leaves_the_shards_of_a_hundred_as_they_are(
    settings: Settings, store: Store, source: Path
) -> None:
    numbered(source, 100)
    first = published(settings, source, 2**16)
    (source / "050b.jsonl").write_text('{"id": 1, "text": "new"}\n')
    second = published(settings, source, 2**16)
    assert len(first.body.shards) > 5
    changes = catalog.difference(store, first, second)
    assert (changes.added, changes.removed, changes.changed, changes.new_shards) == (("050b.jsonl",), (), (), 1)
    assert {shard.sha256 for shard in first.body.shards} < {shard.sha256 for shard in second.body.shards}


def test_a_file_with_a_new_column_gives_all_shards_the_new_schema(
    settings: Settings, store: Store, source: Path
) -> None:
    numbered(source, 20)
    published(settings, source, 2**16)
    (source / "new.jsonl").write_text('{"id": 1.5, "more": true}\n')
    second = published(settings, source, 2**16)
    schemas = [pq.read_schema(path) for path in paths(store, second)]
    assert all(schema.equals(schemas[0]) for schema in schemas)
    assert schemas[0] == pa.schema({"id": pa.float64(), "text": pa.string(), "more": pa.bool_()})
    assert table(store, second).num_rows == 20 * 200 + 1


@pytest.mark.parametrize("workers", [1, 7])
def test_a_version_has_the_same_id_in_any_store_with_any_number_of_workers(
    settings: Settings, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    for name, written in KINDS.items():
        (source / name).write_bytes(written(TABLE))
    here = published(settings, source, 2**16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(workers)))
    elsewhere = settings.model_copy(update={"home": tmp_path / "elsewhere"})
    assert published(elsewhere, source, 2**16).version == here.version


def test_the_level_of_compression_is_that_of_the_packing(settings: Settings, store: Store, source: Path) -> None:
    (source / "a.csv").write_bytes(as_csv(TABLE))
    light = publish.publish(settings, store, request(source, zstd_level=1), AT, silent)
    tight = publish.publish(settings, store, request(source, zstd_level=19), AT, silent)
    assert tight.stored_bytes < light.stored_bytes
    assert tight.content_bytes == light.content_bytes > light.stored_bytes
    (path,) = paths(store, tight)
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


# --- what changes meanwhile ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl"])
def test_a_file_that_changed_since_the_plan_is_refused_by_name(
    settings: Settings, store: Store, source: Path, name: str
) -> None:
    (source / name).write_bytes(KINDS[name](TABLE))
    planned = publish.plan(settings, store, request(source))
    (source / name).write_bytes(KINDS[name](TABLE.slice(0, 999)))
    with pytest.raises(SourceChanged, match=rf"{name}.*changed"):
        publish.pack(settings, store, planned, 0, Meter(silent, 1, 1, "shards"))


LONG: dict[str, Callable[[], bytes]] = {  # more than is read ahead
    "a.parquet": lambda: as_parquet(pa.table({"a": [os.urandom(32) for _ in range(500_000)]}), compression="none"),
    "a.csv": lambda: b"a,b\n" + b"1,some text\n" * 2_000_000,
    "a.csv.zst": lambda: zstandard.compress(b"a\n" + os.urandom(15_000_000).hex("\n", 20).encode()),
    "a.jsonl": lambda: b'{"a": 1, "b": "some text"}\n' * 300_000,
}


@pytest.mark.parametrize("name", LONG)
def test_a_file_that_changes_while_it_is_read_is_refused_by_name(settings: Settings, source: Path, name: str) -> None:
    (source / name).write_bytes(LONG[name]())
    opened = open_source(str(source), settings)
    (file,) = opened.files()
    found = rows.described(opened, file)
    schema = columns.read(columns.written(found.schema))
    reading = rows.reading(opened, [Piece(file, 0, found.sizes[0])], schema)
    _, batches = next(reading)
    next(batches)
    with (source / name).open("r+b") as changing:
        changing.write(b"x")
    with pytest.raises(SourceChanged, match=rf"{name}.*changed"):
        list(batches)


def test_readers_that_are_given_up_halfway_do_not_disturb_the_others(settings: Settings, source: Path) -> None:
    for number in range(8):
        (source / f"{number}.csv").write_text("a,b\n" + f"{number},{'x' * 50}\n" * 30_000)
    opened = open_source(str(source), settings)
    files = sorted(opened.files())
    schema = columns.read(columns.written(rows.described(opened, files[0]).schema))

    def read(chance: random.Random) -> int:
        file = files[chance.randrange(len(files))]
        stops_after = chance.choice([0, 1, 100])
        ((_, batches),) = rows.reading(opened, [Piece(file, 0, file.size_bytes)], schema)
        found = [batch.column("a").unique().to_pylist() for batch in itertools.islice(batches, stops_after)]
        assert all(f"{value}.csv" == file.path for values in found for value in values)
        return len(found)

    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(read, map(random.Random, range(60))))
    assert set(counts) == {0, 1, 4}


def test_a_full_disk_is_said_to_be_full(settings: Settings, source: Path) -> None:
    (source / "a.csv").write_bytes(as_csv(TABLE))
    opened = open_source(str(source), settings)
    (unit,) = parquet.units(opened)
    packing = Packing(format="parquet", shard_bytes=2**20)
    (part,) = itertools.islice(parquet.parts(opened, [unit.piece], packing, unit.columns), 1)
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        part(full)  # type: ignore[arg-type]


# --- memory, and a server -----------------------------------------------------------------------------------


PEAK = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from pipelines import storage
from pipelines.datasets import publications, publish
from pipelines.datasets.manifest import Packing
from pipelines.settings import Settings
settings = Settings(home=Path(sys.argv[1]))
packing = Packing(format="parquet", shard_bytes=2**24)
asked = publications.Request(source=sys.argv[2], dataset="d", packing=packing)
publish.publish(settings, storage.open_store(settings), asked, datetime.now(UTC), lambda line: None)
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.integration
@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl"])
def test_publishing_a_large_file_takes_less_than_two_hundred_megabytes(tmp_path: Path, source: Path, name: str) -> None:
    bodies = {
        "a.parquet": lambda: as_parquet(pa.table({"a": [os.urandom(32) for _ in range(2_000_000)]})),
        "a.csv": lambda: b"a,b\n" + b"1,some text\n" * 8_000_000,
        "a.jsonl": lambda: b'{"a": 1, "b": "some text"}\n' * 4_000_000,
    }
    (source / name).write_bytes(bodies[name]())
    script = [sys.executable, "-c", PEAK, str(tmp_path), str(source)]
    done = subprocess.run(script, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True)
    assert int(done.stdout) * 1024 < 200 * 10**6


@pytest.mark.integration
def test_objects_of_an_s3_server_become_the_same_version_as_files(
    settings: Settings, source: Path, moto: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = {name: written(TABLE) for name, written in KINDS.items()}
    bodies |= {f"long {name}": LONG[name]() for name in ("a.parquet", "a.csv.zst")}
    for name, value in moto.environ.items():
        monkeypatch.setenv(name, value)
    bucket = moto.new_bucket()
    client = boto3.client("s3", endpoint_url=moto.endpoint)
    for name, body in bodies.items():
        (source / name).write_bytes(body)
        client.put_object(Bucket=bucket, Key=f"rows/{name}", Body=body)
    remote = settings.model_copy(update={"s3_endpoint": moto.endpoint})
    assert published(remote, f"s3://{bucket}/rows", 2**22).version == published(settings, source, 2**22).version
