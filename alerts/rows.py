"""Rows ↔ records, and the statements that read and write them. Every function works inside a caller's transaction."""

from __future__ import annotations

import functools
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from alerts.incidents import Case
from alerts.notice import Notice, NotifyReason, Told
from alerts.silences import Silence
from collector.records import Cause, Diagnosis, Drift, Incident

MEMO = 12_000  # texts of which the record is kept: with a thousand open incidents most are read again, unchanged, with every batch


def insert_case(connection: sqlite3.Connection, case: Case) -> None:
    """A new incident and its first transition."""
    incident = case.incident
    connection.execute(
        "INSERT INTO incidents (id, fingerprint, run, state, severity, opened_at, updated_at, resolved_at, title, since_lo, since_hi, drifts,"
        " diagnosis, returns, changed_at, owed, acknowledgement) VALUES (:id, :fingerprint, :run, :state, :severity, :opened_at, :updated_at,"
        " :resolved_at, :title, :since_lo, :since_hi, :drifts, :diagnosis, :returns, :changed_at, :owed, :acknowledgement)", _values(case))
    note_transition(connection, case, before=None, why=f"alarm in batch {incident.drifts[0].alarm_t}")


def update_case(connection: sqlite3.Connection, case: Case) -> None:
    """The incident as it is now."""
    connection.execute(
        "UPDATE incidents SET state=:state, severity=:severity, updated_at=:updated_at, resolved_at=:resolved_at, title=:title,"
        " since_lo=:since_lo, since_hi=:since_hi, drifts=:drifts, diagnosis=:diagnosis, returns=:returns, changed_at=:changed_at, owed=:owed,"
        " acknowledgement=:acknowledgement WHERE id=:id", _values(case))


def note_transition(connection: sqlite3.Connection, case: Case, *, before: str | None, why: str, author: str | None = None) -> None:
    """One line of the incident's history; `author`: the person who made it so."""
    incident = case.incident
    connection.execute("INSERT INTO transitions (incident_id, at, from_state, to_state, why, author) VALUES (?, ?, ?, ?, ?, ?)",
                       (incident.id, incident.updated_at, before, incident.state, why, author))


def cases(rows: Iterable[sqlite3.Row]) -> tuple[Case, ...]:
    """Rows of `incidents` as cases."""
    return tuple(_case(row) for row in rows)


def told(connection: sqlite3.Connection, ids: Sequence[str], now: float) -> dict[tuple[str, str], Told]:
    """(incident id, receiver) → what the receiver was last told.

    Where the clock has gone back behind a message, its times become `now`, in the file too: intervals are counted from the
    jump on, so nothing is told twice and nothing waits for the old time to come again.
    """
    found = connection.execute(
        "SELECT id, incident_id, receiver, told FROM deliveries WHERE id IN (SELECT max(id) FROM deliveries WHERE told IS NOT NULL"
        " AND incident_id IN (SELECT value FROM json_each(?)) GROUP BY incident_id, receiver)", (json.dumps(list(ids)),)).fetchall()
    known = {}
    for row in found:
        one = _told(row["told"])
        if one.at > now or (one.first_at or 0.0) > now:
            one = replace(one, at=min(one.at, now), first_at=None if one.first_at is None else min(one.first_at, now))
            connection.execute("UPDATE deliveries SET told = ? WHERE id = ?", (json.dumps(asdict(one)), row["id"]))
        known[row["incident_id"], row["receiver"]] = one
    return known


def last(connection: sqlite3.Connection, ids: Sequence[str]) -> dict[tuple[str, str], NotifyReason]:
    """(incident id, receiver) → the reason of the last decision."""
    found = connection.execute(
        "SELECT incident_id, receiver, reason FROM deliveries WHERE id IN (SELECT max(id) FROM deliveries"
        " WHERE incident_id IN (SELECT value FROM json_each(?)) GROUP BY incident_id, receiver)", (json.dumps(list(ids)),)).fetchall()
    return {(row["incident_id"], row["receiver"]): NotifyReason(row["reason"]) for row in found}


def unsent(connection: sqlite3.Connection, ids: Sequence[str]) -> dict[tuple[str, str], NotifyReason]:
    """(incident id, receiver) → the reason of the message still waiting to leave."""
    found = connection.execute(
        "SELECT incident_id, receiver, reason FROM outbox WHERE state = 'pending'"
        " AND incident_id IN (SELECT value FROM json_each(?)) ORDER BY seq", (json.dumps(list(ids)),)).fetchall()
    return {(row["incident_id"], row["receiver"]): NotifyReason(row["reason"]) for row in found}


def silences(connection: sqlite3.Connection, now: float) -> tuple[Silence, ...]:
    """The silences that have not ended."""
    return tuple(silence(row) for row in connection.execute("SELECT * FROM silences WHERE ends_at > ? ORDER BY ends_at", (now,)).fetchall())


def silence(row: sqlite3.Row) -> Silence:
    """A row of `silences` as a record."""
    return Silence(**{**dict(row), "match": json.loads(row["match"])})


def insert_silence(connection: sqlite3.Connection, one: Silence) -> Silence:
    """Store a silence; returns it with its id."""
    nth = connection.execute("SELECT count(*) FROM silences").fetchone()[0]
    text = json.dumps(dict(one.match), sort_keys=True)
    found = replace(one, id="sil_" + hashlib.blake2b(f"{text}\n{one.created_at!r}\n{nth}".encode(), digest_size=5).hexdigest())
    connection.execute("INSERT INTO silences (id, match, starts_at, ends_at, created_at, author, reason) VALUES (?, ?, ?, ?, ?, ?, ?)",
                       (found.id, text, found.starts_at, found.ends_at, found.created_at, found.author, found.reason))
    return found


def journal(connection: sqlite3.Connection, notices: Iterable[Notice], now: float, *, count_repeats: bool = True) -> int:
    """Store every decision, put what is to be sent into the outbox, and note whose end is still to be told.

    A decision that repeats the one before is counted, or left out where `count_repeats` is False. Returns how many messages
    go into the outbox.
    """
    notices = tuple(notices)
    newest, repeated, enqueued, owed = _newest(connection, {notice.case.incident.id for notice in notices}), [], 0, {}
    for notice in notices:
        if not notice.case.is_open:
            id_ = notice.case.incident.id
            owed[id_] = owed.get(id_, False) or (notice.reason is not None and notice.reason.waits)
        outbox_id = _enqueue(connection, notice, now) if notice.message is not None else None
        enqueued += outbox_id is not None
        id_, *said = newest.get((notice.case.incident.id, notice.receiver), (None, None, None))
        if outbox_id is None and said == [str(notice.reason), notice.detail]:
            repeated.append((now, id_))
        else:
            connection.execute(
                "INSERT INTO deliveries (incident_id, receiver, reason, detail, outbox_id, at, last_at, told) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (notice.case.incident.id, notice.receiver, str(notice.reason), notice.detail, outbox_id, now, now,
                 json.dumps(asdict(notice.told)) if notice.told is not None else None))
    connection.executemany("UPDATE incidents SET owed = ? WHERE id = ? AND owed != ?", [(int(one), id_, int(one)) for id_, one in owed.items()])
    if count_repeats:
        connection.executemany("UPDATE deliveries SET times = times + 1, last_at = ? WHERE id = ?", repeated)
    return enqueued


def _newest(connection: sqlite3.Connection, ids: Iterable[str]) -> dict[tuple[str, str], tuple[int, str, str]]:
    """(incident id, receiver) → id, reason and detail of its newest decision."""
    found = connection.execute(
        "SELECT incident_id, receiver, max(id) AS id, reason, detail FROM deliveries"
        " WHERE incident_id IN (SELECT value FROM json_each(?)) GROUP BY incident_id, receiver", (json.dumps(list(ids)),)).fetchall()
    return {(row["incident_id"], row["receiver"]): (row["id"], row["reason"], row["detail"]) for row in found}


def _enqueue(connection: sqlite3.Connection, notice: Notice, now: float) -> str:
    """Newest state wins: an older message of the pair that has not left is superseded; its back-off and its place are inherited.

    Without the place an incident that changes faster than a long queue moves would never be told.

    A first attempt is due at once whatever `now` says: a replay tells recorded times, the delivery threads the real ones.
    """
    pair = (notice.case.incident.id, notice.receiver)
    nth = connection.execute("SELECT count(*) FROM outbox WHERE incident_id = ? AND receiver = ?", pair).fetchone()[0]
    waiting = connection.execute("SELECT seq, attempts, due_at FROM outbox WHERE incident_id = ? AND receiver = ? AND state = 'pending'"
                                 " ORDER BY seq DESC LIMIT 1", pair).fetchone()
    if waiting is not None:
        connection.execute("UPDATE outbox SET state = 'superseded' WHERE incident_id = ? AND receiver = ? AND state = 'pending'", pair)
        connection.execute("UPDATE outbox SET seq = (SELECT max(seq) + 1 FROM outbox) WHERE seq = ?", (waiting["seq"],))
    id_ = "msg_" + hashlib.blake2b("\n".join((*pair, str(nth))).encode(), digest_size=10).hexdigest()
    message = replace(notice.message, id=id_) if notice.message is not None else None
    connection.execute(
        "INSERT INTO outbox (seq, id, incident_id, receiver, reason, message, state, created_at, due_at, attempts)"
        " VALUES (?, ?, ?, ?, ?, ?, 'pending', ?, ?, ?)",
        (waiting["seq"] if waiting else None, id_, *pair, str(notice.reason), message.to_json() if message is not None else "", now,
         waiting["due_at"] if waiting else 0.0, waiting["attempts"] if waiting else 0))
    return id_


def plain(value: Any) -> Any:
    """A record's fields as JSON-able values: mappings to dicts, sequences to lists, NaN and infinities to None."""
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if hasattr(value, "items"):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    return str(value)


def drift_to_json(drift: Drift) -> dict[str, Any]:
    """A drift as a dict fit for JSON."""
    return {name: plain(getattr(drift, name)) for name in Drift.__dataclass_fields__}


def diagnosis_to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """A diagnosis as a dict fit for JSON."""
    found = {name: plain(getattr(diagnosis, name)) for name in Diagnosis.__dataclass_fields__ if name != "causes"}
    causes = [{name: plain(getattr(cause, name)) for name in Cause.__dataclass_fields__} for cause in diagnosis.causes]
    return {**found, "causes": causes}


def _values(case: Case) -> dict[str, Any]:
    incident = case.incident
    return {
        "id": incident.id, "fingerprint": incident.fingerprint, "run": incident.run, "state": incident.state, "severity": incident.severity,
        "opened_at": incident.opened_at, "updated_at": incident.updated_at, "resolved_at": incident.resolved_at, "title": incident.title,
        "since_lo": case.since[0], "since_hi": case.since[1], "drifts": json.dumps([drift_to_json(drift) for drift in incident.drifts]),
        "diagnosis": json.dumps(diagnosis_to_json(incident.diagnosis)) if incident.diagnosis is not None else None,
        "returns": case.returns, "changed_at": case.changed_at, "owed": int(case.owed), "acknowledgement": case.acknowledgement,
    }


def _case(row: sqlite3.Row) -> Case:
    return Case(since=(row["since_lo"], row["since_hi"]), returns=row["returns"], changed_at=row["changed_at"], owed=bool(row["owed"]),
                acknowledgement=row["acknowledgement"], incident=Incident(
        id=row["id"], fingerprint=row["fingerprint"], run=row["run"], state=row["state"], severity=row["severity"],
        opened_at=row["opened_at"], updated_at=row["updated_at"], resolved_at=row["resolved_at"], title=row["title"],
        drifts=_drifts(row["drifts"]), diagnosis=_diagnosis(row["diagnosis"]) if row["diagnosis"] is not None else None))


@functools.lru_cache(maxsize=MEMO)
def _told(text: str) -> Told:
    return Told(**json.loads(text))


@functools.lru_cache(maxsize=MEMO)
def _drifts(text: str) -> tuple[Drift, ...]:
    return tuple(_drift(drift) for drift in json.loads(text))


def _drift(found: dict[str, Any]) -> Drift:
    numbers = {name: float("nan") if found[name] is None else found[name] for name in ("statistic", "threshold")}
    return Drift(**{**found, **numbers, "change_t": tuple(found["change_t"])})


@functools.lru_cache(maxsize=MEMO)
def _diagnosis(text: str) -> Diagnosis:
    found = json.loads(text)
    causes = tuple(Cause(**{**cause, "evidence": tuple(cause["evidence"])}) for cause in found["causes"])
    return Diagnosis(**{**found, "causes": causes})
