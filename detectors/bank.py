"""The bank: every stream of every kind under one false-alarm budget.

Question.    Taken together, is there enough evidence that something changed?
Statistic.   M = Σ w·SR over all streams: named ones (self-bets, explanations, …: one gain a batch in BatchStats.gains, esr.py)
             and the battery's block (battery.py). Weights are fixed at birth, Σ w ≤ 1 (streams.py, block.py). A
             statistical alarm when ln M ≥ ln A (budget.py). One tick a batch; a named gain is capped at (ln A − ln w)/2, the
             battery's largest counts at most CAP·ln(A), so that no single batch can page.
Units.       ln M, ln A, gains: nats of log evidence.
Guarantee.   An average of e-detectors is an e-detector under any dependence: at least A batches on average to a false
             statistical alarm, as far as each stream's own guarantee holds. Adding streams costs delay, no false pages.
Missing.     A stream without a gain in a batch does not tick (SR stays); an empty window has none. The budget counts wall
             clock windows, so idling can only make false alarms rarer. Whether a stream bets must not depend on the
             outcome of the bet.
Latch.       One statistical alarm, until `resolve`, which also starts all evidence from zero. A hard fact pages once per
             name and slice and may page again after `forget_after_batches` batches without it. A second statistical page
             comes only when the effect doubles or another slice joins (open_alarm.py), out of a quarter of the budget.
Recovery.    `recovered` says when the leading stream is back (recovery.py); the caller then calls `resolve`, and the
             battery goes on from the baseline it had when the alarm began.
Honesty.     audit.py follows the mean e-value of every family of the battery; `notices` says when it had to widen.
Replay.      The same BatchStats in the same order give the same evidence and drifts, bit for bit; so does a bank restored
             from `to_state` in between. A batch number that is not above the last one is ignored and counted, so that a
             restart may hand over again what it is not sure was taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from collector.errors import InputError
from collector.records import BatchStats, Drift, Evidence, Fact
from detectors import budget, looks
from detectors.audit import Audit
from detectors.battery import CAP, Battery
from detectors.block import TOP
from detectors.config import DetectorsConfig
from detectors.fact_latch import FactLatch
from detectors.looks import Look
from detectors.named import Named
from detectors.open_alarm import OpenAlarm
from detectors.streams import cause_of

STATE_SCHEMA = 3
RECENT = 100  # batches whose named gains are kept, to know an alarm's level
FAR = 8.0  # standard deviations beyond which one batch is worth a notice
AFFECTED = 0.1  # false discovery rate of the list of affected slices
REBASELINE = "rebaseline"  # in BatchStats.counts: learn again from this batch on; stored, so that a replay does the same
MEANING = {
    "self_bet": "sampled tokens do not follow the probabilities the engine reports",
    "explain": "this explanation predicts the engine's logprobs better than a healthy engine does",
    "trainer_metrics": "a metric the trainer reports left its own past",
    "requests": "single requests disagree as healthy numerics cannot",
    "reference": "a metric left the band of the reference runs",
    "contract": "the mismatch left what the contract declares",
}
"""What each kind of named stream says, for the text of an alarm."""


class Bank:
    """See the module. Owned by one caller; not thread-safe."""

    def __init__(self, config: DetectorsConfig, *, batch_seconds: float) -> None:
        """Raises ConfigError when the budget cannot be read or is too generous for `batch_seconds`."""
        self.ln_a = budget.ln_a(config.false_alarms, batch_seconds=batch_seconds)
        self.ignored: dict[str, int] = {}  # reason → how many gains or batches were left out
        self.notices: list[str] = []  # what the caller should log; it empties the list
        self._config = config
        self.named = Named(config)
        self.battery = Battery(config.battery, share=config.weights.battery)
        self.audit = Audit()
        self._last_t: int | None = None
        self._alarm_t: int | None = None
        self._resolved_t: int | None = None
        self._facts = FactLatch(config.facts.forget_after_batches)
        self._alarms = self._batches = 0
        self._open: OpenAlarm | None = None
        self._before: dict[str, Any] | None = None  # the battery's front end when the alarm began
        self._recovered_t: int | None = None
        self._far_t = -10
        self._recent: deque[tuple[int, dict[str, float]]] = deque(maxlen=RECENT)

    @property
    def ln_m(self) -> float:
        """ln of the weighted average of all streams; −inf before the first evidence."""
        return float(np.logaddexp(self.named.ln_m, self.battery.ln_m))

    @property
    def last_t(self) -> int | None:
        """The last batch taken."""
        return self._last_t

    @property
    def firing(self) -> bool:
        """True from a statistical alarm until `resolve`."""
        return self._alarm_t is not None

    @property
    def alarm(self) -> tuple[int, str] | None:
        """(batch, leading stream) of the open statistical alarm."""
        return None if self._alarm_t is None or self._open is None else (self._alarm_t, self._open.stream)

    @property
    def learning(self) -> bool:
        """True while the battery still learns its baseline; self-bets and explanations need no warm-up."""
        return self.battery.learning

    @property
    def leading(self) -> str | None:
        """The stream that contributes most to M; None before the first evidence.

        Of the battery it is the leading stream of the slice whose streams contribute most together.
        """
        named, block = self.named.contributions(), self.battery.block
        best = float(named.max(initial=-np.inf))
        column = self.battery.leading()
        if column is not None and block.contributions()[column] >= best:
            return block.keys[column]
        return None if best == -np.inf else self.named.names[int(np.argmax(named))]

    @property
    def leading_cause(self) -> str:
        """What the leading stream points to, one of CAUSES: a first guess for a message marked "diagnosing"."""
        leading = self.leading
        return "unexplained" if leading is None else cause_of(leading)

    def update(self, batch: BatchStats) -> tuple[tuple[Evidence, ...], tuple[Drift, ...]]:
        """Take one batch: the evidence of the streams that ticked, and the drifts that page now (mostly none).

        Of the battery only the streams that contribute most are listed (block.TOP), of all other kinds every one.
        """
        if self._last_t is not None and batch.t <= self._last_t:
            self._ignore("repeated_batch")
            return (), ()
        if batch.counts.get(REBASELINE):
            self.rebaseline(batch.t, "declared by the operator")
        drifts = list(self.note_facts(batch.facts, t=batch.t))
        self._facts.end_batch()
        evidence, found = self.look(looks.of_batch(batch), batch.gains)
        return evidence, (*drifts, *found)

    def look(self, look: Look, gains: Mapping[str, float]) -> tuple[tuple[Evidence, ...], tuple[Drift, ...]]:
        """As `update`, for a batch that does not come from a live run: no facts."""
        t = self._last_t = look.t
        self._batches += 1
        bet = self._resolved_t is None or t > self._resolved_t
        before = self.battery.block.bets.mean_log_sr()
        self.battery.update(look, cap=CAP * self.ln_a, bet=bet)
        if not bet:
            return (), ()
        evidence = (*self.named.tick(t, gains, ln_a=self.ln_a, ignore=self._ignore), *self._of_battery(t, before))
        self.notices += self.audit.take(self.battery.block, paused=self.firing)
        self._note_far(t)
        self._recent.append((t, dict(gains)))
        if self.firing:
            return evidence, self._after(t, gains)
        return evidence, (self._raise(t),) if self.ln_m >= self.ln_a else ()

    @property
    def recovered(self) -> bool:
        """True after the batch in which the leading stream of the open alarm came back."""
        return self._recovered_t is not None

    def rebaseline(self, t: int, reason: str) -> None:
        """A planned change at batch t: the battery forgets its baseline and evidence and learns again. Other kinds go on."""
        self.battery.block.relearn()
        self.notices.append(f"batch {t}: learning again what normal looks like: {reason}")

    def honesty(self) -> dict[str, Any]:
        """Promised against realised: statistical alarms, the false ones the budget allows for the batches seen, and the audit."""
        return {"batches": self._batches, "alarms": self._alarms, "promised_false_alarms": self._batches * float(np.exp(-self.ln_a)),
                "mean_e": self.audit.means(), "widened": self.battery.block.widen, "promise": self._config.false_alarms}

    def affected(self) -> list[dict[str, str]]:
        """Slices with evidence of their own, by e-BH at a false discovery rate of 10 %; largest first."""
        return self.battery.affected(self._batches, rate=AFFECTED)

    def _raise(self, t: int) -> Drift:
        self._alarm_t, self._recovered_t = t, None
        self._alarms += 1
        drift = self._drift(t)
        self._before = self.battery.block.front.to_state()
        start = self.change(drift.stream)[0]
        gains = [found[drift.stream] for at, found in self._recent if at >= start and drift.stream in found]
        self._open = OpenAlarm(drift.stream, self.battery, ln_a=self.ln_a, change_t=start, gains=gains)
        return drift

    def _after(self, t: int, gains: Mapping[str, float]) -> tuple[Drift, ...]:
        if self._open is None:
            return ()
        told, column = self._open.take(self.battery, gains)
        self._recovered_t = t if told == "recovered" else None
        if told == "grown":
            return (self._second(t, self._open.stream, "its effect has at least doubled"),)
        if column is not None:
            return (self._second(t, self.battery.block.keys[column], "another slice is affected"),)
        return ()

    def _second(self, t: int, stream: str, why: str) -> Drift:
        _, first, last = self.change(stream)
        text = f"A second page, out of a quarter of the budget ({self._config.false_alarms}): {why}; stream {stream}."
        return Drift(kind="statistical", stream=stream, statistic=max(self.ln_m, self.ln_a), threshold=self.ln_a, alarm_t=t,
                     change_t=(first, min(last, t)), slice=self.slice_of(stream), text=text)

    def _note_far(self, t: int) -> None:
        far = self.battery.far(FAR)
        if far and t - self._far_t > 1:
            self.notices.append(f"batch {t}: {far} streams of the battery lie more than {FAR:g} standard deviations off; one batch alone never pages")
        self._far_t = t if far else self._far_t

    def note_facts(self, facts: Iterable[Fact], *, t: int) -> tuple[Drift, ...]:
        """Hard facts seen between two batches page at once; put them into the next BatchStats too, for the replay."""
        return self._facts.note(facts, t=t)

    def resolve(self, now_t: int) -> None:
        """The statistical incident is over: forget all evidence up to batch `now_t`, and be ready to alarm again."""
        if self._before is not None:
            self.battery.block.front.go_back(self._before)
        self._open = self._before = self._recovered_t = None
        self._alarm_t, self._resolved_t = None, now_t
        self.named.sr.reset()
        self.battery.block.bets.reset()

    def _of_battery(self, t: int, before: np.ndarray) -> tuple[Evidence, ...]:
        block = self.battery.block
        told = np.flatnonzero(block.told)
        if not told.size:
            return ()
        worth, now = block.contributions(), block.bets.mean_log_sr()
        best = told[np.argsort(-worth[told], kind="stable")[:TOP]].tolist()
        return tuple(Evidence(
            t=t, stream=block.keys[i], weight=float(np.exp(block.log_weight[i])), log_sr=float(now[i]),
            gain=float(now[i] - np.logaddexp(before[i] if i < before.size else -np.inf, 0.0)), started_at=block.bets.change(i)[0],
        ) for i in best)

    def _ignore(self, reason: str) -> None:
        self.ignored[reason] = self.ignored.get(reason, 0) + 1

    def change(self, stream: str) -> tuple[int, int, int]:
        """(most likely, earliest, latest plausible) first changed batch a stream points to."""
        if stream in self.named.index:
            first, last = self.named.sr.interval(self.named.index[stream])
            return int(self.named.sr.start[self.named.index[stream]]), first, last
        return self.battery.block.bets.change(self.battery.block.keys.index(stream))

    def slice_of(self, stream: str) -> dict[str, str]:
        """{"replica": …, "position": …} a stream is about; {} for the whole fleet."""
        return self.battery.slice_of(stream) if stream.startswith("battery:") else {}

    def _drift(self, t: int) -> Drift:
        leading = self.leading or ""
        kind = leading.partition(":")[0]
        _, first, last = self.change(leading)
        last = min(last, t)
        since = f"batch {first}" if first == last else f"batches {first} to {last}"
        means = f"{self.battery.describe(leading)} changed beyond its own past" if kind == "battery" else MEANING[kind]
        text = (
            f"Evidence of a mismatch reached ln M = {self.ln_m:.1f}, above the threshold ln A = {self.ln_a:.1f} that keeps "
            f"false alarms within {self._config.false_alarms}; the leading stream is {leading} ({means}), "
            f"and the change began in {since}.{self._affected_text()}"
        )
        return Drift(
            kind="statistical", stream=leading, statistic=self.ln_m, threshold=self.ln_a, alarm_t=t,
            change_t=(first, last), slice=self.slice_of(leading), text=text,
        )

    def _affected_text(self) -> str:
        found = [" ".join(f"{name} {value}" for name, value in one.items()) for one in self.affected()]
        return f" Affected slices: {', '.join(found[:8])}{' and others' if len(found) > 8 else ''}." if found else ""

    def to_state(self) -> dict[str, Any]:
        """Everything `from_state` needs to go on bit for bit; JSON-able."""
        return {
            "schema": STATE_SCHEMA, "named": self.named.to_state(), "battery": self.battery.to_state(), "audit": self.audit.to_state(),
            "last_t": self._last_t, "alarm_t": self._alarm_t, "resolved_t": self._resolved_t, "facts": self._facts.to_state(),
            "ignored": dict(self.ignored), "alarms": self._alarms, "batches": self._batches,
            "open": None if self._open is None else self._open.to_state(), "before": self._before,
            "recovered_t": self._recovered_t, "far_t": self._far_t, "recent": [[t, found] for t, found in self._recent],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], config: DetectorsConfig, *, batch_seconds: float) -> Bank:
        """A bank that goes on where `to_state` left off. Raises InputError on a state of another schema."""
        if state.get("schema") != STATE_SCHEMA:
            raise InputError(f"is {state.get('schema')}, expected {STATE_SCHEMA}", field="schema", where="detector state")
        bank = cls(config, batch_seconds=batch_seconds)
        bank.named.restore(state["named"])
        bank.battery.restore(state["battery"])
        bank.audit.restore(state["audit"])
        bank._last_t, bank._alarm_t, bank._resolved_t = state["last_t"], state["alarm_t"], state["resolved_t"]
        bank._alarms, bank._batches = state["alarms"], state["batches"]
        bank._open = None if state["open"] is None else OpenAlarm.from_state(state["open"])
        bank._before, bank._recovered_t, bank._far_t = state["before"], state["recovered_t"], state["far_t"]
        bank._recent.extend((t, dict(found)) for t, found in state["recent"])
        bank._facts.restore(state["facts"])
        bank.ignored = dict(state["ignored"])
        return bank
