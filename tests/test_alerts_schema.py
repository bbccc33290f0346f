"""A file of the schema before opens and keeps what it holds."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from alerts import incidents
from alerts.config import ReceiverConfig
from alerts.db import SCHEMA_VERSION
from alerts_helpers import NOW, alerts_of

CONSOLE = ReceiverConfig(type="console", name="console")
OLD = """
CREATE TABLE incidents (
    id TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, run TEXT NOT NULL, state TEXT NOT NULL, severity TEXT NOT NULL,
    opened_at REAL NOT NULL, updated_at REAL NOT NULL, resolved_at REAL, title TEXT NOT NULL,
    since_lo REAL NOT NULL, since_hi REAL NOT NULL, drifts TEXT NOT NULL, diagnosis TEXT);
CREATE UNIQUE INDEX one_open_incident_a_fault ON incidents (fingerprint) WHERE state != 'resolved';
CREATE TABLE transitions (
    id INTEGER PRIMARY KEY, incident_id TEXT NOT NULL, at REAL NOT NULL, from_state TEXT, to_state TEXT NOT NULL, why TEXT NOT NULL);
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, incident_id TEXT NOT NULL, receiver TEXT NOT NULL, reason TEXT NOT NULL,
    message TEXT NOT NULL, state TEXT NOT NULL, created_at REAL NOT NULL, due_at REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    leased_until REAL, first_tried_at REAL, sent_at REAL, error TEXT);
CREATE TABLE deliveries (
    id INTEGER PRIMARY KEY, incident_id TEXT NOT NULL, receiver TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
    outbox_id TEXT, at REAL NOT NULL, last_at REAL NOT NULL, times INTEGER NOT NULL DEFAULT 1, told TEXT);
CREATE TABLE mutes (
    id TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, starts_at REAL NOT NULL, ends_at REAL NOT NULL, author TEXT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE receivers (name TEXT PRIMARY KEY, not_before REAL NOT NULL);
CREATE TABLE memories (
    incident_id TEXT NOT NULL, receiver TEXT NOT NULL, memory TEXT NOT NULL, PRIMARY KEY (incident_id, receiver));
PRAGMA user_version = 2;
"""
TOLD = ('{"at": %f, "reason": "first", "state": "firing", "severity": "page", "effect": null, "symptoms": 1, "verdict": null, '
        '"confident": false, "measured": false}') % NOW


def old_file(path: Path) -> str:
    """A file as the Klaxon before wrote it: one open incident, told once, and one mute over it. Returns the incident's id."""
    drift = ('[{"kind": "statistical", "stream": "self_bet:+0.6", "statistic": 14.2, "threshold": 9.9, "alarm_t": 18, "change_t": [16, 17], '
             '"slice": {}, "effect": null, "effect_unit": "nats", "text": ""}]')
    id_ = incidents.incident_id("r1/mismatch", 0)
    connection = sqlite3.connect(path)
    connection.executescript(OLD)
    connection.execute("INSERT INTO incidents VALUES (?, 'r1/mismatch', 'r1', 'firing', 'page', ?, ?, NULL, 'It differs', ?, ?, ?, NULL)",
                       (id_, NOW, NOW, NOW - 60, NOW, drift))
    connection.execute("INSERT INTO transitions (incident_id, at, from_state, to_state, why) VALUES (?, ?, NULL, 'firing', 'alarm in batch 18')", (id_, NOW))
    connection.execute("INSERT INTO deliveries (incident_id, receiver, reason, detail, at, last_at, told) VALUES (?, 'console', 'first', 'x', ?, ?, ?)",
                       (id_, NOW, NOW, TOLD))
    connection.execute("INSERT INTO mutes VALUES ('m1', 'r1/mismatch', ?, ?, 'ada', 'known')", (NOW, NOW + 3600))
    connection.commit()
    connection.close()
    return id_


def test_a_file_of_the_schema_before_opens_and_keeps_its_rows_and_its_mutes_go_on_as_silences(tmp_path) -> None:
    path = tmp_path / "control.sqlite"
    id_ = old_file(path)
    alerts = alerts_of(path, CONSOLE)
    (found,) = alerts.incidents()
    assert (found["id"], found["state"], found["returns"], found["history"][0]["why"]) == (id_, "firing", 0, "alarm in batch 18")
    (silence,) = alerts.desk.silences(NOW + 60)
    assert silence["match"] == {"fingerprint": "r1/mismatch"} and (silence["author"], silence["reason"], silence["id"]) == ("ada", "known", "m1")
    alerts.tick(NOW + 60)
    alerts.tick(NOW + 3600)
    assert [one["reason"] for one in alerts.decisions(id_)] == ["first", "muted", "repeat"]
    alerts.resolve("r1/mismatch", now=NOW + 4000, why="gone")
    assert [one["reason"] for one in alerts.decisions(id_)][-1] == "resolved"
    alerts.stop()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'mutes'").fetchall()
    connection.close()
    alerts_of(path, CONSOLE).stop()  # and once more
