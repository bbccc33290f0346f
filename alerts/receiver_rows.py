"""What is stored of a receiver (its gate, its messages' times), and what a clock that was set does to it.

Every function works inside a caller's transaction.
"""

from __future__ import annotations

import sqlite3

from alerts import gates
from alerts.gates import Gate, Limits


def load(connection: sqlite3.Connection, receiver: str) -> Gate:
    """What is remembered of a receiver; a fresh gate where nothing is."""
    found = connection.execute("SELECT * FROM gates WHERE receiver = ?", (receiver,)).fetchone()
    return gate_of(found) if found is not None else Gate()


def gate_of(row: sqlite3.Row) -> Gate:
    """A row of `gates`."""
    return Gate(**{name: row[name] for name in Gate.__dataclass_fields__})


def save(connection: sqlite3.Connection, receiver: str, gate: Gate) -> None:
    """Remember it."""
    connection.execute("INSERT OR REPLACE INTO gates VALUES (?, ?, ?, ?, ?)",
                       (receiver, gate.failures, gate.open_until, gate.tokens, gate.filled_at))


def move(connection: sqlite3.Connection, receiver: str, seconds: float) -> None:
    """The wall clock jumped: every stored time of this receiver moves along, so that no patience is lost or gained by it."""
    connection.execute("UPDATE outbox SET due_at = due_at + :by, leased_until = leased_until + :by, first_tried_at = first_tried_at + :by"
                       " WHERE receiver = :receiver AND state IN ('pending', 'leased')", {"by": seconds, "receiver": receiver})
    connection.execute("UPDATE receivers SET not_before = not_before + ? WHERE name = ?", (seconds, receiver))
    save(connection, receiver, gates.shifted(load(connection, receiver), seconds))


def settle(connection: sqlite3.Connection, receiver: str, limit: Limits, *, now: float, furthest: float, lease: float) -> None:
    """No stored time may lie further ahead than it can have been set: the clock may have been put back while nobody ran.

    `furthest` and `lease` are the latest times (UTC seconds) a message can be due, and leased until, as seen at `now`.
    """
    connection.execute(
        "UPDATE outbox SET due_at = min(due_at, :furthest), leased_until = min(leased_until, :lease), first_tried_at = min(first_tried_at, :now)"
        " WHERE receiver = :receiver AND state IN ('pending', 'leased')"
        " AND (due_at > :furthest OR leased_until > :lease OR first_tried_at > :now)",
        {"furthest": furthest, "lease": lease, "now": now, "receiver": receiver})
    connection.execute("UPDATE receivers SET not_before = ? WHERE name = ? AND not_before > ?", (furthest, receiver, furthest))
    gate = load(connection, receiver)
    if (settled := gates.settled(gate, limit, now)) != gate:
        save(connection, receiver, settled)
