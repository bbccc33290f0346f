"""The SQLite file that holds incidents, their transitions, the outbox and the record of every decision.

WAL and synchronous=FULL: a committed change survives kill -9 and power loss. A state change and the messages it causes
are written in one transaction, so neither exists without the other.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from collector.errors import Unavailable

_SCHEMA = """
CREATE TABLE IF NOT EXISTS incidents (
    id TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, run TEXT NOT NULL, state TEXT NOT NULL, severity TEXT NOT NULL,
    opened_at REAL NOT NULL, updated_at REAL NOT NULL, resolved_at REAL, title TEXT NOT NULL,
    since_lo REAL NOT NULL, since_hi REAL NOT NULL, drifts TEXT NOT NULL, diagnosis TEXT,
    returns INTEGER NOT NULL DEFAULT 0, changed_at REAL, owed INTEGER NOT NULL DEFAULT 0, acknowledgement TEXT NOT NULL DEFAULT '');
CREATE UNIQUE INDEX IF NOT EXISTS one_open_incident_a_fault ON incidents (fingerprint) WHERE state != 'resolved';
CREATE TABLE IF NOT EXISTS transitions (
    id INTEGER PRIMARY KEY, incident_id TEXT NOT NULL, at REAL NOT NULL, from_state TEXT, to_state TEXT NOT NULL, why TEXT NOT NULL,
    author TEXT);
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, incident_id TEXT NOT NULL, receiver TEXT NOT NULL, reason TEXT NOT NULL,
    message TEXT NOT NULL, state TEXT NOT NULL, created_at REAL NOT NULL, due_at REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    leased_until REAL, first_tried_at REAL, sent_at REAL, error TEXT);
DROP INDEX IF EXISTS unsent;
CREATE INDEX IF NOT EXISTS outbox_states ON outbox (state, receiver);
CREATE INDEX IF NOT EXISTS outbox_of ON outbox (incident_id, receiver, seq);
CREATE TABLE IF NOT EXISTS deliveries (
    id INTEGER PRIMARY KEY, incident_id TEXT NOT NULL, receiver TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
    outbox_id TEXT, at REAL NOT NULL, last_at REAL NOT NULL, times INTEGER NOT NULL DEFAULT 1, told TEXT);
CREATE INDEX IF NOT EXISTS deliveries_of ON deliveries (incident_id, receiver, id);
CREATE TABLE IF NOT EXISTS silences (
    id TEXT PRIMARY KEY, match TEXT NOT NULL, starts_at REAL NOT NULL, ends_at REAL NOT NULL, created_at REAL NOT NULL, author TEXT NOT NULL,
    reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS receivers (name TEXT PRIMARY KEY, not_before REAL NOT NULL);
CREATE TABLE IF NOT EXISTS gates (
    receiver TEXT PRIMARY KEY, failures INTEGER NOT NULL, open_until REAL NOT NULL, tokens REAL NOT NULL, filled_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS memories (
    incident_id TEXT NOT NULL, receiver TEXT NOT NULL, memory TEXT NOT NULL, PRIMARY KEY (incident_id, receiver));
CREATE TABLE IF NOT EXISTS cursors (source TEXT NOT NULL, t INTEGER NOT NULL, state TEXT NOT NULL, PRIMARY KEY (source, t));
"""
_INDEXES = "CREATE INDEX IF NOT EXISTS ends_owed ON incidents (id) WHERE owed;"  # over columns that a migration adds
MIGRATIONS = {
    3: """
ALTER TABLE transitions ADD COLUMN author TEXT;
ALTER TABLE incidents ADD COLUMN returns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE incidents ADD COLUMN changed_at REAL;
ALTER TABLE incidents ADD COLUMN owed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE incidents ADD COLUMN acknowledgement TEXT NOT NULL DEFAULT '';
UPDATE incidents SET changed_at = coalesce(resolved_at, opened_at);
INSERT INTO silences SELECT id, json_object('fingerprint', fingerprint), starts_at, ends_at, starts_at, author, reason FROM mutes;
DROP TABLE mutes;
""",
    4: "",  # only a new table (cursors), which every file gets from _SCHEMA
}
"""Schema → the statements that bring a file of the schema before it there. All of them in one transaction, or none."""
SCHEMA_VERSION = max(MIGRATIONS)


class Database:
    """One connection, shared by the threads of this process; other processes may read and write the same file."""

    def __init__(self, path: str | Path) -> None:
        """Open or create the file.

        Raises:
            Unavailable: it cannot be opened, is not such a file, or was written by a newer Klaxon.
        """
        self.path = Path(path)
        self._lock = threading.RLock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=10.0)
        except (OSError, sqlite3.Error) as error:
            raise Unavailable(f"{self.path}: the incident file cannot be opened ({error})") from None
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._connection.close()
            raise Unavailable(f"{self.path}: the incident file cannot be used ({error}); "
                              "move it aside and Klaxon starts a fresh one") from None
        except Unavailable:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        self._connection.row_factory = sqlite3.Row
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
            self._connection.execute(f"PRAGMA {pragma}").fetchall()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._migrate(self._connection.execute("PRAGMA user_version").fetchone()[0])
            self._connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _migrate(self, found: int) -> None:
        """To the schema of this Klaxon. 0 = a fresh file, or one of before versions were counted, of which there are none."""
        if found > SCHEMA_VERSION:
            raise Unavailable(f"{self.path}: written by a newer Klaxon (schema {found}, this one knows {SCHEMA_VERSION}); upgrade Klaxon")
        steps = [MIGRATIONS[version] for version in range(found + 1, SCHEMA_VERSION + 1) if version in MIGRATIONS] if found else []
        for script in (_SCHEMA, *steps, _INDEXES):
            for statement in script.split(";\n"):
                self._connection.execute(statement)
        self._connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing of it, on disk when it returns.

        Raises:
            Unavailable: SQLite refused (disk full, file locked for 10 s); nothing was changed.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._roll_back()
                raise Unavailable(f"{self.path}: the incident file refuses the change ({error})") from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def probe(self) -> None:
        """Change a page of the file to what it was. Raises Unavailable when it takes no change."""
        with self.transaction() as connection:
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def rows(self, sql: str, *values: object) -> list[sqlite3.Row]:
        """All rows of one query.

        Raises:
            Unavailable: the file cannot be read.
        """
        with self._lock:
            try:
                return self._connection.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise Unavailable(f"{self.path}: the incident file cannot be read ({error})") from error

    def close(self) -> None:
        """Close the file; every committed change is already on disk."""
        with self._lock:
            self._connection.close()
