"""What the processes of `processes.py` have imported before they start."""

import deltalake
import pyarrow.parquet
import s3fs

from pipelines import benchmark, storage
from pipelines.tables import land, latest, parse, query

benchmark.discover()
__all__ = ["deltalake", "land", "latest", "parse", "pyarrow", "query", "s3fs", "storage"]
