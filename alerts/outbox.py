"""The outbox: what is to be sent, until it is sent or given up. Safe to kill at any moment.

A message is leased, sent, and only then marked: whoever dies in between leaves a lease that runs out, and the message is
sent again under the same id. That window, and a receiver that accepts but answers too late, are the only ways to a second
copy. Per (incident, receiver) messages leave in order, one at a time, and a newer one replaces those still waiting.
"""

from __future__ import annotations

import json
import logging
import random
import sqlite3
from collections import Counter
from collections.abc import Mapping
from typing import Any

from alerts.config import AlertsConfig
from alerts.db import Database
from alerts.message import Message
from alerts.notifiers import Notifier
from collector.errors import GiveUp, RetryLater

log = logging.getLogger(__name__)
SHORTEST_PAUSE_SECONDS = 0.001  # so that one delivery step tries a message once
LEASE_SECONDS = 60.0  # longer than the slowest send: connect, and an answer, at 20 s each at most

_NEXT = """
SELECT o.* FROM outbox o WHERE o.receiver = :receiver AND o.state = 'pending' AND o.due_at <= :now AND NOT EXISTS (
    SELECT 1 FROM outbox p WHERE p.incident_id = o.incident_id AND p.receiver = o.receiver AND p.seq < o.seq AND p.state IN ('pending', 'leased'))
ORDER BY o.seq LIMIT 1"""


class Outbox:
    """Delivers due messages. Several threads and processes may share one file."""

    def __init__(self, database: Database, notifiers: Mapping[str, Notifier], config: AlertsConfig, *, jitter: random.Random) -> None:
        self._database, self._notifiers, self._config, self._jitter = database, notifiers, config, jitter
        self.counts: Counter[str] = Counter()  # "sent", "retries", "dead", "notifier_errors"

    def deliver_due(self, now: float, *, receiver: str | None = None) -> int:
        """Send what is due to one receiver or to all, each message at most once; returns how many were accepted.

        Raises:
            Unavailable: the file cannot be read or written.
        """
        names = [receiver] if receiver is not None else list(self._notifiers)
        return sum(self._deliver(name, now) for name in names)

    def _deliver(self, receiver: str, now: float) -> int:
        accepted = 0
        while (row := self._claim(receiver, now)) is not None:
            accepted += self._attempt(row, receiver, now)
        return accepted

    def _attempt(self, row: sqlite3.Row, receiver: str, now: float) -> bool:
        memory = self._remembered(row)
        try:
            self._notifiers[receiver].send(Message.from_json(row["message"]), now=now, memory=memory)
        except GiveUp as error:
            self._bury(row, receiver, str(error), memory)
            return False
        except RetryLater as error:
            self._postpone(row, receiver, now, str(error), error.after_seconds, memory)
            return False
        except Exception as error:  # a fault of ours must neither lose the message nor stop the others
            self.counts["notifier_errors"] += 1
            log.error("receiver %s: sending %s failed unexpectedly (%s)", receiver, row["id"], type(error).__name__)
            self._postpone(row, receiver, now, f"failed unexpectedly ({type(error).__name__})", None, memory)
            return False
        with self._database.transaction() as connection:
            connection.execute("UPDATE outbox SET state = 'sent', sent_at = ?, leased_until = NULL, error = NULL WHERE id = ?", (now, row["id"]))
            _remember(connection, row, memory)
        self.counts["sent"] += 1
        return True

    def _remembered(self, row: sqlite3.Row) -> dict[str, str]:
        """What the receiver knows of the incident from earlier messages."""
        found = self._database.rows("SELECT memory FROM memories WHERE incident_id = ? AND receiver = ?", row["incident_id"], row["receiver"])
        return dict(json.loads(found[0]["memory"])) if found else {}

    def _claim(self, receiver: str, now: float) -> sqlite3.Row | None:
        """Lease the oldest due message that has no unfinished predecessor."""
        with self._database.transaction() as connection:
            wait = connection.execute("SELECT not_before FROM receivers WHERE name = ?", (receiver,)).fetchone()
            if wait is not None and wait["not_before"] > now:
                return None
            connection.execute("UPDATE outbox SET state = 'pending', leased_until = NULL"
                               " WHERE receiver = ? AND state = 'leased' AND leased_until <= ?", (receiver, now))
            while (row := connection.execute(_NEXT, {"receiver": receiver, "now": now}).fetchone()) is not None:
                if not _superseded(connection, row):
                    break
            if row is not None:
                connection.execute("UPDATE outbox SET state = 'leased', leased_until = ?, attempts = attempts + 1,"
                                   " first_tried_at = coalesce(first_tried_at, ?) WHERE id = ?", (now + LEASE_SECONDS, now, row["id"]))
            return row

    def _postpone(self, row: sqlite3.Row, receiver: str, now: float, error: str, after_seconds: float | None,
                  memory: Mapping[str, str]) -> None:
        if now - (row["first_tried_at"] if row["first_tried_at"] is not None else now) >= self._config.give_up_after_seconds:
            self._bury(row, receiver, f"not delivered for {self._config.give_up_after_seconds:.0f} s; last: {error}", memory)
            return
        ceiling = min(self._config.backoff_max_seconds, self._config.backoff_seconds * 2.0 ** min(row["attempts"], 60))
        pause = after_seconds if after_seconds is not None else self._jitter.uniform(0.0, ceiling)
        due_at = now + max(pause, SHORTEST_PAUSE_SECONDS)
        with self._database.transaction() as connection:
            connection.execute("UPDATE outbox SET state = 'pending', leased_until = NULL, due_at = ?, error = ? WHERE id = ?",
                               (due_at, error, row["id"]))
            _remember(connection, row, memory)
            connection.execute("UPDATE outbox SET due_at = max(due_at, ?), attempts = max(attempts, ?)"
                               " WHERE incident_id = ? AND receiver = ? AND seq > ? AND state = 'pending'",
                               (due_at, row["attempts"] + 1, row["incident_id"], receiver, row["seq"]))
            if after_seconds is not None:  # the receiver asked everybody to wait, not just this message
                connection.execute("INSERT INTO receivers VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET not_before = excluded.not_before",
                                   (receiver, due_at))
        self.counts["retries"] += 1
        log.warning("receiver %s: %s; %s is tried again in %.1f s", receiver, error, row["id"], due_at - now)

    def _bury(self, row: sqlite3.Row, receiver: str, error: str, memory: Mapping[str, str]) -> None:
        with self._database.transaction() as connection:
            _remember(connection, row, memory)
            connection.execute("UPDATE outbox SET state = 'dead', leased_until = NULL, error = ? WHERE id = ?", (error, row["id"]))
        self.counts["dead"] += 1
        log.error("receiver %s: %s; %s becomes a dead letter", receiver, error, row["id"])

    def delivered(self, receiver: str | None = None) -> int:
        """How many messages were accepted, ever."""
        return int(self._database.rows("SELECT count(*) AS n FROM outbox WHERE state = 'sent' AND (? IS NULL OR receiver = ?)",
                                       receiver, receiver)[0]["n"])

    def undelivered(self) -> list[dict[str, Any]]:
        """Messages that wait (state "pending" or "leased") and dead letters (state "dead"), oldest first."""
        rows = self._database.rows("SELECT id, incident_id, receiver, reason, state, created_at, due_at, attempts, error FROM outbox"
                                   " WHERE state IN ('pending', 'leased', 'dead') ORDER BY seq")
        return [dict(row) for row in rows]

    def due(self, now: float) -> int:
        """How many messages could leave now or are on their way."""
        return int(self._database.rows(
            "SELECT count(*) AS n FROM outbox o LEFT JOIN receivers r ON r.name = o.receiver WHERE o.state = 'leased'"
            " OR (o.state = 'pending' AND o.due_at <= ? AND coalesce(r.not_before, 0) <= ?)", now, now)[0]["n"])


def _superseded(connection: sqlite3.Connection, row: sqlite3.Row) -> bool:
    """Newest state wins: a message that came back unsent gives way to one written while it was out."""
    newer = connection.execute("SELECT 1 FROM outbox WHERE incident_id = ? AND receiver = ? AND seq > ? AND state = 'pending'",
                               (row["incident_id"], row["receiver"], row["seq"])).fetchone()
    if newer is not None:
        connection.execute("UPDATE outbox SET state = 'superseded' WHERE id = ?", (row["id"],))
    return newer is not None


def _remember(connection: sqlite3.Connection, row: sqlite3.Row, memory: Mapping[str, str]) -> None:
    if memory:
        connection.execute("INSERT INTO memories VALUES (?, ?, ?) ON CONFLICT (incident_id, receiver) DO UPDATE SET memory = excluded.memory",
                           (row["incident_id"], row["receiver"], json.dumps(dict(memory))))
