"""What the processes of `processes.py` have imported before they start."""

import deltalake
import duckdb
import pandas
import pyarrow.parquet
import s3fs

from pipelines import benchmark, storage
from pipelines.tables import land, latest, parse, query

benchmark.discover()
__all__ = ["deltalake", "duckdb", "land", "latest", "pandas", "parse", "pyarrow", "query", "s3fs", "storage"]
