"""Tables of results: rows from raw output, validated, landed in Delta, queried by DuckDB."""
