"""A store's tables written into a new DuckDB file, from a cursor of the owner: nobody else may open the store's own file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from collector.errors import Unavailable

ROWS = 50_000  # held in memory at a time


def write(cursor: duckdb.DuckDBPyConnection, path: Path, tables: Sequence[tuple[str, str]], *, settings: Mapping[str, Any]) -> None:
    """Copy every table, (name, CREATE statement), as the cursor's open transaction sees it.

    Raises:
        Unavailable: the new file cannot be written.
    """
    try:
        copy = duckdb.connect(str(path), config=dict(settings))
        try:
            for name, statement in tables:
                copy.execute(statement).fetchall()
                copy.register("rows", cursor.sql(f"SELECT * FROM {name}").to_arrow_reader(ROWS))
                copy.execute(f"INSERT INTO {name} SELECT * FROM rows").fetchall()
                copy.unregister("rows")
            copy.execute("CHECKPOINT").fetchall()
        finally:
            copy.close()
    except (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.FatalException, OSError) as error:
        raise Unavailable(f"{path}: the copy cannot be written ({str(error).splitlines()[0]}); is there room?") from None
