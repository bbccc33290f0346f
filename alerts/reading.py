"""What the incident file holds, as plain data for the API, the page and the command line. Reads only."""

from __future__ import annotations

import sqlite3
from typing import Any

from alerts import rows
from alerts.db import Database
from alerts.incidents import Case
from alerts.notice import MEANING, NotifyReason
from collector.errors import InputError

SHOWN = 10  # open incidents named in an error
_NAMES = ("id", "fingerprint", "run", "state", "severity", "opened_at", "updated_at", "resolved_at", "title")


def incidents(database: Database, limit: int) -> list[dict[str, Any]]:
    """The newest incidents first, with what was told about each."""
    found = rows.cases(database.rows("SELECT * FROM incidents ORDER BY opened_at DESC, id LIMIT ?", limit))
    return [_incident(database, case) for case in found]


def open_incidents(database: Database, limit: int) -> list[dict[str, Any]]:
    """Those that fire or are acknowledged, the newest first."""
    found = rows.cases(database.rows("SELECT * FROM incidents WHERE state != 'resolved' ORDER BY opened_at DESC, id LIMIT ?", limit))
    return [_incident(database, case) for case in found]


def find(database: Database, named: str) -> Case:
    """The incident of an id, of a unique beginning of one, or "last".

    Raises:
        InputError: there is none, or more than one; the open ones are listed.
    """
    if named == "last":
        found = database.rows("SELECT * FROM incidents ORDER BY opened_at DESC, id LIMIT 1")
    else:
        found = database.rows("SELECT * FROM incidents WHERE id = ?", named) or database.rows(
            "SELECT * FROM incidents WHERE ? != '' AND substr(id, 1, length(?)) = ? ORDER BY opened_at DESC LIMIT ?", named, named, named, SHOWN)
    if len(found) == 1:
        return rows.cases(found)[0]
    if found:
        raise InputError(f"{named!r} is the beginning of {len(found)} incidents: {', '.join(row['id'] for row in found)}")
    raise InputError(f"no incident {named!r}; {_listed(database)}")


def explain(database: Database, named: str, now: float) -> dict[str, Any]:
    """One incident with its history, every decision in order, and the silences that cover it now. Raises as `find`."""
    case = find(database, named)
    silences = [rows.silence(row) for row in database.rows("SELECT * FROM silences WHERE ends_at > ? ORDER BY ends_at", now)]
    return {
        **_incident(database, case), "explained_at": now, "decisions": _decisions(database, case.incident.id),
        "silences": [one.to_json(now) for one in silences if one.fits(case)],
    }


def _incident(database: Database, case: Case) -> dict[str, Any]:
    incident = case.incident
    sent = database.rows(
        "SELECT d.receiver, d.reason, d.detail, d.at, coalesce(o.state, 'not sent') AS state FROM deliveries d"
        " LEFT JOIN outbox o ON o.id = d.outbox_id WHERE d.incident_id = ? ORDER BY d.id", incident.id)
    return {
        **{name: getattr(incident, name) for name in _NAMES}, "fault": case.fault,
        "since": list(case.since), "alarm_t": incident.drifts[0].alarm_t, "change_t": list(incident.drifts[0].change_t),
        "returns": case.returns, "acknowledgement": case.acknowledgement or None,
        "drifts": [rows.drift_to_json(drift) for drift in incident.drifts],
        "diagnosis": rows.diagnosis_to_json(incident.diagnosis) if incident.diagnosis is not None else None,
        "history": [dict(row) for row in database.rows(
            "SELECT at, from_state, to_state, why, author FROM transitions WHERE incident_id = ? ORDER BY id", incident.id)],
        "notifications": [dict(row) for row in sent],
    }


def _decisions(database: Database, incident_id: str) -> list[dict[str, Any]]:
    found = database.rows(
        "SELECT d.receiver, d.reason, d.detail, d.at, d.last_at, d.times, o.id AS message_id, o.state, o.attempts, o.sent_at, o.error"
        " FROM deliveries d LEFT JOIN outbox o ON o.id = d.outbox_id WHERE d.incident_id = ? ORDER BY d.id", incident_id)
    return [_decision(row) for row in found]


def _decision(row: sqlite3.Row) -> dict[str, Any]:
    reason = NotifyReason(row["reason"])
    message = {name: row[name] for name in ("message_id", "state", "attempts", "sent_at", "error")} if row["message_id"] is not None else None
    return {**{name: row[name] for name in ("receiver", "reason", "detail", "at", "last_at", "times")},
            "meaning": MEANING[reason], "sends": reason.sends, "message": message}


def _listed(database: Database) -> str:
    found = database.rows("SELECT id, title FROM incidents WHERE state != 'resolved' ORDER BY opened_at DESC, id LIMIT ?", SHOWN + 1)
    if not found:
        return "none is open; `klaxon incidents --all` lists those that were"
    named = [f"{row['id']} ({row['title']})" for row in found[:SHOWN]]
    return "open: " + ", ".join([*named, "…"] if len(found) > SHOWN else named)
