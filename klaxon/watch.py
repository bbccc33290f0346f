"""The tick: close batches, weigh the evidence, open and resolve incidents.

Runs on its own thread, so that an alarm never waits for the scorer.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from alerts.service import Alerts
from collector.records import BatchStats, Diagnosis, Drift
from collector.signals import metrics, total
from collector.store import Store
from detectors.bank import Bank
from detectors.config import DetectorsConfig
from detectors.hardfacts import Observation, facts
from klaxon.batches import BatchBuilder

log = logging.getLogger("klaxon.watch")
TICK_SECONDS = 0.5


class Watch(threading.Thread):
    """Closes due batches and feeds them to the bank; every drift goes to the alerts, the newest also to diagnosis."""

    def __init__(self, *, bank: Bank, config: DetectorsConfig, builder: BatchBuilder, builder_lock: threading.Lock,
                 store: Store, alerts: Alerts, observe: Callable[[float], Observation],
                 diagnose: Callable[[Drift], None], quick: Callable[[Sequence[Drift]], Diagnosis | None],
                 take_counts: Callable[[], dict[str, int]], after_batch: Callable[[], None],
                 batch_seconds: float, recovery_batches: int, clock: Callable[[], float]) -> None:
        super().__init__(name="klaxon-watch", daemon=True)
        self.bank, self.config, self.store, self.alerts = bank, config, store, alerts
        self.builder, self.builder_lock = builder, builder_lock
        self.observe, self.diagnose, self.quick, self.clock = observe, diagnose, quick, clock
        self.take_counts, self.after_batch = take_counts, after_batch
        self.batch_seconds = batch_seconds
        self.recovery_batches = recovery_batches
        self.counts: Counter[str] = Counter()
        self.last_batch: BatchStats | None = None
        self.statistical: Drift | None = None  # the statistical alarm that is firing
        self.clean_levels: deque[float] = deque(maxlen=500)  # mean |d| of batches closed while nothing fired, nats
        self._since_alarm: deque[BatchStats] = deque(maxlen=200)
        self._facts_seen: dict[str, int] = {}  # name of a fact with an open incident → last batch in which it held
        self._halt = threading.Event()

    def stop(self) -> None:
        """Ask the thread to end after the tick in hand."""
        self._halt.set()

    def run(self) -> None:
        """Tick until stopped; an error is counted and logged, and the next tick goes on."""
        while not self._halt.wait(TICK_SECONDS):
            try:
                self.tick(self.clock())
            except Exception:
                self.counts["tick_errors"] += 1
                log.exception("a tick failed inside Klaxon; the next goes on")

    def tick(self, now: float) -> None:
        """Close what is due at `now`."""
        with self.builder_lock:
            closed = self.builder.close_due(now)
        for batch in closed:
            self.take(batch, now)

    def take(self, batch: BatchStats, now: float) -> None:
        """Weigh one closed batch."""
        counts = dict(Counter(batch.counts) + Counter(self.take_counts()))
        batch = replace(batch, counts=counts)
        batch = replace(batch, facts=facts(batch, self.observe(now), self.config))
        evidence, drifts = self.bank.update(batch)
        self.store.append_batch(batch, evidence, ln_m=self.bank.ln_m, ln_a=self.bank.ln_a)
        self.after_batch()
        self.last_batch = batch
        self._remember_level(batch)
        for drift in drifts:
            self._alarm(drift, now)
        self._release_facts(batch, now)
        if self.statistical is not None and not batch.missing:
            self._since_alarm.append(batch)
            self._recover(batch, now)

    @property
    def floor_nats(self) -> float | None:
        """Median mean |d| of the batches closed while nothing fired; None before the first."""
        levels = sorted(self.clean_levels)
        return levels[len(levels) // 2] if levels else None

    def _remember_level(self, batch: BatchStats) -> None:
        if self.statistical is None and not self.bank.firing and batch.slices:
            self.clean_levels.append(metrics(total(batch.slices))["mean_abs_d"])

    def _alarm(self, drift: Drift, now: float) -> None:
        log.warning("ALARM %s: %s", drift.stream, drift.text)
        self.store.append_event(at=now, kind="alarm", text=drift.text, data={"stream": drift.stream, "t": drift.alarm_t})
        self.alerts.observe([drift], now=now, diagnosis=self.quick([drift]))
        if drift.kind == "statistical":
            self.statistical = drift
            self._since_alarm.clear()
            self.diagnose(drift)
        else:
            self._facts_seen[drift.stream] = drift.alarm_t

    def _release_facts(self, batch: BatchStats, now: float) -> None:
        """A hard fact that has been absent for a while resolves its incident."""
        for name in {fact.name for fact in batch.facts} & self._facts_seen.keys():
            self._facts_seen[name] = batch.t
        for name, last_t in list(self._facts_seen.items()):
            if batch.t - last_t >= self.config.facts.forget_after_batches:
                del self._facts_seen[name]
                self.alerts.resolve(name, now=now, why=f"it has not held for {batch.t - last_t} batches")

    def _recover(self, batch: BatchStats, now: float) -> None:
        """Resolve when a fresh detector on the last batches sees nothing, over at least twice the alarm's own delay."""
        drift = self.statistical
        wanted = max(self.recovery_batches, 2 * (drift.alarm_t - drift.change_t[1] + 1))
        recent = list(self._since_alarm)[-wanted:]
        if len(recent) < wanted:
            return
        fresh = Bank(self.config, batch_seconds=self.batch_seconds)
        for past in recent:
            fresh.update(replace(past, facts=()))
            if fresh.ln_m > fresh.ln_a / 4:
                return
        why = f"a fresh detector over the last {wanted} batches sees no mismatch"
        log.warning("RESOLVED %s: %s", drift.stream, why)
        self.store.append_event(at=now, kind="resolved", text=why, data={"t": batch.t})
        self.alerts.resolve("mismatch", now=now, why=why)
        self.bank.resolve(batch.t)
        self.statistical = None
        self._since_alarm.clear()
