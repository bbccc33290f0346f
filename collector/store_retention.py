"""How long each kind of data stays in the store, and what goes first when the file grows beyond its limit.

DuckDB reuses the space of deleted rows, a hundred thousand rows of a table at a time; the file itself does not shrink. So the limit is
held against the blocks in use, and rows are deleted oldest first, in the order of what is missed least: evidence a stream, statistics a rollout, then whole batches.
"""

from __future__ import annotations

import duckdb

from collector.store_config import StoreConfig
from collector.token_rows import outlived_tokens

DAY = 86_400.0
TOKEN_TABLES = ("token_rollouts", "token_words")
BATCH_TABLES = ("slices", "gains", "facts")  # by number, before `batches` itself
SPARED_DAYS = 1.0  # the newest day is never deleted to make room
STEP = 0.1  # share of a table's time span deleted at a time to make room


def delete(cursor: duckdb.DuckDBPyConnection, now: float, config: StoreConfig) -> dict[str, int]:
    """Delete what outlived its time (`now`: UTC seconds), then what is beyond the limit; rows deleted a table."""
    done = {table: _rows(cursor, f"DELETE FROM {table} WHERE {condition}", now - days * DAY) for table, (condition, days) in _cuts(config).items()}
    done |= tokens(cursor, now, config)
    if config.max_gb and (gone := _make_room(cursor, now, config.max_gb * 1e9)):
        for table, number in gone.items():
            done[table] = done.get(table, 0) + number
    return done


def tokens(cursor: duckdb.DuckDBPyConnection, now: float, config: StoreConfig) -> dict[str, int]:
    """Delete tokens that are too old, too many, or of a kind that [store] tokens no longer allows; rows deleted a table."""
    return {table: int(cursor.execute(f"DELETE FROM {table} WHERE {condition}", params).fetchall()[0][0])
            for table, condition, params in outlived_tokens(now, config)}


def _cuts(config: StoreConfig) -> dict[str, tuple[str, float]]:
    """Table → (what is too old, days), in the order of deletion."""
    return {
        "rollouts": ("coalesce(finished_at, 0) < ?", config.rollouts_ttl_days),
        "evidence": ("t < (SELECT coalesce(min(t), 0) FROM batches WHERE closed_at >= ?)", config.evidence_ttl_days),
        "metrics": ('"at" < ?', config.metrics_ttl_days),
        "events": ('"at" < ?', config.metrics_ttl_days),
        "weights": ("coalesce(seen_at, engine_at) < ?", config.metrics_ttl_days),
        **{table: ("t IN (SELECT t FROM batches WHERE closed_at < ?)", config.batches_ttl_days) for table in BATCH_TABLES},
        "series": ("closed_at < ?", config.batches_ttl_days),
        "batches": ("closed_at < ?", config.batches_ttl_days),
    }


def in_use_bytes(cursor: duckdb.DuckDBPyConnection) -> int:
    """Bytes of the file that hold rows; freed blocks, which DuckDB fills again, are left out."""
    cursor.execute("CHECKPOINT").fetchall()
    size, used = cursor.execute("SELECT block_size, used_blocks FROM pragma_database_size()").fetchall()[0]
    return int(size) * int(used)


def _make_room(cursor: duckdb.DuckDBPyConnection, now: float, limit_bytes: float) -> dict[str, int]:
    """Delete from the oldest on until what is in use fits, or only the newest day is left."""
    done: dict[str, int] = {}
    for tables in (("evidence",), ("rollouts",), (*BATCH_TABLES, "series", "batches")):
        while in_use_bytes(cursor) > limit_bytes:
            first = cursor.execute(f"SELECT min(b.closed_at) FROM batches b WHERE b.t >= (SELECT min(t) FROM {tables[-1]})").fetchall()[0][0]
            if first is None or first >= now - SPARED_DAYS * DAY:
                break
            cut = first + max((now - SPARED_DAYS * DAY - first) * STEP, 1.0)
            for table in tables:
                number = _rows(cursor, f"DELETE FROM {table} WHERE t IN (SELECT t FROM batches WHERE closed_at < ?)", cut)
                done[table] = done.get(table, 0) + number
    return done


def _rows(cursor: duckdb.DuckDBPyConnection, sql: str, *values: float) -> int:
    return int(cursor.execute(sql, list(values)).fetchall()[0][0])
