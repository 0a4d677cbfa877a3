"""Which version of each table an answer is read from: the newest, or what stood at a version or a time."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import unquote

from pipelines.errors import HistoryGone, Unknown
from pipelines.storage import Store
from pipelines.tables import delta
from pipelines.tables.schema import PARTITION

if TYPE_CHECKING:
    from deltalake import DeltaTable

Tables = Mapping[str, "DeltaTable | None"]
"""By name; None where the table is not there, or was not yet there."""


def take(store: Store, names: Iterable[str], as_of: int | datetime | None = None) -> Tables:
    """The tables as of now, as of an instant, or as of the landing that made version `as_of` of `runs`.

    A landing commits to the tables in the order of `names`, to `runs` last, so that the instant of that commit has all
    of a run or none. They are opened the other way round: a run that `runs` calls complete is then in all of them.
    Instants are those that the commits themselves carry, to the millisecond.

    Raises:
        Unknown: `runs` has no such version.
        HistoryGone: the log no longer reaches back that far.
    """
    tables = {name: open_newest(store, name) for name in reversed(tuple(names))}
    if as_of is None:
        return tables
    instant = as_of if isinstance(as_of, datetime) else _committed_at(tables["runs"], as_of)
    return {name: table and _as_of(name, table, instant) for name, table in tables.items()}


def open_newest(store: Store, name: str) -> "DeltaTable | None":
    """The table as it is now, or None where nothing has been landed.

    Raises:
        StoreRefused: the store does not let us read it.
        StoreUnreachable: after retries for as long as the settings say.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    uri = delta.uri(store, name)
    try:
        return DeltaTable(uri, storage_options=store.delta_options)
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as e:
        raise delta.failure(store, name, e) from e


def files(store: Store, table: "DeltaTable", month: str | None = None) -> list[str]:
    """The Parquet files of this version and no others: a glob would count the rows of superseded files again."""
    uris = table.file_uris(file_pruning_predicate=[(PARTITION, "=", month)] if month else None)
    return [unquote(uri) for uri in uris] if store.is_local else uris


def _commits(table: "DeltaTable") -> dict[int, datetime]:
    """When each version that the log still has was committed, oldest first."""
    history = sorted(table.history(), key=lambda commit: int(commit["version"]))
    return {int(commit["version"]): datetime.fromtimestamp(commit["timestamp"] / 1000, UTC) for commit in history}


def _committed_at(runs: "DeltaTable | None", version: int) -> datetime:
    commits = _commits(runs) if runs else {}
    if version not in commits:
        known = (f"{min(commits)} to {max(commits)}",) if commits else ()
        raise Unknown("version of table runs", str(version), known)
    return commits[version]


def _as_of(name: str, table: "DeltaTable", instant: datetime) -> "DeltaTable | None":
    commits = _commits(table)
    version = max((each for each, at in commits.items() if at <= instant), default=None)
    if version is not None:
        table.load_as_version(version)
        return table
    first = min(commits)
    if first > 0:
        raise HistoryGone(name, f"{instant:%Y-%m-%dT%H:%M:%SZ}", f"{commits[first]:%Y-%m-%dT%H:%M:%SZ}")
    return None
