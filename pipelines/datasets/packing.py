"""Packing: which source files go into which shard. The same files, parameters and parent always give the same groups.

What the parent version has in a shard stays together, so that files which come or go elsewhere leave that shard as it
is. What is new is cut into groups of equal size, in the order of its names.

A million files are more than one wants in memory: the units lie in a temporary SQLite database on disk.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import groupby
from typing import NamedTuple

from pipelines.datasets.manifest import Packing
from pipelines.datasets.source import Piece, SourceFile

MOST_FILES = 32_768
"""Of one shard, about: what its index and its plan take in memory does not grow with the dataset."""

_REWRITTEN = 4  # times what is new: so much of small shards is packed anew with it, so that they do not pile up
_GROWN = 1.5  # times the size aimed at: a kept group that has grown beyond is packed anew

_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -16000;
CREATE TABLE unit (
    path TEXT, start INTEGER, length INTEGER, weight INTEGER, sample TEXT, size INTEGER, etag TEXT, grp INTEGER,
    PRIMARY KEY (path, start)
) WITHOUT ROWID;
CREATE TABLE parent (path TEXT, start INTEGER, grp INTEGER, PRIMARY KEY (path, start)) WITHOUT ROWID;
"""


class Unit(NamedTuple):
    """What is packed as a whole. Units of one sample stay together."""

    piece: Piece
    weight: int  # bytes it takes in a shard
    sample: str


class Kept(NamedTuple):
    """A unit of the parent version, and which of its groups it lies in."""

    path: str
    start: int
    group: int


class Totals(NamedTuple):
    files: int
    size_bytes: int
    listing: str  # sha256 of every file's name, size and etag


class Groups:
    """The groups of one version; made by `pack`."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    @property
    def totals(self) -> Totals:
        files, size_bytes, digest = 0, 0, hashlib.sha256()
        rows = self._database.execute("SELECT path, size, etag FROM unit GROUP BY path ORDER BY path")
        for path, size, etag in rows:
            files += 1
            size_bytes += size
            digest.update(_line([path, size, etag]))
        return Totals(files, size_bytes, digest.hexdigest())

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(DISTINCT grp) FROM unit").fetchone()[0])

    def __iter__(self) -> Iterator[tuple[Piece, ...]]:
        """Each group's pieces in their order in the shard; groups in the order of their first sample."""
        firsts = self._database.execute("SELECT grp FROM unit GROUP BY grp ORDER BY min(sample), min(path), min(start)")
        for (group,) in firsts.fetchall():
            rows = self._database.execute(
                "SELECT path, size, etag, start, length FROM unit WHERE grp = ? ORDER BY sample, path, start", (group,)
            )
            yield tuple(Piece(SourceFile(path, size, etag), start, length) for path, size, etag, start, length in rows)


@contextmanager
def pack(units: Iterable[Unit], parent: Iterable[Kept], packing: Packing) -> Iterator[Groups]:
    """Decide on the groups of a version. `parent` is empty where there is none, or it was packed in another way."""
    with closing(sqlite3.connect("")) as database:  # a file without a name, see sqlite.org/inmemorydb.html
        database.executescript(_SCHEMA)
        database.executemany("INSERT INTO parent VALUES (?, ?, ?)", parent)
        database.executemany(
            "INSERT INTO unit VALUES (?, ?, ?, ?, ?, ?, ?, (SELECT grp FROM parent WHERE path = ?1 AND start = ?2))",
            (
                (piece.file.path, piece.start, piece.length, weight, sample, piece.file.size_bytes, piece.file.etag)
                for piece, weight, sample in units
            ),
        )
        if database.execute("SELECT 1 FROM parent LIMIT 1").fetchone():
            _keep_samples_whole(database)
            _dissolve(database, packing.shard_bytes)
        _pack_the_rest(database, packing.shard_bytes)
        database.execute("CREATE INDEX by_group ON unit (grp, sample, path, start)")
        yield Groups(database)


def group_id(pieces: Iterable[Piece], packing: Packing) -> str:
    """The hash of a group's files as they were listed and of how they are packed: the same id gives the same shards."""
    digest = hashlib.sha256(_line(packing.model_dump(mode="json")))
    for piece in pieces:
        digest.update(_line([*piece.file, piece.start, piece.length]))
    return digest.hexdigest()


def _line(body: object) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _keep_samples_whole(database: sqlite3.Connection) -> None:
    """A file that joins a sample goes where the sample is."""
    database.execute("CREATE TEMP TABLE torn AS SELECT sample, min(grp) AS grp FROM unit GROUP BY sample"
                     " HAVING count(grp) BETWEEN 1 AND count(*) - 1 OR min(grp) <> max(grp)")  # fmt: skip
    database.execute("CREATE INDEX torn_sample ON torn (sample)")
    database.execute("UPDATE unit SET grp = (SELECT grp FROM torn WHERE torn.sample = unit.sample)"
                     " WHERE sample IN (SELECT sample FROM torn)")  # fmt: skip


def _dissolve(database: sqlite3.Connection, shard_bytes: int) -> None:
    """Packed anew are groups that have grown too large, small ones that lost something, and some small ones beside."""
    before = dict(database.execute("SELECT grp, count(*) FROM parent GROUP BY grp"))
    now = database.execute(
        "SELECT grp, sum(weight), count(*), count(DISTINCT sample) FROM unit WHERE grp IS NOT NULL GROUP BY grp"
    ).fetchall()
    new_bytes = database.execute("SELECT coalesce(sum(weight), 0) FROM unit WHERE grp IS NULL").fetchone()[0]
    freed, small = [], []
    for group, weight, units, samples in now:
        too_large = max(weight / shard_bytes, units / MOST_FILES) > _GROWN and samples > 1
        is_small = weight < shard_bytes / 2 and units < MOST_FILES / 2
        if too_large or (is_small and units != before[group]):
            freed.append(group)
            new_bytes += weight
        elif is_small:
            small.append((weight, group))
    budget = _REWRITTEN * new_bytes
    for weight, group in sorted(small):
        budget -= weight
        if budget < 0:
            break
        freed.append(group)
    database.execute("CREATE TEMP TABLE freed (grp INTEGER PRIMARY KEY)")
    database.executemany("INSERT INTO freed VALUES (?)", ((group,) for group in freed))
    database.execute("UPDATE unit SET grp = NULL WHERE grp IN (SELECT grp FROM freed)")


def _pack_the_rest(database: sqlite3.Connection, shard_bytes: int) -> None:
    """Cut what has no group into as few groups as the size allows, all of them equally full, to one sample."""
    cost = f"max(weight, {shard_bytes // MOST_FILES})"
    total = database.execute(f"SELECT sum({cost}) FROM unit WHERE grp IS NULL").fetchone()[0]  # noqa: S608
    if total is None:
        return
    first = database.execute("SELECT coalesce(max(grp), -1) + 1 FROM unit").fetchone()[0]
    rows = database.execute(
        f"SELECT sample, path, start, {cost} FROM unit WHERE grp IS NULL ORDER BY sample, path, start"  # noqa: S608
    )
    database.execute(
        "CREATE TEMP TABLE placed (path TEXT, start INTEGER, grp INTEGER, PRIMARY KEY (path, start)) WITHOUT ROWID"
    )
    database.executemany("INSERT INTO placed VALUES (?, ?, ?)", _placed(rows, first, -(-total // shard_bytes), total))
    database.execute(
        "UPDATE unit SET grp = (SELECT grp FROM placed p WHERE p.path = unit.path AND p.start = unit.start)"
        " WHERE grp IS NULL"
    )


def _placed(rows: Iterable[tuple[str, str, int, int]], first: int, count: int, total: int) -> Iterator[Kept]:
    """Each unit in the group that the middle of its sample falls into."""
    before = 0
    for _, sample in groupby(rows, key=lambda row: row[0]):
        units = [(path, start, cost) for _, path, start, cost in sample]
        size = sum(cost for _, _, cost in units)
        group = first + min(count - 1, count * (2 * before + size) // (2 * total)) if total else first
        before += size
        yield from (Kept(path, start, group) for path, start, _ in units)
