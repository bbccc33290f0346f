"""The store: one DuckDB file, one owner (the daemon). Everybody else reads through the read API.

Every append is one transaction of Arrow micro-batches and is acknowledged after its commit: kill -9 loses nothing
acknowledged. Nothing in this process may open and close the database file by other means: POSIX drops a process's
file locks when *any* descriptor of that file is closed, and a second process could then open it too.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from collector import store_copy, store_retention
from collector.errors import Unavailable
from collector.records import BatchStats, Evidence, Rollout, Score, WeightVersion
from collector.store_config import StoreConfig
from collector.store_faults import first_line, open_hint, reopen_without_wal
from collector.store_migrations import VERSION, migrate
from collector.store_schema import TABLES, batch_tables, batches_from, ddl, request_hash, rollout_row, to_arrow
from collector.token_rows import Kept, Words, token_tables

log = logging.getLogger("klaxon.store")

_REPLAY_CHUNK = 64  # batches held in memory at a time while reading a run back
_FAULTS = (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.FatalException, duckdb.TransactionException)


class Store:
    """Append and read. Thread-safe: appends take a lock, reads run beside them on cursors of their own.

    Raises:
        Unavailable: the file cannot be opened or written (another owner, no folder, full disk, newer format).
    """

    def __init__(self, path: str | Path, *, memory_limit: str = "512MB", threads: int = 2) -> None:
        self.path = Path(path)
        self.notices: list[str] = []  # what went wrong while opening, in words for the operator
        self.migrated: list[str] = []  # what was done to a file of an earlier release, in words for the operator
        self._lock = threading.Lock()
        self._writes: Counter[str] = Counter()
        self._opening = threading.Lock()
        self._invalid = False  # after a fatal fault DuckDB refuses everything until the file is opened again
        self._settings = {"memory_limit": memory_limit, "threads": threads, "enable_external_access": False,
                          "autoinstall_known_extensions": False, "autoload_known_extensions": False}
        self._connection = self._open()
        try:
            self._key = self._prepare()
        except Unavailable:
            self._connection.close()
            raise

    def append_batch(self, batch: BatchStats, evidence: Iterable[Evidence] = (), *, ln_m: float | None = None,
                     ln_a: float | None = None) -> None:
        """Append one closed batch with its evidence; durable when this returns. ln_m, ln_a: natural logs."""
        self._append(batch_tables(batch, evidence, ln_m=ln_m, ln_a=ln_a))

    def append_rollouts(self, t: int, scored: Iterable[tuple[Rollout, Score | None]]) -> None:
        """Append the statistics of sampled rollouts of batch t: no ids, no text."""
        self._append({"rollouts": [rollout_row(rollout, score, t=t, key=self._key) for rollout, score in scored]})

    def append_tokens(self, kept: Iterable[tuple[Kept, Words | None]], *, now: float, config: StoreConfig) -> None:
        """Append the tokens of a few rollouts as far as [store] tokens allows, with their texts where known. now: UTC seconds."""
        self._append(token_tables(kept, now=now, key=self._key, config=config))

    def append_metrics(self, step: int, at: float, values: Mapping[str, float], *, source: str = "trainer") -> None:
        """Append one step of trainer metrics."""
        self._append({"metrics": [{"step": step, "at": at, "name": name, "value": float(value), "source": source}
                                  for name, value in values.items()]})

    def append_event(self, at: float, kind: str, text: str, data: Mapping[str, Any] | None = None) -> None:
        """Append one event: weight_update, restart, alarm, … with one sentence for humans."""
        self._append({"events": [{"at": at, "kind": kind, "text": text, "data": json.dumps(dict(data or {}), default=str)}]})

    def append_weights(self, version: WeightVersion | str, *, seen_at: float | None = None,
                       engine_at: float | None = None) -> None:
        """Append a sighting of a version: seen_at by the follower, engine_at first used by the engine (UTC seconds)."""
        row: dict[str, Any] = {"version": version, "seen_at": seen_at, "engine_at": engine_at}
        if isinstance(version, WeightVersion):
            row |= {"version": version.version, "path": version.path, "published_at": version.published_at,
                    "digest": version.digest}
        self._append({"weights": [row]})

    def read_batches(self, *, start: int = 0, end: int | None = None) -> Iterator[BatchStats]:
        """Every batch start ≤ t < end in order, exactly as appended: replaying them replays the alarms bit for bit."""
        while True:
            rows = self._rows("SELECT * FROM batches WHERE t >= ? AND t < ? ORDER BY t LIMIT ?",
                              [start, _endless(end), _REPLAY_CHUNK])
            if not rows:
                return
            span = [rows[0]["t"], rows[-1]["t"]]
            yield from batches_from({"batches": rows} | {
                table: self._rows(f"SELECT * FROM {table} WHERE t BETWEEN ? AND ? ORDER BY t, seq", span)
                for table in ("slices", "gains", "facts")})
            start = rows[-1]["t"] + 1

    def forget_unstored(self) -> int:
        """Delete the rows of rollouts that were read in files and whose batch was never stored: they are read again. Returns `next_t`."""
        first = self.next_t()
        with self._lock, self._cursor() as cursor:
            cursor.execute("DELETE FROM rollouts WHERE read_from IS NOT NULL AND t >= ?", [first]).fetchall()
        return first

    def next_t(self) -> int:
        """The number the next batch should carry: one past the last stored, 0 in a new store."""
        return self.query("SELECT coalesce(max(t) + 1, 0) FROM batches")[0][0]

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a SELECT, fetched whole."""
        with self._cursor() as cursor:
            return cursor.execute(sql, list(params)).fetchall()

    def query_arrow(self, sql: str, params: Sequence[Any] = ()) -> pa.Table:
        """The result of a SELECT as an Arrow table."""
        with self._cursor() as cursor:
            return cursor.sql(sql, params=list(params)).to_arrow_table()

    def writes(self, tables: Iterable[str]) -> tuple[int, ...]:
        """How often each of these tables was written to by this process. A write is counted before its call returns, and after it can be read:
        who notes the counts, then reads, and later finds the same counts, has read what the store still holds."""
        return tuple(self._writes[table] for table in tables)

    def request_hash(self, request_id: str) -> str:
        """The hash under which a request's statistics are kept."""
        return request_hash(request_id, key=self._key)

    def retention(self, now: float, config: StoreConfig) -> dict[str, int]:
        """Delete what outlived its time to live, and the oldest beyond the size limit (collector/store_retention.py); rows deleted a table."""
        with self._lock, self._cursor() as cursor, self._counted(list(TABLES)):
            return store_retention.delete(cursor, now, config)

    def token_retention(self, now: float, config: StoreConfig) -> dict[str, int]:
        """Delete tokens that are too old, too many, or of a kind that [store] tokens no longer allows; returns rows deleted a table."""
        with self._lock, self._cursor() as cursor, self._counted(store_retention.TOKEN_TABLES):
            return store_retention.tokens(cursor, now, config)

    def checkpoint(self) -> None:
        """Fold the write-ahead log into the file."""
        with self._lock, self._cursor() as cursor:
            cursor.execute("CHECKPOINT").fetchall()

    def copy_to(self, path: Path, beside: Callable[[], object] = lambda: None) -> None:
        """A whole copy at one moment, into a new file, while appends go on; `beside` runs at that moment, with appends held back.

        Raises:
            Unavailable: the copy cannot be written.
        """
        with self._cursor() as cursor:
            with self._lock:
                cursor.begin()
                tables = cursor.execute("SELECT table_name, sql FROM duckdb_tables() WHERE NOT internal ORDER BY table_name").fetchall()
                cursor.execute("SELECT count(*) FROM batches").fetchall()  # the first look at the data fixes the moment
                beside()
            try:
                store_copy.write(cursor, path, tables, settings=self._settings)
            finally:
                _rollback(cursor)

    def size_bytes(self) -> int:
        """Bytes on disk: the file and its write-ahead log."""
        return sum(path.stat().st_size for path in (self.path, self._wal) if path.exists())

    def free_bytes(self) -> int | None:
        """Bytes free on the disk of the file; None where the system does not say."""
        try:
            return shutil.disk_usage(self.path.parent).free
        except OSError:
            return None

    def close(self) -> None:
        """Close the file; folds the write-ahead log in."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _wal(self) -> Path:
        return self.path.with_name(self.path.name + ".wal")

    @contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One cursor a call, closed afterwards; DuckDB's faults become Unavailable with a hint."""
        with self._opening:
            if self._invalid:
                self._connection.close()
                self._connection, self._invalid = self._open(), False
            try:
                cursor = self._connection.cursor()
            except duckdb.Error:
                raise Unavailable(f"{self.path}: the store is closed") from None
        try:
            yield cursor
        except _FAULTS as error:
            self._invalid = self._invalid or isinstance(error, duckdb.FatalException)
            raise Unavailable(f"{self.path}: {first_line(error)}; check free disk space and [store] memory_limit") from None
        finally:
            cursor.close()

    def _rows(self, sql: str, params: Sequence[Any]) -> list[dict[str, Any]]:
        return self.query_arrow(sql, params).to_pylist(maps_as_pydicts="strict")

    def _append(self, tables: Mapping[str, list[dict[str, Any]]]) -> None:
        with self._lock, self._cursor() as cursor, self._counted([table for table, rows in tables.items() if rows]):
            cursor.begin()
            try:
                for table, rows in tables.items():
                    if rows:
                        _insert(cursor, table, rows)
            except BaseException:
                _rollback(cursor)
                raise
            cursor.commit()  # a failed commit has already ended the transaction

    @contextmanager
    def _counted(self, tables: Sequence[str]) -> Iterator[None]:
        """Counted however it ends: a commit that failed may have reached the file. The caller holds the lock."""
        try:
            yield
        finally:
            self._writes.update(tables)

    def _open(self) -> duckdb.DuckDBPyConnection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return duckdb.connect(str(self.path), config=self._settings)
        except duckdb.Error as error:
            if "replaying WAL" not in str(error) or "Could not write" in str(error):
                raise Unavailable(open_hint(self.path, error)) from None
            connection, notice = reopen_without_wal(self.path, self._wal, str(error), settings=self._settings)
            self.notices.append(notice)
            return connection
        except OSError as error:
            raise Unavailable(f"{self.path}: cannot make the folder ({error.strerror}); set [store] path") from None

    def _prepare(self) -> str:
        """Create the tables once, or bring an older file's here; returns the key of the request hashes."""
        with self._lock, self._cursor() as cursor:
            cursor.begin()
            try:
                meta = self._tables(cursor)
            except BaseException:
                _rollback(cursor)
                raise
            cursor.commit()
            cursor.execute("CHECKPOINT").fetchall()
            return meta["request_key"]

    def _tables(self, cursor: duckdb.DuckDBPyConnection) -> dict[str, str]:
        """All of the tables as this Klaxon has them, in the caller's transaction; returns `meta`."""
        if not cursor.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'meta'").fetchall():
            for statement in ddl():
                cursor.execute(statement).fetchall()
        meta = dict(cursor.execute("SELECT key, value FROM meta").fetchall())
        if not meta:
            meta = {"version": str(VERSION), "request_key": secrets.token_hex(32)}
            _insert(cursor, "meta", [{"key": key, "value": value} for key, value in meta.items()])
        if said := migrate(cursor, meta["version"], where=str(self.path)):
            cursor.execute("UPDATE meta SET value = ? WHERE key = 'version'", [str(VERSION)]).fetchall()
            self.migrated = said
        return meta


def _insert(cursor: duckdb.DuckDBPyConnection, table: str, rows: list[dict[str, Any]]) -> None:
    cursor.register("micro_batch", to_arrow(table, rows))
    cursor.execute(f"INSERT INTO {table} BY NAME SELECT * FROM micro_batch").fetchall()
    cursor.unregister("micro_batch")


def _rollback(cursor: duckdb.DuckDBPyConnection) -> None:
    try:
        cursor.rollback()
    except duckdb.Error as error:  # a fatal fault has already ended the transaction
        log.warning("rollback: %s", first_line(error))


def _endless(end: int | None) -> int:
    return 2**62 if end is None else end
