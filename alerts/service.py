"""Alerts: from the detectors' drifts to the people who must know. The one object the daemon holds.

    drifts ─incidents→ cases ─pipeline→ notices ─rows→ SQLite (one transaction) ─outbox→ notifiers

`observe` is called once a batch, drifts or not: repeats, and consequences whose cause has gone, are noticed there.
"""

from __future__ import annotations

import math
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from alerts import incidents, reading, rows
from alerts.config import AlertsConfig
from alerts.db import Database
from alerts.desk import Desk
from alerts.incidents import Case
from alerts.lock import StateLock
from alerts.message import measured
from alerts.notice import Log
from alerts.notifiers import build
from alerts.outbox import Outbox
from alerts.pipeline import decide
from alerts.policy import policy_of
from alerts.silences import text_of
from alerts.workers import Workers
from collector.errors import InputError, Unavailable
from collector.records import Diagnosis, Drift, Incident

OPEN = "SELECT * FROM incidents WHERE state != 'resolved' ORDER BY opened_at, id"
OWED = "SELECT * FROM incidents WHERE owed AND state = 'resolved' ORDER BY opened_at, id"
MANY_OPEN = 200  # from here on an end is told without another look at every open incident; the next batch looks
STORM_OPEN = 2000  # from here on what is new is told in rounds: one a second and thousand open incidents
MAX_UNSTORED = 1000
CHART_POINTS = 120


class Alerts:
    """Thread-safe. State lives in the SQLite file `path`; a new object on the same file goes on where the last one stopped."""

    def __init__(self, config: AlertsConfig, path: str | Path, *, run: str, budget_text: str, batch_seconds: float = 120.0,
                 clock: Callable[[], float] = time.time, exclusive: bool = False) -> None:
        """`budget_text` is the false-alarm budget in operator words, e.g. "1 per 30 days"; `clock` (UTC seconds) is only
        for the delivery threads. `exclusive`: no other exclusive one may run on this file until `stop`, or until this
        process has died.

        Raises:
            ConfigError: a receiver's address or secret is missing or unusable.
            Unavailable: the file cannot be used, or another daemon uses it.
        """
        receivers = config.all_receivers()
        notifiers = {receiver.name: build(receiver, timeout_seconds=config.timeout_seconds) for receiver in receivers}
        self._config, self._run, self._budget_text, self._batch_seconds = config, run, budget_text, batch_seconds
        self._receivers = tuple(notifiers)
        self._policies = {receiver.name: policy_of(receiver) for receiver in receivers}
        self._unstored: list[tuple[Drift, float, float]] = []  # drift, now, closed_at: what a full disk did not take
        self._unstored_lock = threading.Lock()
        self._chart: deque[tuple[float, float]] = deque(maxlen=CHART_POINTS)
        self._round_at = float("-inf")  # UTC seconds, when every open incident was last looked at
        with ExitStack() as on_failure:
            lock = StateLock(Path(path)) if exclusive else None
            if lock is not None:
                on_failure.callback(lock.release)
            self._database = Database(path)
            self._lock = lock
            on_failure.pop_all()
        self._outbox = Outbox(self._database, notifiers, config, jitter=random.Random())
        self._workers = Workers(self._outbox, self._receivers, clock=clock)
        self.desk = Desk(self._database, tell=lambda connection, now: self._tell(connection, (), now), wake=self._workers.wake)

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

    def note_evidence(self, at: float, ln_m: float) -> None:
        """ln M at the end of a batch, UTC seconds: the points of the chart that goes with a message."""
        if math.isfinite(ln_m):
            self._chart.append((round(at, 1), round(ln_m, 3)))

    def _observe(self, kept: Sequence[tuple[Drift, float, float]], touched: dict[str, Case], *, now: float,
                 diagnosis: Diagnosis | None) -> None:
        with self._database.transaction() as connection:
            for drift, at, closed_at in kept:
                case = self._take(connection, drift, now=at, closed_at=closed_at)
                touched[case.incident.id] = case
            if diagnosis is not None:
                for case in rows.cases(connection.execute(OPEN).fetchall()):
                    if case.fault == "mismatch" and case.incident.run == self._run and not _knows_better(case, diagnosis):
                        touched[case.incident.id] = self._save(connection, incidents.diagnosed(case, diagnosis, now=now))
            if self._round_is_due(connection, now):
                self._tell(connection, (), now)
                self._round_at = now

    def attach_diagnosis(self, incident_id: str, diagnosis: Diagnosis, *, now: float) -> Incident:
        """The verdict, or a better one, for an incident. Raises InputError for an unknown id, Unavailable when not stored."""
        with self._database.transaction() as connection:
            case = self._save(connection, incidents.diagnosed(self._case(incident_id), diagnosis, now=now))
            self._tell(connection, (), now)
        self._workers.wake()
        return case.incident

    def tick(self, now: float) -> None:
        """Tell what only the passing of time makes due: silences and quiet hours that end, escalations, repeats. Raises Unavailable."""
        with self._database.transaction() as connection:
            if self._round_is_due(connection, now):
                self._tell(connection, (), now, count_repeats=False)
                self._round_at = now
        self._workers.wake()

    def acknowledge(self, incident_id: str, *, by: str, now: float, reason: str = "") -> Incident:
        """A human has taken it: no more repeats, no escalation; those who were told hear who has it.

        Raises:
            InputError: no such incident, or it is over; the open ones are listed.
            Unavailable: not stored.
        """
        by = text_of({"author": by}, "author", "who takes it")
        with self._database.transaction() as connection:
            case = self._case(incident_id)
            if not case.is_open:
                raise InputError(f"{case.incident.id} is resolved; there is nothing to acknowledge")
            before = case.incident.state
            case = self._save(connection, incidents.acknowledged(case, now=now, by=by, reason=reason))
            rows.note_transition(connection, case, before=before, why=case.acknowledgement, author=by)
            self._tell(connection, (), now)
        self._workers.wake()
        return case.incident

    def resolve(self, fingerprint: str, *, now: float, why: str) -> Incident | None:
        """The fault is gone; None when no incident of that fingerprint is open. Raises Unavailable when not stored."""
        with self._database.transaction() as connection:
            found = rows.cases(connection.execute(
                "SELECT * FROM incidents WHERE fingerprint = ? AND state != 'resolved'", (fingerprint,)).fetchall())
            if not found:
                return None
            case = self._save(connection, incidents.resolved(found[0], now=now, calm_seconds=self._config.flap_window_seconds))
            rows.note_transition(connection, case, before=found[0].incident.state, why=why)
            self._tell(connection, (case,), now, all_open=_open_count(connection) <= MANY_OPEN)
        self._workers.wake()
        return case.incident

    def open_incidents(self) -> tuple[Incident, ...]:
        """Firing and acknowledged incidents, oldest first."""
        return tuple(case.incident for case in self.open_cases())

    def open_cases(self) -> tuple[Case, ...]:
        """The same with the times their faults began."""
        return rows.cases(self._database.rows(OPEN))

    def incidents(self, limit: int = 100) -> list[dict[str, Any]]:
        """The newest incidents first, as dicts fit for JSON."""
        return reading.incidents(self._database, limit)

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
        if self._lock is not None:
            self._lock.release()

    def _take(self, connection: sqlite3.Connection, drift: Drift, *, now: float, closed_at: float) -> Case:
        fingerprint = incidents.fingerprint(self._run, drift)
        earlier = connection.execute("SELECT count(*) FROM incidents WHERE fingerprint = ?", (fingerprint,)).fetchone()[0]
        newest = rows.cases(connection.execute(
            "SELECT * FROM incidents WHERE fingerprint = ? ORDER BY state = 'resolved', rowid DESC LIMIT 1", (fingerprint,)).fetchall())
        for case in newest:
            if case.is_open:
                return self._save(connection, incidents.updated(case, drift, now=now, batch_seconds=self._batch_seconds))
            if incidents.returned_soon(case, now=now, window_seconds=self._config.flap_window_seconds):
                again = self._save(connection, incidents.reopened(case, drift, now=now, batch_seconds=self._batch_seconds))
                rows.note_transition(connection, again, before="resolved", why=f"alarm in batch {drift.alarm_t}, soon after its end (return {again.returns})")
                return again
        case = incidents.opened(drift, run=self._run, id=incidents.incident_id(fingerprint, earlier), now=now,
                                closed_at=closed_at, batch_seconds=self._batch_seconds)
        rows.insert_case(connection, case)
        return case

    def _tell(self, connection: sqlite3.Connection, ended: Sequence[Case], now: float, *, all_open: bool = True, count_repeats: bool = True) -> None:
        """Run the pipeline over every open incident of the run, those that just ended and those whose end is still to be
        told, and store what it decided. Without `all_open`, over those that just ended alone."""
        open_cases = self._own(connection, OPEN, now) if all_open else ()
        over = {case.incident.id: case for case in (*(self._own(connection, OWED, now) if all_open else ()), *ended)}
        ids = [*(case.incident.id for case in open_cases), *over]
        config = self._config
        log = Log(
            receivers=self._receivers, policies=self._policies, open_cases=open_cases, told=rows.told(connection, ids, now),
            last=rows.last(connection, ids), unsent=rows.unsent(connection, ids), silences=rows.silences(connection, now),
            repeat_interval_seconds=config.repeat_interval_seconds, escalate_after_seconds=config.escalate_after_seconds,
            flap_window_seconds=config.flap_window_seconds, group_over=config.group_over, worse_factor=config.worse_factor,
            budget_text=self._budget_text, dashboard_url=config.dashboard_url, runbook_url=config.runbook_url,
            chart=tuple(self._chart))
        rows.journal(connection, decide((*open_cases, *over.values()), log, now), now, count_repeats=count_repeats)

    def _own(self, connection: sqlite3.Connection, sql: str, now: float) -> tuple[Case, ...]:
        """This run's cases. A change that lies ahead of a clock that went back becomes one of now, so that no wait lasts until then."""
        found = tuple(case for case in rows.cases(connection.execute(sql).fetchall()) if case.incident.run == self._run)
        return tuple(self._save(connection, replace(case, changed_at=now)) if (case.changed_at or 0.0) > now else case for case in found)

    def _round_is_due(self, connection: sqlite3.Connection, now: float) -> bool:
        """Always, but in a storm: deciding depends on stored state alone, so what is put off is told with the next round."""
        still_open = _open_count(connection)
        return still_open <= STORM_OPEN or not 0 <= now - self._round_at < still_open / 1000

    def _save(self, connection: sqlite3.Connection, case: Case) -> Case:
        rows.update_case(connection, case)
        return case

    def _case(self, named: str) -> Case:
        return reading.find(self._database, named)


def _knows_better(case: Case, guess: Diagnosis) -> bool:
    """A first guess does not replace a verdict that rests on re-scored rollouts."""
    return measured(case.incident.diagnosis) and not measured(guess)


def _open_count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM incidents WHERE state != 'resolved'").fetchone()[0])
