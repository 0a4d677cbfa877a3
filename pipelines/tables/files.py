"""A batch's rows as Parquet objects in the store, create-only."""

import io
from typing import TYPE_CHECKING

from pipelines.errors import CorruptObject, KeyNotFound
from pipelines.storage import Store

if TYPE_CHECKING:
    import pyarrow as pa


def create(store: Store, key: str, rows: "pa.Table") -> bool:
    """Write the rows in one atomic step, unless the object is there. Whether this call wrote it."""
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(rows, stream, compression="zstd")
    return store.create(key, stream.getvalue())


def read(store: Store, key: str, otherwise: "pa.Schema | None" = None) -> "pa.Table":
    """The rows of an object; where it is not there and `otherwise` is given, no rows of that schema.

    Raises:
        KeyNotFound: there is no such object.
        CorruptObject: it is not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = store.read(key)
    except KeyNotFound:
        if otherwise is None:
            raise
        return otherwise.empty_table()
    try:
        return pq.read_table(io.BytesIO(data))
    except (pa.ArrowInvalid, OSError) as e:
        raise CorruptObject(store.url(key), str(e)) from e
