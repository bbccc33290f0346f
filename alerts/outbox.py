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
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from alerts import gates
from alerts.config import AlertsConfig
from alerts.db import Database
from alerts.message import Message
from alerts.notifiers import Notifier
from alerts.receiver_rows import gate_of, load, move, save, settle
from collector.errors import GiveUp, InputError, RetryLater, Unavailable

log = logging.getLogger(__name__)
Judge = Callable[[sqlite3.Connection, str, float], None]  # connection, receiver, now: what the attempt says about the receiver
SHORTEST_PAUSE_SECONDS = 0.001  # so that one delivery step tries a message once
LONGEST_PAUSE_SECONDS = 3600.0  # the most patience a receiver may ask for
LEASE_SECONDS = 60.0  # longer than the slowest send: connect, and an answer, at 20 s each at most
POLL_SECONDS = 0.5  # retries and leases come due without anybody waking the loop

_NEXT = """
SELECT o.* FROM outbox o WHERE o.receiver = :receiver AND o.state = 'pending' AND o.due_at <= :now AND NOT EXISTS (
    SELECT 1 FROM outbox p WHERE p.incident_id = o.incident_id AND p.receiver = o.receiver AND p.seq < o.seq AND p.state IN ('pending', 'leased'))
ORDER BY {order} LIMIT 1"""
NEXT = _NEXT.format(order="o.seq")
PROBE = _NEXT.format(order="o.attempts, o.seq")  # a message that fails by itself must not be every probe


class Outbox:
    """Delivers due messages. Several threads and processes may share one file."""

    def __init__(self, database: Database, notifiers: Mapping[str, Notifier], config: AlertsConfig, *, jitter: random.Random) -> None:
        self._database, self._notifiers, self._config, self._jitter = database, notifiers, config, jitter
        kinds = {receiver.name: receiver.type for receiver in config.all_receivers()}
        self._limits = {name: gates.limits(config, name=name, kind=kinds.get(name, "")) for name in notifiers}
        self._unstored: defaultdict[str, list[Callable[[sqlite3.Connection], object]]] = defaultdict(list)  # outcomes the disk refused
        self._pauses: dict[str, float] = {}
        self.counts: Counter[str] = Counter()  # "sent", "retries", "dead", "notifier_errors", "breaker_opened"

    def deliver_due(self, now: float, *, receiver: str | None = None, most: int | None = None) -> int:
        """Send what is due to one receiver or to all, each message at most once, at most so many to each; returns how many were accepted.

        Raises:
            Unavailable: the file cannot be read or written.
        """
        names = [receiver] if receiver is not None else list(self._notifiers)
        return sum(self._deliver(name, now, most) for name in names)

    def pause(self, receiver: str) -> float:
        """Seconds until it is worth asking again, after `deliver_due`; new messages may come earlier."""
        return self._pauses.get(receiver, POLL_SECONDS)

    def _deliver(self, receiver: str, now: float, most: int | None) -> int:
        accepted = tried = 0
        while tried != most and (row := self._claim(receiver, now)) is not None:
            self._pauses[receiver] = 0.0
            tried += 1
            accepted += self._attempt(row, receiver, now)
        return accepted

    def _attempt(self, row: sqlite3.Row, receiver: str, now: float) -> bool:
        memory = self._remembered(row)
        try:
            self._notifiers[receiver].send(Message.from_json(row["message"]), now=now, memory=memory)
        except GiveUp as error:
            self._bury(row, receiver, now, str(error), memory, self._answered)
            return False
        except RetryLater as error:
            judge = self._failed if error.after_seconds is None else self._answered
            self._postpone(row, receiver, now, str(error), error.after_seconds, memory, judge)
            return False
        except Exception as error:  # a fault of ours must neither lose the message nor stop the others
            self.counts["notifier_errors"] += 1
            log.error("receiver %s: sending %s failed unexpectedly (%s)", receiver, row["id"], type(error).__name__)
            self._postpone(row, receiver, now, f"failed unexpectedly ({type(error).__name__})", None, memory, _says_nothing)
            return False
        self._store(receiver, lambda connection: self._mark_sent(connection, row, receiver, now, memory))
        self.counts["sent"] += 1
        return True

    def _store(self, receiver: str, outcome: Callable[[sqlite3.Connection], object]) -> None:
        """Write what came of an attempt. What the disk refuses is kept and written before the next attempt: no second copy for that."""
        try:
            with self._database.transaction() as connection:
                outcome(connection)
        except Unavailable:
            self._unstored[receiver].append(outcome)
            raise

    def _remembered(self, row: sqlite3.Row) -> dict[str, str]:
        """What the receiver knows of the incident from earlier messages."""
        found = self._database.rows("SELECT memory FROM memories WHERE incident_id = ? AND receiver = ?", row["incident_id"], row["receiver"])
        return dict(json.loads(found[0]["memory"])) if found else {}

    def _claim(self, receiver: str, now: float) -> sqlite3.Row | None:
        """Lease the oldest due message that has no unfinished predecessor, when the receiver may be tried."""
        self._pauses[receiver] = POLL_SECONDS
        with self._database.transaction() as connection:
            kept = list(self._unstored[receiver])
            for outcome in kept:
                outcome(connection)
            row = self._lease(connection, receiver, now)
        del self._unstored[receiver][:len(kept)]
        return row

    def _lease(self, connection: sqlite3.Connection, receiver: str, now: float) -> sqlite3.Row | None:
        limit, gate = self._limits[receiver], load(connection, receiver)
        asked = connection.execute("SELECT not_before FROM receivers WHERE name = ?", (receiver,)).fetchone()
        wait = max(gates.wait(gate, limit, now), asked["not_before"] - now if asked is not None else 0.0)
        if wait > 0:
            self._pauses[receiver] = min(POLL_SECONDS, wait)
            return None
        connection.execute("UPDATE outbox SET state = 'pending', leased_until = NULL"
                           " WHERE receiver = ? AND state = 'leased' AND leased_until <= ?", (receiver, now))
        choose = PROBE if gates.state(gate, limit, now) == "half-open" else NEXT
        while (row := connection.execute(choose, {"receiver": receiver, "now": now}).fetchone()) is not None:
            if not _superseded(connection, row):
                break
        if row is None:
            due = connection.execute("SELECT min(due_at) FROM outbox WHERE receiver = ? AND state = 'pending'", (receiver,)).fetchone()[0]
            if due is not None and due > now:  # what is due and not taken waits for a predecessor
                self._pauses[receiver] = min(POLL_SECONDS, due - now)
            return None
        connection.execute("UPDATE outbox SET state = 'leased', leased_until = ?, attempts = attempts + 1,"
                           " first_tried_at = coalesce(first_tried_at, ?) WHERE id = ?", (now + LEASE_SECONDS, now, row["id"]))
        if limit.per_second > 0 or gate.failures:
            save(connection, receiver, gates.taken(gate, limit, now))
        return row

    def _mark_sent(self, connection: sqlite3.Connection, row: sqlite3.Row, receiver: str, now: float, memory: Mapping[str, str]) -> None:
        connection.execute("UPDATE outbox SET state = 'sent', sent_at = ?, leased_until = NULL, error = NULL WHERE id = ?", (now, row["id"]))
        _remember(connection, row, memory)
        self._answered(connection, receiver, now)

    def _answered(self, connection: sqlite3.Connection, receiver: str, now: float) -> None:
        """The breaker closes; had it been open, what waits for the receiver need not wait for its own back-off."""
        gate = load(connection, receiver)
        if not gate.failures:
            return
        save(connection, receiver, gates.answered(gate))
        if gate.failures >= self._limits[receiver].failures:
            connection.execute("UPDATE outbox SET due_at = min(due_at, ?) WHERE receiver = ? AND state = 'pending'", (now, receiver))
            log.warning("receiver %s answers again", receiver)

    def _failed(self, connection: sqlite3.Connection, receiver: str, now: float) -> None:
        limit, gate = self._limits[receiver], load(connection, receiver)
        after = gates.failed(gate, limit, now)
        save(connection, receiver, after)
        if after.failures == limit.failures:
            self.counts["breaker_opened"] += 1
            log.error("receiver %s failed %d times in a row: it is left alone for %.0f s, then tried with one message",
                      receiver, after.failures, limit.seconds)

    def _postpone(self, row: sqlite3.Row, receiver: str, now: float, error: str, after_seconds: float | None,
                  memory: Mapping[str, str], judge: Judge) -> None:
        if now - (row["first_tried_at"] if row["first_tried_at"] is not None else now) >= self._config.give_up_after_seconds:
            said = f"not delivered for {self._config.give_up_after_seconds:.0f} s; last: {error}"
            self._bury(row, receiver, now, said, memory, judge)
            return
        ceiling = min(self._config.backoff_max_seconds, self._config.backoff_seconds * 2.0 ** min(row["attempts"], 60))
        pause = max(self._jitter.uniform(0.0, ceiling), after_seconds or 0.0)
        due_at = now + max(pause, SHORTEST_PAUSE_SECONDS)

        def outcome(connection: sqlite3.Connection) -> None:
            judge(connection, receiver, now)
            connection.execute("UPDATE outbox SET state = 'pending', leased_until = NULL, due_at = ?, error = ? WHERE id = ?",
                               (due_at, error, row["id"]))
            _remember(connection, row, memory)
            connection.execute("UPDATE outbox SET due_at = max(due_at, ?), attempts = max(attempts, ?)"
                               " WHERE incident_id = ? AND receiver = ? AND seq > ? AND state = 'pending'",
                               (due_at, row["attempts"] + 1, row["incident_id"], receiver, row["seq"]))
            if after_seconds is not None:  # the receiver asked everybody to wait, not just this message
                connection.execute("INSERT INTO receivers VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET not_before = excluded.not_before",
                                   (receiver, due_at))

        self._store(receiver, outcome)
        self.counts["retries"] += 1
        log.warning("receiver %s: %s; %s is tried again in %.1f s", receiver, error, row["id"], due_at - now)

    def _bury(self, row: sqlite3.Row, receiver: str, now: float, error: str, memory: Mapping[str, str], judge: Judge) -> None:
        def outcome(connection: sqlite3.Connection) -> None:
            judge(connection, receiver, now)
            _remember(connection, row, memory)
            connection.execute("UPDATE outbox SET state = 'dead', leased_until = NULL, error = ? WHERE id = ?", (error, row["id"]))

        self._store(receiver, outcome)
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

    def redeliver(self, message_id: str) -> bool:
        """Send a dead letter again, with fresh patience, under its old id. False: a newer message of the incident has overtaken it,
        so it is listed no more and stays unsent.

        Raises:
            InputError: no such message, or it is not dead.
            Unavailable: the change could not be stored.
        """
        with self._database.transaction() as connection:
            row = connection.execute("SELECT * FROM outbox WHERE id = ?", (message_id,)).fetchone()
            if row is None or row["state"] != "dead":
                raise InputError(f"message {message_id!r} is {'unknown' if row is None else row['state']}; only dead letters are sent again")
            newer = connection.execute("SELECT 1 FROM outbox WHERE incident_id = ? AND receiver = ? AND seq > ?"
                                       " AND state IN ('pending', 'leased', 'sent')", (row["incident_id"], row["receiver"], row["seq"])).fetchone()
            connection.execute("UPDATE outbox SET state = ?, due_at = 0, attempts = 0, first_tried_at = NULL WHERE id = ?",
                               ("superseded" if newer is not None else "pending", message_id))
        return newer is None

    def figures(self, now: float) -> list[dict[str, Any]]:
        """A dict a receiver: breaker (closed, open, half-open), failures in a row, waiting, dead, and since when the oldest waits."""
        found = {row["receiver"]: row for row in self._database.rows(
            "SELECT receiver, sum(state != 'dead') AS waiting, sum(state = 'dead') AS dead, min(CASE WHEN state != 'dead' THEN created_at END) AS oldest"
            " FROM outbox WHERE state IN ('pending', 'leased', 'dead') GROUP BY receiver")}
        remembered = {row["receiver"]: gate_of(row) for row in self._database.rows("SELECT * FROM gates")}
        gate = {name: remembered.get(name, gates.Gate()) for name in self._notifiers}
        return [{"receiver": name, "breaker": gates.state(gate[name], self._limits[name], now), "failures": gate[name].failures,
                 "waiting": found[name]["waiting"] if name in found else 0, "dead": found[name]["dead"] if name in found else 0,
                 "oldest_at": found[name]["oldest"] if name in found else None} for name in self._notifiers]

    def clock_jumped(self, receiver: str, seconds: float) -> None:
        """The wall clock was set `seconds` ahead (or back) while this process ran."""
        with self._database.transaction() as connection:
            move(connection, receiver, seconds)

    def settle(self, receiver: str, now: float) -> None:
        """At the start: times that only a clock since put back can have stored are brought near."""
        with self._database.transaction() as connection:
            settle(connection, receiver, self._limits[receiver], now=now, lease=now + LEASE_SECONDS,
                   furthest=now + max(LONGEST_PAUSE_SECONDS, self._config.backoff_max_seconds))


def _says_nothing(connection: sqlite3.Connection, receiver: str, now: float) -> None:
    """A fault of ours speaks neither for the receiver nor against it."""


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
