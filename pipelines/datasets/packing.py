"""Packing: which source files go into which shard. The same files, parameters and parent always give the same groups.

What the parent version has in a shard stays together, so that files which come or go elsewhere leave that shard as it
is. What is new is cut into groups of equal size, in the order of its names.

A million files are more than one wants in memory: the units lie in a temporary SQLite database on disk.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import accumulate
from typing import NamedTuple

from pipelines.datasets.manifest import Packing
from pipelines.datasets.source import Piece, SourceFile

MOST_FILES = 32_768
"""Of one shard, about: what its index and its plan take in memory does not grow with the dataset."""

_REWRITTEN = 4  # times what is new: so much of small shards is packed anew with it, so that they do not pile up
_MOST_SMALL = 8  # shards less than half full: where there would be more, all but half as many are packed anew
_GROWN = 1.5  # times the size aimed at: a kept group that has grown beyond, its largest sample apart, is packed anew

_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -16000;
CREATE TABLE listed (
    path TEXT, start INTEGER, length INTEGER, weight INTEGER, sample TEXT, size INTEGER, etag TEXT
);
CREATE TABLE unit (
    path TEXT, start INTEGER, length INTEGER, weight INTEGER, sample TEXT, size INTEGER, etag TEXT, grp INTEGER,
    PRIMARY KEY (path, start)
) WITHOUT ROWID;
CREATE TABLE parent (path TEXT, start INTEGER, grp INTEGER, PRIMARY KEY (path, start)) WITHOUT ROWID;
CREATE TABLE columns (columns TEXT PRIMARY KEY, path TEXT) WITHOUT ROWID;
"""


class Unit(NamedTuple):
    """What is packed as a whole. Units of one sample stay together."""

    piece: Piece
    weight: int  # bytes it takes in a shard
    sample: str
    columns: str = ""  # of format parquet: what the file has, see formats.columns; on one unit of each file


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
            digest.update(f"{path}\0{size}\0{etag}\n".encode())
        return Totals(files, size_bytes, digest.hexdigest())

    @property
    def columns(self) -> Iterator[tuple[str, str]]:
        """What different columns the files have, with the first path that has them, sorted by it."""
        yield from self._database.execute("SELECT path, columns FROM columns ORDER BY path")

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
        database.executemany("INSERT OR IGNORE INTO parent VALUES (?, ?, ?)", parent)  # one unit may lie in two shards
        database.executemany(
            "INSERT INTO listed VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (path, start, length, weight, sample, size_bytes, etag)
                for ((path, size_bytes, etag), start, length), weight, sample, _ in _columns_noted(database, units)
            ),
        )
        database.execute(  # in order: a tree that grows at its end alone is made five times as fast
            "INSERT INTO unit SELECT listed.*, grp FROM listed LEFT JOIN parent USING (path, start)"
            " ORDER BY path, start"
        )
        database.execute("DROP TABLE listed")
        if database.execute("SELECT 1 FROM parent LIMIT 1").fetchone():
            _keep_samples_whole(database)
            _dissolve(database, packing.shard_bytes)
        _pack_the_rest(database, packing.shard_bytes)
        database.execute("CREATE INDEX by_group ON unit (grp, sample, path, start)")
        yield Groups(database)


def group_id(pieces: Iterable[Piece], packing: Packing, columns: str | None = None) -> str:
    """The hash of a group's files as they were listed and of how they are packed: the same id gives the same shards."""
    digest = hashlib.sha256(f"{packing.model_dump_json()}\n{columns or ''}\n".encode())
    for (path, size_bytes, etag), start, length in pieces:
        digest.update(f"{path}\0{size_bytes}\0{etag}\0{start}\0{length}\n".encode())
    return digest.hexdigest()


def _columns_noted(database: sqlite3.Connection, units: Iterable[Unit]) -> Iterator[Unit]:
    for unit in units:
        if unit.columns:
            database.execute(
                "INSERT INTO columns VALUES (?, ?) ON CONFLICT DO UPDATE SET path = min(path, excluded.path)",
                (unit.columns, unit.piece.file.path),
            )
        yield unit


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
        "SELECT grp, sum(cost), sum(units), max(cost) FROM ("  # noqa: S608
        f"SELECT grp, sum({_cost(shard_bytes)}) AS cost, count(*) AS units FROM unit WHERE grp IS NOT NULL"
        " GROUP BY grp, sample) GROUP BY grp"
    ).fetchall()
    new = _new(database, shard_bytes)
    freed, small = [], []
    for group, cost, units, largest in now:
        is_small = cost < shard_bytes / 2
        # as it is first packed, a group without its largest sample is no larger than the size aimed at
        if cost - largest > _GROWN * shard_bytes or (is_small and units != before[group]):
            freed.append(group)
            new += cost
        elif is_small:
            small.append((cost, group))
    if new:  # the same source once more is packed as it was
        freed += _small_ones(sorted(small), _REWRITTEN * new)
    database.execute("CREATE TEMP TABLE freed (grp INTEGER PRIMARY KEY)")
    database.executemany("INSERT INTO freed VALUES (?)", ((group,) for group in freed))
    database.execute("UPDATE unit SET grp = NULL WHERE grp IN (SELECT grp FROM freed)")


def _small_ones(small: list[tuple[int, int]], budget: int) -> list[int]:
    """The smallest groups: as many as the budget allows, and so many that few are left."""
    within = sum(1 for so_far in accumulate(cost for cost, _ in small) if so_far <= budget)
    too_many = len(small) - _MOST_SMALL // 2 if len(small) - within > _MOST_SMALL else 0
    return [group for _, group in small[: max(within, too_many)]]


def _cost(shard_bytes: int) -> str:
    """What a unit counts for, as SQL: its bytes, and no less than keeps a group below `MOST_FILES`."""
    return f"max(weight, {shard_bytes // MOST_FILES})"


def _new(database: sqlite3.Connection, shard_bytes: int) -> int:
    """What all the units cost that have no group."""
    query = f"SELECT coalesce(sum({_cost(shard_bytes)}), 0) FROM unit WHERE grp IS NULL"  # noqa: S608
    return int(database.execute(query).fetchone()[0])


def _pack_the_rest(database: sqlite3.Connection, shard_bytes: int) -> None:
    """Cut what has no group into as few groups as the size allows, all of them equally full, to one sample."""
    total = _new(database, shard_bytes)
    if not total:
        return
    first = database.execute("SELECT coalesce(max(grp), -1) + 1 FROM unit").fetchone()[0]
    samples = database.execute(
        f"SELECT sample, sum({_cost(shard_bytes)}) FROM unit WHERE grp IS NULL GROUP BY sample ORDER BY sample"  # noqa: S608
    )
    database.execute("CREATE TEMP TABLE placed (sample TEXT PRIMARY KEY, grp INTEGER) WITHOUT ROWID")
    database.executemany("INSERT INTO placed VALUES (?, ?)", _placed(samples, first, -(-total // shard_bytes), total))
    database.execute(
        "UPDATE unit SET grp = (SELECT grp FROM placed WHERE placed.sample = unit.sample) WHERE grp IS NULL"
    )


def _placed(samples: Iterable[tuple[str, int]], first: int, count: int, total: int) -> Iterator[tuple[str, int]]:
    """Each sample in the group that its middle falls into."""
    before = 0
    for sample, cost in samples:
        yield sample, first + min(count - 1, count * (2 * before + cost) // (2 * total))
        before += cost
