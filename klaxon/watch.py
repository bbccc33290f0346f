"""The tick: close batches, weigh the evidence, open and resolve incidents.

Runs on its own thread, so that an alarm never waits for the scorer.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alerts.service import Alerts
from collector.errors import Unavailable
from collector.records import BatchStats, Diagnosis, Drift, Evidence, Fact
from collector.signals import metrics, total
from collector.sources.progress import Mark
from collector.store import Store
from detectors import contract
from detectors.bank import REBASELINE, Bank
from detectors.hardfacts import Observation, facts
from klaxon.bank_state import EVERY_BATCHES, save
from klaxon.batches import BatchBuilder
from klaxon.config import Config
from klaxon.recent import Recent

log = logging.getLogger("klaxon.watch")
TICK_SECONDS = 0.5
UNSTORED_BATCHES = 500  # kept in memory while the store refuses
NAMED_ROLLOUTS = 20  # of an alarm on single requests
CLEAN_LEVELS = 500  # batches the floor is the median of


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What the watch asks of, and tells, the rest of the daemon."""

    say: Callable[[str, str, dict[str, Any]], None]  # kind, text, data → an event on the timeline
    observe: Callable[[float], Observation]  # what the hard facts judge, at a time
    quick: Callable[[Sequence[Drift]], Diagnosis | None]  # the leading explanation, at once
    diagnose: Callable[[Drift], None]  # start the competition
    after_batch: Callable[[], None]
    take_counts: Callable[[], dict[str, int]]  # refused and lost since the last batch
    requests_state: Callable[[], list[dict[str, Any]]] = list  # what was learnt about single requests
    storing: Callable[[int, Sequence[Mark]], None] = lambda t, marks: None  # before batch t is stored: where its rollouts were read
    suspects: Callable[[int, int], list[str]] = lambda first, last: []  # keyed hashes of odd rollouts of batches first … last


class Watch(threading.Thread):
    """Closes due batches and feeds them to the bank; every drift goes to the alerts, a statistical one to diagnosis."""

    def __init__(self, config: Config, *, bank: Bank, builder: BatchBuilder, builder_lock: threading.Lock, store: Store,
                 alerts: Alerts, hooks: Hooks, clock: Callable[[], float]) -> None:
        super().__init__(name="klaxon-watch", daemon=True)
        self.config, self.bank, self.store, self.alerts, self.hooks = config, bank, store, alerts, hooks
        self.builder, self.builder_lock, self.clock = builder, builder_lock, clock
        self.counts: Counter[str] = Counter()
        self.last_batch: BatchStats | None = None
        self.closed: Counter[str] = Counter()  # rollouts of closed batches: seen, scored, bet
        self.ticked_at = clock()  # UTC seconds, end of the last whole tick
        self.store_refusing_since: float | None = None  # UTC seconds; None = it writes
        self._statistical: Drift | None = None  # the statistical alarm that is firing
        self._clean_levels: deque[float] = deque(maxlen=CLEAN_LEVELS)
        self.recent = Recent()
        self._noted: dict[tuple[str, tuple], Fact] = {}  # facts seen since the last batch closed
        self._facts_seen: dict[str, int] = {}  # fingerprint of a fact's open incident → last batch in which it held
        self._unstored: deque[tuple[BatchStats, tuple[Evidence, ...], float, list[Mark]]] = deque(maxlen=UNSTORED_BATCHES)
        self._rebaseline = False
        self._halt = threading.Event()

    @property
    def floor_nats(self) -> float | None:
        """Median mean |d| of the batches closed while nothing fired; None before the first."""
        levels = sorted(self._clean_levels)
        return levels[len(levels) // 2] if levels else None

    def stop(self) -> None:
        """Ask the thread to end after the tick in hand."""
        self._halt.set()

    def run(self) -> None:
        """Tick until stopped, then seal; an error is counted and logged, and the next tick goes on."""
        while not self._halt.wait(TICK_SECONDS):
            self._guarded(self.tick)
        self._guarded(self.seal)

    def _guarded(self, step: Callable[[float], None]) -> None:
        try:
            step(self.clock())
        except Exception:
            self.counts["tick_errors"] += 1
            log.exception("a tick failed inside Klaxon; the next goes on")

    def tick(self, now: float) -> None:
        """Look for hard facts, then close what is due at `now`."""
        t = self.last_batch.t + 1 if self.last_batch else 0
        found = facts(None, self.hooks.observe(now), self.config.detectors.facts)
        self._noted |= {_key(fact): fact for fact in found}
        self._page(self.bank.note_facts(found, t=t), now)
        with self.builder_lock:
            closed = self._with_marks(self.builder.close_due(now))
        for batch, marks in closed:
            self._take(batch, marks, now)
        self.ticked_at = now

    def seal(self, now: float) -> None:
        """The end of this process: what has come in is judged and stored, the open batch too, cut short at `now`."""
        with self.builder_lock:
            closed = self._with_marks(self.builder.close_all(now))
        for batch, marks in closed:
            self._take(batch, marks, now)

    def _with_marks(self, closed: list[BatchStats]) -> list[tuple[BatchStats, list[Mark]]]:
        """Batches with where their rollouts were read; asked under the builder's lock."""
        return [(batch, self.builder.take_marks(batch.t)) for batch in closed]

    def rebaseline(self, reason: str) -> None:
        """A planned change was declared: from the next batch on the battery learns again what is normal."""
        self._rebaseline = True
        self.hooks.say("rebaseline", f"the battery learns again what is normal: {reason}", {"reason": reason})

    def _take(self, batch: BatchStats, marks: list[Mark], now: float) -> None:
        asked, self._rebaseline = self._rebaseline, False
        counts = dict(Counter(batch.counts) + Counter(self.hooks.take_counts()) + Counter({REBASELINE: 1} if asked else {}))
        batch = replace(batch, counts=counts, gains={**batch.gains, **contract.gains(batch, self.config.contract)})
        own = facts(batch, None, self.config.detectors.facts)
        batch = replace(batch, facts=(*own, *self._noted.values()))
        self._noted.clear()
        evidence, drifts = self.bank.update(batch)
        self._unstored.append((batch, evidence, self.bank.ln_m, marks))
        self.alerts.note_evidence(batch.closed_at, self.bank.ln_m)
        self._flush()
        self.last_batch = batch
        self.closed.update({name: batch.counts.get(name, 0) for name in ("seen", "scored", "bet")})
        self.recent.add(batch)
        self._tell_oddities(batch, own)
        self._remember_level(batch)
        self._page([self._sized(drift) for drift in drifts], now, closed_at=batch.closed_at)
        self._release_facts(batch, now)
        if not batch.missing:
            self._recover(batch, now)
        self._say_notices(batch)
        self._save(batch)
        self.hooks.after_batch()

    def _flush(self) -> None:
        """Store what waits, oldest first; while the store refuses (a full disk), the batches are kept and tried again."""
        while self._unstored:
            batch, evidence, ln_m, marks = self._unstored[0]
            try:
                self.hooks.storing(batch.t, marks)
                self.store.append_batch(batch, evidence, ln_m=ln_m, ln_a=self.bank.ln_a)
            except Unavailable as error:
                self.counts["store_errors"] += 1
                self.store_refusing_since = self.store_refusing_since or self.clock()
                log.error("batch %d is not stored yet, %d wait: %s", batch.t, len(self._unstored), error)
                return
            self._unstored.popleft()
            self.store_refusing_since = None

    def _remember_level(self, batch: BatchStats) -> None:
        whole = total(batch.slices)
        if self._statistical is None and not self.bank.firing and whole.n_tokens:
            self._clean_levels.append(metrics(whole)["mean_abs_d"])

    def _tell_oddities(self, batch: BatchStats, own: Sequence[Fact]) -> None:
        """What a human may want to look up later: batches with broken logprobs, rollouts far outside the healthy ones."""
        if own:
            log.error("corrupt batch %d: %s", batch.t, " ".join(fact.text for fact in own))
        if found := self.hooks.suspects(batch.t, batch.t):
            self.hooks.say("suspect_rollouts", f"{len(found)} rollouts of batch {batch.t} are far outside the healthy ones",
                           {"t": batch.t, "requests": found})

    def _named(self, drift: Drift) -> Drift:
        """An alarm on single requests with the rollouts that raised it, by the keyed hashes they are stored under."""
        if drift.kind == "fact" or not drift.stream.startswith("requests:"):
            return drift
        found = self.hooks.suspects(drift.change_t[0], drift.alarm_t)[-NAMED_ROLLOUTS:]
        if not found:
            return drift
        return replace(drift, slice={**drift.slice, "requests": ", ".join(found[-3:])},
                       text=f"{drift.text} Rollouts far outside the healthy ones (column request of `klaxon export rollouts`): {', '.join(found)}.")

    def _sized(self, drift: Drift) -> Drift:
        """The drift with its effect: mean |d| of the batches since the change, nats; as it is where nothing was compared."""
        drift = self._named(drift)
        whole = self.recent.since(drift.change_t[1])
        if drift.kind == "fact" or not whole.n_tokens:
            return drift
        return replace(drift, effect=metrics(whole)["mean_abs_d"], effect_unit="nats")

    def _page(self, drifts: Sequence[Drift], now: float, closed_at: float | None = None) -> None:
        statistical = [drift for drift in drifts if drift.kind == "statistical"]
        quick = self.hooks.quick(statistical) if statistical else None
        if drifts or closed_at is not None:
            self.alerts.observe(drifts, now=now, diagnosis=quick, closed_at=closed_at)
        for drift in drifts:
            log.warning("ALARM %s: %s", drift.stream, drift.text)
            self.hooks.say("alarm", drift.text, {"stream": drift.stream, "t": drift.alarm_t})
        for drift in statistical:
            self._statistical = drift
            self.hooks.diagnose(drift)

    def _release_facts(self, batch: BatchStats, now: float) -> None:
        """A hard fact that has been absent for a while resolves its incident."""
        holding = {(fact.name, *sorted(fact.slice.items())) for fact in batch.facts}
        for incident in self.alerts.open_incidents():
            drift = incident.drifts[0]
            if drift.kind != "fact":
                continue
            if (drift.stream, *sorted(drift.slice.items())) in holding:
                self._facts_seen[incident.fingerprint] = batch.t
            absent = batch.t - self._facts_seen.setdefault(incident.fingerprint, batch.t)
            if absent >= self.config.detectors.facts.forget_after_batches:
                del self._facts_seen[incident.fingerprint]
                self._resolve(incident.fingerprint, batch, now, f"{drift.stream} has not held for {absent} batches")

    def _recover(self, batch: BatchStats, now: float) -> None:
        """Resolve when the bank's mirrored detector says that the leading stream is back, and stays back for a while."""
        alarm = self.bank.alarm
        if alarm is None or not self.bank.recovered or batch.t - alarm[0] < self.config.daemon.recovery_batches:
            return
        for incident in self.alerts.open_incidents():
            if incident.drifts[0].kind == "statistical":
                self._resolve(incident.fingerprint, batch, now, f"{alarm[1]} is back where it was before the change")
        self.bank.resolve(batch.t)
        self._statistical = None

    def _say_notices(self, batch: BatchStats) -> None:
        while self.bank.notices:
            self.hooks.say("detector", self.bank.notices.pop(0), {"t": batch.t})

    def _save(self, batch: BatchStats) -> None:
        """Keep the bank's state, so that a restart need not replay a month of batches; never ahead of what is stored."""
        if batch.t % EVERY_BATCHES or self._unstored:
            return
        try:
            save(self.bank, Path(self.config.run.dir), self.config.detectors, requests=self.hooks.requests_state())
        except OSError as error:
            self.counts["state_errors"] += 1
            log.error("the detectors' state is not saved: %s", error)

    def _resolve(self, fingerprint: str, batch: BatchStats, now: float, why: str) -> None:
        log.warning("RESOLVED %s: %s", fingerprint, why)
        self.hooks.say("resolved", why, {"t": batch.t, "fingerprint": fingerprint})
        self.alerts.resolve(fingerprint, now=now, why=why)


def _key(fact: Fact) -> tuple[str, tuple]:
    return fact.name, tuple(sorted(fact.slice.items()))
