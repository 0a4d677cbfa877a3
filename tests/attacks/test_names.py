"""Names that somebody else chose: of nodes, objects, datasets, files in archives; links in directories of ours."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
import zstandard

from pipelines import documents, keys, settings
from pipelines.datasets import catalog, download, manifest, names
from pipelines.datasets.cache import Cache
from pipelines.datasets.manifest import Entry
from pipelines.errors import (
    BadFile,
    BadKey,
    BadReference,
    BadSettings,
    CacheUnusable,
    CorruptObject,
    DamagedShard,
    DownloadRefused,
    FleetmarkError,
)
from pipelines.inventory import Inventory
from pipelines.settings import Settings
from pipelines.spool import Spool
from pipelines.storage import Store
from tests.datasets.published import publish

HOSTILE = (
    "../x",
    "..",
    ".",
    "",
    "/etc",
    "a/b",
    "a\\b/..",
    "a\n",
    "\na",
    "a\0",
    "a b",
    "-rf",
    ".ssh",
    "a;b",
    "$(id)",
    "`id`",
    "a|b",
    "a&b",
    "a>b",
    "*",
    "a?",
    "~root",
    "%2e%2e",
    "a'b",
    'a"b',
    "<script>",
    "é",
    "\u202e",
    "a" * 64,
    "\ud800",
)
NODE = '[[nodes]]\nname = {name}\nqueue = "q"\nscratch = "s"\n'


@pytest.mark.parametrize("name", HOSTILE)
def test_no_inventory_has_a_node_or_a_tenant_of_such_a_name(name: str) -> None:
    said = json.dumps(name)
    for text in (NODE.format(name=said), NODE.format(name='"a"').replace('"q"', said)):
        with pytest.raises(BadFile):
            documents.parse(text, Inventory, "fleet.toml")
    text = NODE.format(name='"a"') + f"[tenants.{said}]\nnode_minutes_per_day = 1\n"
    with pytest.raises(BadFile):
        documents.parse(text, Inventory, "fleet.toml")


@pytest.mark.parametrize("name", HOSTILE)
def test_no_key_is_made_of_such_a_name(name: str) -> None:
    made = (
        lambda: keys.raw_key("20261121T020000Z-1a2b3c", name, "job-1", 1),
        lambda: keys.plan_key(name),
        lambda: keys.landing_key(name, "runs"),
        lambda: keys.report_key("20261121T020000Z-1a2b3c", name),
        lambda: names.staging_key("20261121T020000Z-1a2b3c", name),
    )
    for make_key in made:
        try:
            key = make_key()
        except BadKey:
            continue
        assert all(part not in {"", ".", ".."} and part.isprintable() for part in key.split("/"))
        assert os.path.normpath(f"/root/{key}") == f"/root/{key}"
    for text in (name, f"{name}@latest", f"d@{name}"):
        if text not in {"d@a&b"}:
            with pytest.raises(BadReference):
                names.parse(text)


def test_a_line_end_behind_a_name_is_part_of_it() -> None:
    with pytest.raises(BadKey):
        keys.checked("plans/x\n")
    assert not keys.is_raw("raw/2026-11-21/run/node/job/001.json\n")


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 100_000,
        "x = " + "[" * 900 + "]" * 900,
        "x = " + "{a=" * 500 + "1" + "}" * 500,
        "a." * 100_000 + "b = 1",
        "[" + "a." * 100_000 + "b]",
        "x = " + "9" * 5000,
        NODE.format(name='"a"') + "scratch_cap_bytes = 0x" + "f" * 50_000,
        NODE.format(name="[" * 300 + "]" * 300),
        "x = '" + "a" * 10_000_000 + "'",
    ],
    ids=lambda text: text[:12],
)
def test_a_file_that_python_cannot_hold_is_refused_with_a_short_sentence(text: str) -> None:
    with pytest.raises(BadFile) as refused:
        documents.parse(text, Inventory, "fleet.toml")
    assert len(str(refused.value)) < 1000


def test_a_home_of_nobody_is_refused_by_name() -> None:
    with pytest.raises(BadSettings, match="FLEETMARK_HOME"):
        settings.load({"FLEETMARK_HOME": "~nobody-of-that-name/x"})


# --- datasets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["a/\ud800", "../a", "/a", "a/../../b", "a\0"])
def test_no_index_names_a_file_that_no_folder_can_have(path: str) -> None:
    columns = {"paths": [path], "at": [0], "offsets": [0], "lengths": [1], "xxh3": [None]}
    text = json.dumps(columns).encode()
    with pytest.raises(CorruptObject):
        manifest.read_index(zstandard.compress(text), keys.sha256(text), "file:///i")


def test_a_manifest_of_a_gigabyte_is_not_read(store: Store) -> None:
    path = Path(store.path(names.version_key("d", "0" * 32)))
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(CorruptObject, match="it has 1073741824 B"):
        catalog.load_version(store, "d", "0" * 32)


def _published_with(settings: Settings, store: Store, data: bytes, index: tuple[Entry, ...], level: int | None) -> str:
    """A version whose one shard has these bytes and this index; everything about it has the right hash."""
    of = publish(settings, store, {"a.txt": b"x"}, form="tar")
    sha256, packed = manifest.write_index(index)
    shard = of.body.shards[0].model_copy(
        update={
            "sha256": keys.sha256(data),
            "size_bytes": len(data),
            "xxh3": "".join(
                manifest.digest(data[at : at + manifest.BLOCK_BYTES])
                for at in range(0, len(data), manifest.BLOCK_BYTES)
            ),
            "index": sha256,
        }
    )
    packing = of.body.packing.model_copy(update={"zstd_level": level})
    body = of.body.model_copy(update={"packing": packing, "shards": (shard,)})
    forged = of.model_copy(update={"version": body.version, "body": body})
    store.create(names.shard_key("d", shard.sha256), data)
    store.create(names.index_key("d", sha256), packed)
    store.create(names.version_key("d", forged.version), forged.model_dump_json().encode())
    return f"d@{forged.version}"


def test_a_shard_that_unpacks_to_sixteen_gigabytes_gives_the_bytes_its_index_names_and_no_more(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    frame, zeros = zstandard.ZstdCompressor(level=1).compressobj(), bytes(2**26)
    bomb = b"".join(frame.compress(zeros) for _ in range(16)) + frame.flush()
    index = (Entry(path="a.txt", offset=0, length=5, xxh3=manifest.digest(bytes(5))),)
    of = catalog.load(store, _published_with(settings, store, bomb * 16, index, level=1))
    download.download(store, of, tmp_path / "out", "files", lambda _: None)
    assert [path.stat().st_size for path in (tmp_path / "out").iterdir()] == [5]


@pytest.mark.parametrize("level", [None, 1])
def test_a_file_that_is_said_to_be_larger_than_any_memory_is_damage(
    settings: Settings, store: Store, tmp_path: Path, level: int | None
) -> None:
    from pipelines import bulk
    from pipelines.datasets.shardbytes import Content, Place, ShardBytes

    data = zstandard.compress(b"hello") if level else b"hello"
    index = (Entry(path="a.txt", offset=0, length=2**50, xxh3="0" * 16),)
    of = catalog.load(store, _published_with(settings, store, data, index, level))
    content = Content(ShardBytes(Place(store, bulk.of(store)), "d", of.body.shards[0]), bool(level))
    with pytest.raises(DamagedShard):
        content.read(0, 2**50)
    with pytest.raises(FleetmarkError):
        download.download(store, of, tmp_path / "out", "files", lambda _: None)
    assert [path for path in (tmp_path / "out").rglob("*") if path.name == "a.txt"] == []


def test_names_inside_a_tar_are_not_where_files_are_put(settings: Settings, store: Store, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, kind in (("../../evil", tarfile.REGTYPE), ("/evil", tarfile.REGTYPE), ("link", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, "/etc", 0 if kind == tarfile.SYMTYPE else 4
            archive.addfile(member, io.BytesIO(b"evil"))
    index = (Entry(path="good/a.txt", offset=512, length=4, xxh3=manifest.digest(b"evil")),)
    of = catalog.load(store, _published_with(settings, store, stream.getvalue(), index, level=None))
    download.download(store, of, tmp_path / "in/out", "files", lambda _: None)
    assert [str(p.relative_to(tmp_path / "in")) for p in (tmp_path / "in").rglob("*") if p.is_file()] == [
        "out/good/a.txt"
    ]


# --- links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["shards", "partial", "files", "pins", "notes", "damaged"])
def test_a_link_in_place_of_a_folder_of_the_cache_leads_nothing_out_of_it(tmp_path: Path, folder: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / folder).symlink_to(outside)
    with pytest.raises(CacheUnusable, match="link"):
        Cache(tmp_path / "cache", 10**6, 0)
    assert list(outside.iterdir()) == []


def test_a_link_in_the_folder_of_a_download_is_refused(settings: Settings, store: Store, tmp_path: Path) -> None:
    of = publish(settings, store, {"sub/a.txt": b"x"}, form="tar")
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "outside")
    with pytest.raises(DownloadRefused):
        download.download(store, of, tmp_path / "out", "files", lambda _: None)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_file_of_the_spool_that_names_another_place_is_not_sent(settings: Settings, store: Store) -> None:
    spool = Spool.of(settings, store)
    spool.put("raw/2026-11-21/r/n/j/001.json", b"x")
    for name in ("..,evil", ",etc,passwd", "a,..,..,b", "a\n"):
        (spool.path / name).write_bytes(keys.sha256(b"x").encode() + b"x")
    assert spool.waiting() == ["raw/2026-11-21/r/n/j/001.json"]
