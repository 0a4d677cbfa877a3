"""The table `latest`: of every metric of every node the median of its newest run, kept up as runs land.

Scanning for it reads every value there is: 0.4 s for 22 million rows, where reading this table takes some milliseconds.
"""

import random
import time
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines import keys
from pipelines.errors import LandingConflict
from pipelines.storage import Store
from pipelines.tables import delta
from pipelines.tables.schema import INSTANT, LABELS, Table

if TYPE_CHECKING:
    from deltalake import DeltaTable, Transaction

TABLE = Table(
    "latest",
    pa.schema(
        [
            *(
                pa.field(name, pa.string(), nullable=False)
                for name in ("node", "cohort", "benchmark", "case", "metric")
            ),
            pa.field("labels", LABELS),
            pa.field("value", pa.float64(), nullable=False),  # median of the repeats
            pa.field("low", pa.float64(), nullable=False),
            pa.field("high", pa.float64(), nullable=False),
            pa.field("repeats", pa.int64(), nullable=False),
            pa.field("unit", pa.string(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
            pa.field("night", pa.date32(), nullable=False),
            pa.field("environment_id", pa.string()),
            pa.field("started_at", INSTANT),
            pa.field("batch_id", pa.string(), nullable=False),
            pa.field("landed_at", INSTANT, nullable=False),
        ]
    ),
    ("metric", "node", "benchmark", "case"),
    partitioned=False,
)

_KEY = 'node, benchmark, "case", metric, labels'
_COLUMNS = f"""
{_KEY}, any_value(cohort) AS cohort, median(value) AS value, min(value) AS low, max(value) AS high,
count(*) AS repeats, any_value(unit) AS unit, any_value(run_id) AS run_id, any_value(night) AS night,
any_value(environment_id) AS environment_id, max(started_at) AS started_at, batch_id, any_value(landed_at) AS landed_at
"""
SELECT = f"""
WITH newest AS (
    SELECT {_KEY}, arg_max(batch_id, coalesce(started_at, landed_at)) AS batch_id
    FROM results GROUP BY {_KEY}
)
SELECT {_COLUMNS} FROM results SEMI JOIN newest USING ({_KEY}, batch_id) GROUP BY {_KEY}, batch_id
"""  # noqa: S608
"""The same, from the view `results`, by scanning it: for a rebuild, and for a look at the past."""

_MERGE = f"""
WITH fresh AS (SELECT {_COLUMNS} FROM landed GROUP BY {_KEY}, batch_id)
SELECT * FROM (FROM kept WHERE run_id <> $run UNION ALL BY NAME FROM fresh)
QUALIFY row_number() OVER (PARTITION BY {_KEY} ORDER BY coalesce(started_at, landed_at) DESC, landed_at DESC) = 1
"""  # noqa: S608
"""What an earlier landing of the run left is gone; of each key the newest run's row stays."""

_ATTEMPTS = 20
_ONE_AT_A_TIME = "latest"  # every commit carries this transaction, so that of two at once one is refused


def update(store: Store, batch: str, measurements: pa.Table) -> None:
    """Fold a landed batch's `measurements` in. Safe to repeat, to race and to call out of order.

    What a replaced landing of the run was the newest of is absent until the node's next run, or a rebuild.

    Raises:
        LandingConflict: it lost every race against other landings; safe to try again.
        StoreRefused, StoreUnreachable: the store does not let us write.
    """
    from deltalake import Transaction

    run, generation = keys.run_of(batch), keys.generation_of(batch)
    for attempt in range(_ATTEMPTS):
        table = delta.open_described(store, TABLE)
        if (table.transaction_version(run) or 0) >= generation:
            return
        rows = _merged(table.to_pyarrow_table(), measurements, run)
        if _replace(store, table, rows, Transaction(run, generation)):
            return
        time.sleep(random.random() * min(1.0, 0.02 * 2**attempt))  # noqa: S311
    raise LandingConflict(TABLE.name, batch, _ATTEMPTS)


def rebuild(store: Store) -> int:
    """Make the table anew from every complete run; returns its rows. Landings that race it are never undone.

    Raises:
        LandingConflict: it lost every race against landings; safe to try again.
    """
    from pipelines.tables import query

    for _ in range(_ATTEMPTS):
        table = delta.open_described(store, TABLE)  # before the rows: a landing folded in after it fails the commit
        with query.open_reader(store) as reader:
            rows = reader.arrow(SELECT)
        if _replace(store, table, rows):
            return int(rows.num_rows)
    raise LandingConflict(TABLE.name, "rebuild", _ATTEMPTS)


def _replace(store: Store, table: "DeltaTable", rows: pa.Table, *folded: "Transaction") -> bool:
    """Commit `rows` as the whole table; False when another commit came between."""
    from deltalake import CommitProperties, Transaction, write_deltalake
    from deltalake.exceptions import CommitFailedError, DeltaError

    turn = Transaction(_ONE_AT_A_TIME, (table.transaction_version(_ONE_AT_A_TIME) or 0) + 1)
    ordered = rows.select(TABLE.schema.names).cast(TABLE.schema).sort_by([(name, "ascending") for name in TABLE.sort])
    try:
        write_deltalake(
            table,
            ordered,
            mode="overwrite",
            writer_properties=delta.writer(TABLE),
            commit_properties=CommitProperties(app_transactions=[turn, *folded]),
        )
    except CommitFailedError:
        return False
    except (DeltaError, OSError) as e:
        raise delta.failure(store, TABLE.name, e) from e
    return True


def _merged(kept: pa.Table, landed: pa.Table, run: str) -> pa.Table:
    import duckdb

    with duckdb.connect(":memory:", config={"python_enable_replacements": False}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("kept", kept)
        connection.register("landed", landed)
        return connection.sql(_MERGE, params={"run": run}).to_arrow_table()
