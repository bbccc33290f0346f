"""Alerts: from the detectors' drifts to the people who must know. The one object the daemon holds.

    drifts ─incidents→ cases ─pipeline→ notices ─rows→ SQLite (one transaction) ─outbox→ notifiers

`observe` is called once a batch, drifts or not: repeats, and consequences whose cause has gone, are noticed there.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from alerts import incidents, rows
from alerts.config import AlertsConfig
from alerts.db import Database
from alerts.incidents import Case
from alerts.notice import Log
from alerts.notifiers import build
from alerts.outbox import Outbox
from alerts.pipeline import decide
from alerts.workers import Workers
from collector.errors import InputError, Unavailable
from collector.records import Diagnosis, Drift, Incident

OPEN = "SELECT * FROM incidents WHERE state != 'resolved' ORDER BY opened_at, id"
MANY_OPEN = 200  # from here on an end is told without another look at every open incident; the next batch looks
STORM_OPEN = 2000  # from here on what is new is told in rounds: one a second and thousand open incidents
MAX_UNSTORED = 1000


class Alerts:
    """Thread-safe. State lives in the SQLite file `path`; a new object on the same file goes on where the last one stopped."""

    def __init__(self, config: AlertsConfig, path: str | Path, *, run: str, budget_text: str, batch_seconds: float = 120.0,
                 clock: Callable[[], float] = time.time) -> None:
        """`budget_text` is the false-alarm budget in operator words, e.g. "1 per 30 days"; `clock` (UTC seconds) is only
        for the delivery threads.

        Raises:
            ConfigError: a receiver's address or secret is missing or unusable.
            Unavailable: the file cannot be used.
        """
        receivers = config.all_receivers()
        notifiers = {receiver.name: build(receiver, timeout_seconds=config.timeout_seconds) for receiver in receivers}
        self._config, self._run, self._budget_text, self._batch_seconds = config, run, budget_text, batch_seconds
        self._receivers = tuple(notifiers)
        self._unstored: list[tuple[Drift, float, float]] = []  # drift, now, closed_at: what a full disk did not take
        self._unstored_lock = threading.Lock()
        self._round_at = float("-inf")  # UTC seconds, when every open incident was last looked at
        self._database = Database(path)
        self._outbox = Outbox(self._database, notifiers, config, jitter=random.Random())
        self._workers = Workers(self._outbox, self._receivers, clock=clock)

    def observe(self, drifts: Iterable[Drift], *, now: float, diagnosis: Diagnosis | None = None,
                closed_at: float | None = None) -> tuple[Incident, ...]:
        """Take one batch's drifts (mostly none); returns the incidents they opened or updated.

        `closed_at` is the UTC end of the batch, default now. A diagnosis belongs to the mismatch incident.

        Raises:
            Unavailable: the change could not be stored, nothing of it was; its drifts are kept and taken with the next call.
        """
        touched: dict[str, Case] = {}
        fresh = [(drift, now, now if closed_at is None else closed_at) for drift in drifts]
        with self._unstored_lock:
            kept, self._unstored = [*self._unstored, *fresh], []
        try:
            self._observe(kept, touched, now=now, diagnosis=diagnosis)
        except Unavailable:
            with self._unstored_lock:
                self._unstored = [*kept, *self._unstored][:MAX_UNSTORED]
            raise
        self._workers.wake()
        return tuple(case.incident for case in touched.values())

    def _observe(self, kept: Sequence[tuple[Drift, float, float]], touched: dict[str, Case], *, now: float,
                 diagnosis: Diagnosis | None) -> None:
        with self._database.transaction() as connection:
            for drift, at, closed_at in kept:
                case = self._take(connection, drift, now=at, closed_at=closed_at)
                touched[case.incident.id] = case
            if diagnosis is not None:
                for case in rows.cases(connection.execute(OPEN).fetchall()):
                    if case.fault == "mismatch" and case.incident.run == self._run:
                        touched[case.incident.id] = self._save(connection, incidents.diagnosed(case, diagnosis, now=now))
            if self._round_is_due(connection, now):
                self._tell(connection, (), now)
                self._round_at = now

    def attach_diagnosis(self, incident_id: str, diagnosis: Diagnosis, *, now: float) -> Incident:
        """The verdict, or a better one, for an incident. Raises InputError for an unknown id, Unavailable when not stored."""
        with self._database.transaction() as connection:
            case = self._save(connection, incidents.diagnosed(self._case(connection, incident_id), diagnosis, now=now))
            self._tell(connection, (), now)
        self._workers.wake()
        return case.incident

    def acknowledge(self, incident_id: str, *, by: str, now: float) -> Incident:
        """A human has taken it: no more repeats. Raises InputError for an unknown id, Unavailable when not stored."""
        with self._database.transaction() as connection:
            case = self._case(connection, incident_id)
            if case.incident.state == "firing":
                case = self._save(connection, incidents.acknowledged(case, now=now))
                rows.note_transition(connection, case, before="firing", why=f"acknowledged by {by}")
        return case.incident

    def resolve(self, fingerprint: str, *, now: float, why: str) -> Incident | None:
        """The fault is gone; None when no incident of that fingerprint is open. Raises Unavailable when not stored."""
        with self._database.transaction() as connection:
            found = rows.cases(connection.execute(
                "SELECT * FROM incidents WHERE fingerprint = ? AND state != 'resolved'", (fingerprint,)).fetchall())
            if not found:
                return None
            case = self._save(connection, incidents.resolved(found[0], now=now))
            rows.note_transition(connection, case, before=found[0].incident.state, why=why)
            self._tell(connection, (case,), now, all_open=_open_count(connection) <= MANY_OPEN)
        self._workers.wake()
        return case.incident

    def open_incidents(self) -> tuple[Incident, ...]:
        """Firing and acknowledged incidents, oldest first."""
        return tuple(case.incident for case in rows.cases(self._database.rows(OPEN)))

    def incidents(self, limit: int = 100) -> list[dict[str, Any]]:
        """The newest incidents first, as dicts fit for JSON."""
        found = rows.cases(self._database.rows("SELECT * FROM incidents ORDER BY opened_at DESC, id LIMIT ?", limit))
        return [self._to_json(case) for case in found]

    def decisions(self, incident_id: str) -> list[dict[str, Any]]:
        """Why each receiver was or was not told, oldest first: receiver, reason, detail, at, last_at, times."""
        return [dict(row) for row in self._database.rows(
            "SELECT receiver, reason, detail, at, last_at, times FROM deliveries WHERE incident_id = ? ORDER BY id", incident_id)]

    def delivered_count(self, receiver: str | None = None) -> int:
        """Messages accepted by one receiver, or by all of them (the console included)."""
        return self._outbox.delivered(receiver)

    def undelivered(self) -> list[dict[str, Any]]:
        """Messages still waiting and dead letters, with their last error."""
        return self._outbox.undelivered()

    def redeliver(self, message_id: str) -> bool:
        """Send a dead letter again under its old id. False: a newer message of its incident has overtaken it, nothing is sent.

        Raises InputError for a message that is unknown or not dead, Unavailable when not stored.
        """
        found = self._outbox.redeliver(message_id)
        self._workers.wake()
        return found

    def receivers(self, now: float) -> list[dict[str, Any]]:
        """A dict a receiver: breaker (closed, open, half-open), failures in a row, waiting, dead, oldest_at of what waits (UTC seconds)."""
        return self._outbox.figures(now)

    def probe(self) -> None:
        """Raises Unavailable when the incident file takes no change (a full disk)."""
        self._database.probe()

    def counts(self) -> dict[str, int]:
        """Since the start of this process: sent, retries, dead, breaker_opened, notifier_errors, worker_errors, storage_errors, clock_jumps."""
        names = ("sent", "retries", "dead", "breaker_opened", "notifier_errors", "worker_errors", "storage_errors", "clock_jumps")
        return {name: self._outbox.counts[name] + self._workers.counts[name] for name in names}

    def deliver_due(self, now: float) -> int:
        """One synchronous delivery step, for callers without threads; returns how many messages were accepted."""
        return self._outbox.deliver_due(now)

    def start(self) -> None:
        """Deliver in the background."""
        self._workers.start()

    def stop(self, *, drain_seconds: float = 3.0) -> None:
        """Let what is due leave for up to `drain_seconds`, end the threads and close the file."""
        self._workers.stop(drain_seconds=drain_seconds)
        self._database.close()

    def _take(self, connection: sqlite3.Connection, drift: Drift, *, now: float, closed_at: float) -> Case:
        fingerprint = incidents.fingerprint(self._run, drift)
        known = rows.cases(connection.execute("SELECT * FROM incidents WHERE fingerprint = ?", (fingerprint,)).fetchall())
        for case in known:
            if case.is_open:
                return self._save(connection, incidents.updated(case, drift, now=now, batch_seconds=self._batch_seconds))
        case = incidents.opened(drift, run=self._run, id=incidents.incident_id(fingerprint, len(known)), now=now,
                                closed_at=closed_at, batch_seconds=self._batch_seconds)
        rows.insert_case(connection, case)
        return case

    def _tell(self, connection: sqlite3.Connection, ended: Sequence[Case], now: float, *, all_open: bool = True) -> None:
        """Run the pipeline over every open incident of the run, and those that just ended, and store what it decided."""
        open_cases = tuple(case for case in rows.cases(connection.execute(OPEN).fetchall()) if case.incident.run == self._run) if all_open else ()
        ids = [case.incident.id for case in (*open_cases, *ended)]
        log = Log(
            receivers=self._receivers, open_cases=open_cases, told=rows.told(connection, ids), unsent=rows.unsent(connection, ids),
            mutes=rows.mutes(connection, now), repeat_interval_seconds=self._config.repeat_interval_seconds,
            worse_factor=self._config.worse_factor, budget_text=self._budget_text, dashboard_url=self._config.dashboard_url)
        rows.journal(connection, decide((*open_cases, *ended), log, now), now)

    def _round_is_due(self, connection: sqlite3.Connection, now: float) -> bool:
        """Always, but in a storm: deciding depends on stored state alone, so what is put off is told with the next round."""
        still_open = _open_count(connection)
        return still_open <= STORM_OPEN or not 0 <= now - self._round_at < still_open / 1000

    def _save(self, connection: sqlite3.Connection, case: Case) -> Case:
        rows.update_case(connection, case)
        return case

    def _case(self, connection: sqlite3.Connection, incident_id: str) -> Case:
        found = rows.cases(connection.execute("SELECT * FROM incidents WHERE id = ?", (incident_id,)).fetchall())
        if not found:
            raise InputError(f"no incident {incident_id!r}; `klaxon status` lists the open ones")
        return found[0]

    def _to_json(self, case: Case) -> dict[str, Any]:
        incident = case.incident
        sent = self._database.rows(
            "SELECT d.receiver, d.reason, d.detail, d.at, coalesce(o.state, 'not sent') AS state FROM deliveries d"
            " LEFT JOIN outbox o ON o.id = d.outbox_id WHERE d.incident_id = ? ORDER BY d.id", incident.id)
        names = ("id", "fingerprint", "run", "state", "severity", "opened_at", "updated_at", "resolved_at", "title")
        return {
            **{name: getattr(incident, name) for name in names},
            "since": list(case.since), "alarm_t": incident.drifts[0].alarm_t, "change_t": list(incident.drifts[0].change_t),
            "drifts": [rows.drift_to_json(drift) for drift in incident.drifts],
            "diagnosis": rows.diagnosis_to_json(incident.diagnosis) if incident.diagnosis is not None else None,
            "notifications": [dict(row) for row in sent],
        }


def _open_count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM incidents WHERE state != 'resolved'").fetchone()[0])
