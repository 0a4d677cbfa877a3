"""Manifests and indexes: they read back as they were written, or it is said that they do not."""

import json
import random
from datetime import UTC, datetime
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import settings as how_hard
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines import keys
from pipelines.datasets import manifest
from pipelines.datasets.manifest import BLOCK_BYTES, Body, Entry, Manifest, Packing, Provenance, Shard
from pipelines.errors import CorruptObject

hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)
counts = st.integers(1, 10**12)


@st.composite
def shards(draw: st.DrawFn) -> Shard:
    size = draw(st.integers(1, 4 * BLOCK_BYTES))
    blocks = -(-size // BLOCK_BYTES)
    return Shard(
        sha256=draw(hashes),
        size_bytes=size,
        xxh3=draw(st.binary(min_size=8 * blocks, max_size=8 * blocks)).hex(),
        index=draw(hashes),
        files=draw(counts),
        samples=draw(st.integers(0, 10**9)),
        content_bytes=draw(st.integers(0, 10**15)),
    )


packings = st.builds(
    Packing,
    format=st.sampled_from(["tar", "parquet", "blob"]),
    shard_bytes=st.integers(2**16, 2**36),
    zstd_level=st.one_of(st.none(), st.integers(1, 19)),
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    body = Body(dataset="d", packing=draw(packings), shards=tuple(draw(st.lists(shards(), min_size=1, max_size=4))))
    provenance = Provenance(
        source=draw(st.text()),
        listing=draw(hashes),
        packed=tuple(draw(hashes) for _ in body.shards),
        parent=draw(st.one_of(st.none(), hashes.map(lambda text: text[:32]))),
        code_version="fleetmark 1",
        environment_id="e",
        hostname=draw(st.text(max_size=20)),
        published_at=draw(st.datetimes(timezones=st.just(UTC))),
        note=draw(st.text(max_size=50)),
    )
    return Manifest(version=body.version, body=body, provenance=provenance)


def one() -> Manifest:
    shard = Shard(
        sha256="ab" * 32,
        size_bytes=BLOCK_BYTES + 1,
        xxh3="01" * 16,
        index="cd" * 32,
        files=2,
        samples=1,
        content_bytes=9,
    )
    body = Body(dataset="photos", packing=Packing(format="tar", shard_bytes=2**20, zstd_level=3), shards=(shard, shard))
    provenance = Provenance(
        source="s3://bucket/photos",
        listing="ef" * 32,
        packed=("12" * 32, "34" * 32),
        parent="5" * 32,
        code_version="fleetmark 0.1.0",
        environment_id="0123456789abcdef",
        hostname="node-1",
        published_at=datetime(2026, 11, 21, 2, 0, tzinfo=UTC),
        note="wie die Kamera sie schrieb: é",
    )
    return Manifest(version=body.version, body=body, provenance=provenance)


# --- manifests ----------------------------------------------------------------------------------------------


@given(made=manifests())
@how_hard(max_examples=50)
def test_a_manifest_reads_back_as_it_was_written(made: Manifest) -> None:
    assert manifest.read_manifest(made.model_dump_json().encode(), "file:///m") == made


def test_the_id_is_the_hash_of_the_canonical_body_alone() -> None:
    made = one()
    canonical = json.dumps(made.body.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert made.version == keys.sha256(canonical.encode())[:32] == "44149a1c4eee393fa96b2cb5a2bc54ef"


def test_any_flipped_bit_of_a_stored_manifest_is_found() -> None:
    made = one()
    data = made.model_dump_json().encode()
    chance, unnoticed = random.Random(1), []
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << chance.randrange(8)
        try:
            read = manifest.read_manifest(bytes(damaged), "file:///m")
        except CorruptObject:
            continue
        unnoticed.append((at, read == made))
    assert all(is_the_same for _, is_the_same in unnoticed), unnoticed
    assert len(unnoticed) <= 2, "but for another way to write a time, every bit tells"


@given(cut=st.integers(0, 200))
def test_a_manifest_that_is_cut_short_is_damaged(cut: int) -> None:
    data = one().model_dump_json().encode()
    with pytest.raises(CorruptObject):
        manifest.read_manifest(data[: len(data) - 1 - cut], "file:///m")


@given(data=st.binary(max_size=200))
def test_garbage_is_no_manifest_and_no_index(data: bytes) -> None:
    with pytest.raises(CorruptObject):
        manifest.read_manifest(data, "file:///m")
    with pytest.raises(CorruptObject):
        manifest.read_index(data, "0" * 64, "file:///i")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": "0" * 32}, "its body has the id"),
        ({"body": {"dataset": "other"}}, "its body has the id"),
        ({"provenance": {"hostname": "other"}}, "its provenance has the sha256"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
    ],
)
def test_a_manifest_that_was_edited_is_damaged(change: dict[str, Any], problem: str) -> None:
    stored = json.loads(one().model_dump_json())
    for name, value in change.items():
        stored[name] = {**stored[name], **value} if isinstance(value, dict) else value
    with pytest.raises(CorruptObject, match=problem):
        manifest.read_manifest(json.dumps(stored).encode(), "file:///m")


def test_a_manifest_says_of_each_shard_what_it_was_packed_from() -> None:
    made = one()
    provenance = made.provenance.model_copy(update={"packed": made.provenance.packed[:1]})
    with pytest.raises(ValidationError, match="it does not say of each shard what it was packed from"):
        Manifest(version=made.version, body=made.body, provenance=provenance)


def test_a_shard_has_a_hash_for_each_of_its_blocks() -> None:
    shard = one().body.shards[0]
    assert list(shard.blocks) == [(0, BLOCK_BYTES, "01" * 8), (BLOCK_BYTES, 1, "01" * 8)]
    for size in (1, BLOCK_BYTES, 2 * BLOCK_BYTES + 1):
        with pytest.raises(ValidationError, match="xxh3 is of 2"):
            Shard.model_validate({**shard.model_dump(), "size_bytes": size})


def test_what_is_stored_counts_equal_shards_once() -> None:
    made = one()
    assert (made.files, made.samples, made.content_bytes, made.stored_bytes) == (4, 2, 18, BLOCK_BYTES + 1)


# --- indexes ------------------------------------------------------------------------------------------------

segments = st.text(min_size=1, max_size=20).filter(lambda s: s not in {".", ".."} and not set("/\0") & set(s))
paths = st.lists(segments, min_size=1, max_size=3).map("/".join).filter(lambda path: path.isprintable())
entries = st.builds(
    Entry,
    path=paths,
    at=st.integers(0, 2**50),
    offset=st.integers(0, 2**50),
    length=st.integers(0, 2**50),
    xxh3=st.one_of(st.none(), st.binary(min_size=8, max_size=8).map(bytes.hex)),
)


@given(index=st.lists(entries, max_size=20))
def test_an_index_reads_back_as_it_was_written_and_is_named_by_its_hash(index: list[Entry]) -> None:
    sha256, data = manifest.write_index(index)
    assert manifest.read_index(data, sha256, "file:///i") == tuple(index)
    assert keys.sha256(zstandard.decompress(data)) == sha256


def test_any_flipped_bit_of_a_stored_index_is_found_or_does_no_harm() -> None:
    index = [Entry(path=f"a/{n}.jpg", offset=n * 512, length=n, xxh3=f"{n:016x}") for n in range(40)]
    sha256, data = manifest.write_index(index)
    harmless = 0
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert manifest.read_index(bytes(damaged), sha256, "file:///i") == tuple(index)
        except CorruptObject:
            continue
        harmless += 1
    assert harmless < 0.01 * 8 * len(data), "zstd has a few bits that mean nothing"


@pytest.mark.parametrize(
    "path", ["../up", "/etc/passwd", "a/../../b", "a/..", "..", ".", "", "a//b", "a/", "./a", "a\0b"]
)
def test_a_path_that_leads_out_of_its_folder_is_refused(path: str) -> None:
    columns = {"paths": [path], "at": [0], "offsets": [0], "lengths": [1], "xxh3": [None]}
    text = json.dumps(columns).encode()
    with pytest.raises(CorruptObject, match="does not stay below its folder"):
        manifest.read_index(zstandard.compress(text), keys.sha256(text), "file:///i")


@pytest.mark.parametrize(
    "columns",
    [
        [],
        {},
        {"paths": ["a"], "at": [0], "offsets": [0], "lengths": [1]},
        {"paths": ["a", "b"], "at": [0], "offsets": [0], "lengths": [1], "xxh3": [None]},
        {"paths": ["a"], "at": [0], "offsets": [-1], "lengths": [1], "xxh3": [None]},
        {"paths": [1], "at": [0], "offsets": [0], "lengths": [1], "xxh3": [None]},
        {"paths": None, "at": [0], "offsets": [0], "lengths": [1], "xxh3": [None]},
        {"paths": ["a"], "at": [0], "offsets": [0], "lengths": [1], "xxh3": ["short"]},
    ],
)
def test_what_is_no_index_is_refused_though_its_hash_is_right(columns: Any) -> None:
    text = json.dumps(columns).encode()
    with pytest.raises(CorruptObject, match="it is not the index of a shard"):
        manifest.read_index(zstandard.compress(text), keys.sha256(text), "file:///i")


@pytest.mark.parametrize("says_its_size", [True, False])
def test_a_bomb_in_place_of_an_index_is_refused_before_it_fills_the_memory(says_its_size: bool) -> None:
    if says_its_size:
        bomb = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(2**28 + 1))
    else:
        compressor = zstandard.ZstdCompressor().compressobj()
        bomb = compressor.compress(bytes(2**28 + 1)) + compressor.flush()
    assert len(bomb) < 20_000
    with pytest.raises(CorruptObject):
        manifest.read_index(bomb, "0" * 64, "file:///i")
