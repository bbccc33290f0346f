"""The bank: every stream of every kind under one false-alarm budget.

Question.    Taken together, is there enough evidence that something changed?
Statistic.   M = Σ w·SR over all streams (esr.py), weights fixed at birth with Σ w ≤ 1 (streams.py); a statistical alarm
             when ln M ≥ ln A (budget.py). One tick a batch; a batch's log gain is capped at ln(A)/2, so that no single
             batch can page.
Units.       ln M, ln A, gains: nats of log evidence.
Guarantee.   An average of e-detectors is an e-detector under any dependence: at least A batches on average to a false
             statistical alarm, as far as each stream's own guarantee holds. Adding streams costs delay, no false pages.
Missing.     A stream without a gain in a batch does not tick (SR stays); an empty window has none. The budget counts wall
             clock windows, so idling can only make false alarms rarer. Whether a stream bets must not depend on the
             outcome of the bet.
Latch.       One statistical alarm, until `resolve`, which also starts all evidence from zero. A hard fact pages once per
             name and slice and may page again after `forget_after_batches` batches without it.
Replay.      The same BatchStats in the same order give the same evidence and drifts, bit for bit; so does a bank restored
             from `to_state` in between. A batch number that is not above the last one is ignored and counted, so that a
             restart may hand over again what it is not sure was taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from collector.errors import InputError
from collector.records import BatchStats, Drift, Evidence, Fact
from detectors import budget
from detectors.battery import Battery
from detectors.config import DetectorsConfig
from detectors.esr import ShiryaevRoberts
from detectors.fact_latch import FactLatch
from detectors.streams import Weights, cause_of

STATE_SCHEMA = 1
MEANING = {
    "self_bet": "sampled tokens do not follow the probabilities the engine reports",
    "explain": "this explanation predicts the engine's logprobs better than a healthy engine does",
    "battery": "mean |d| rose beyond what the policy's certainty explains",
}
"""What each kind of stream says, for the text of an alarm."""


class Bank:
    """See the module. Owned by one caller; not thread-safe."""

    def __init__(self, config: DetectorsConfig, *, batch_seconds: float) -> None:
        """Raises ConfigError when the budget cannot be read or is too generous for `batch_seconds`."""
        self.ln_a = budget.ln_a(config.false_alarms, batch_seconds=batch_seconds)
        self.ignored: dict[str, int] = {}  # reason → how many gains or batches were left out
        self._config = config
        self._weights = Weights(config)
        self._battery = Battery(config.battery)
        self._names: list[str] = []
        self._index: dict[str, int] = {}
        self._log_weights: list[float] = []
        self._sr = ShiryaevRoberts()
        self._last_t: int | None = None
        self._alarm_t: int | None = None
        self._resolved_t: int | None = None
        self._facts = FactLatch(config.facts.forget_after_batches)

    @property
    def ln_m(self) -> float:
        """ln of the weighted average of all streams; −inf before the first evidence."""
        return float(np.logaddexp.reduce(self._contributions())) if self._names else -np.inf

    @property
    def firing(self) -> bool:
        """True from a statistical alarm until `resolve`."""
        return self._alarm_t is not None

    @property
    def learning(self) -> bool:
        """True while the battery still learns its baseline; self-bets and explanations need no warm-up."""
        return self._battery.learning

    @property
    def leading(self) -> str | None:
        """The stream that contributes most to M; None before the first evidence."""
        if not self._names or self.ln_m == -np.inf:
            return None
        return self._names[int(np.argmax(self._contributions()))]

    @property
    def leading_cause(self) -> str:
        """What the leading stream points to, one of CAUSES: a first guess for a message marked "diagnosing"."""
        leading = self.leading
        return "unexplained" if leading is None else cause_of(leading)

    def update(self, batch: BatchStats) -> tuple[tuple[Evidence, ...], tuple[Drift, ...]]:
        """Take one batch: the evidence of every stream that ticked, and the drifts that page now (mostly none)."""
        if self._last_t is not None and batch.t <= self._last_t:
            self._ignore("repeated_batch")
            return (), ()
        self._last_t = batch.t
        drifts = list(self.note_facts(batch.facts, t=batch.t))
        self._facts.end_batch()
        battery_gains = self._battery.update(batch)
        if self._resolved_t is not None and batch.t <= self._resolved_t:
            return (), tuple(drifts)
        evidence = self._tick(batch.t, {**batch.gains, **battery_gains})
        if not self.firing and self.ln_m >= self.ln_a:
            self._alarm_t = batch.t
            drifts.append(self._drift(batch.t))
        return evidence, tuple(drifts)

    def note_facts(self, facts: Iterable[Fact], *, t: int) -> tuple[Drift, ...]:
        """Hard facts seen between two batches page at once; put them into the next BatchStats too, for the replay."""
        return self._facts.note(facts, t=t)

    def resolve(self, now_t: int) -> None:
        """The statistical incident is over: forget all evidence up to batch `now_t`, and be ready to alarm again."""
        self._alarm_t, self._resolved_t = None, now_t
        self._sr.reset()

    def _contributions(self) -> np.ndarray:
        return np.array(self._log_weights) + self._sr.log_sr

    def _tick(self, t: int, gains: Mapping[str, float]) -> tuple[Evidence, ...]:
        ticking = [name for name in sorted(gains) if self._admit(name, gains[name])]
        if not ticking:
            return ()
        index_K = np.array([self._index[name] for name in ticking])
        gain_K = np.minimum([gains[name] for name in ticking], self.ln_a / 2)
        self._sr.update(t, index_K, gain_K)
        return tuple(
            Evidence(
                t=t, stream=name, weight=float(np.exp(self._log_weights[i])), gain=float(gain),
                log_sr=float(self._sr.log_sr[i]), started_at=int(self._sr.start[i]),
            )
            for name, i, gain in zip(ticking, index_K.tolist(), gain_K, strict=True)
        )

    def _admit(self, name: str, gain: float) -> bool:
        if not np.isfinite(gain):
            self._ignore("nonfinite_gain")
            return False
        if name in self._index:
            return True
        weight = self._weights.birth(name)
        if not weight:
            self._ignore("unknown_stream" if weight is None else "zero_weight")
            return False
        self._index[name] = len(self._names)
        self._names.append(name)
        self._log_weights.append(float(np.log(weight)))
        self._sr.add()
        return True

    def _ignore(self, reason: str) -> None:
        self.ignored[reason] = self.ignored.get(reason, 0) + 1

    def _drift(self, t: int) -> Drift:
        leading = self.leading or ""
        first, last = self._sr.interval(self._index[leading])
        since = f"batch {first}" if first == last else f"batches {first} to {last}"
        text = (
            f"Evidence of a mismatch reached ln M = {self.ln_m:.1f}, above the threshold ln A = {self.ln_a:.1f} that keeps "
            f"false alarms within {self._config.false_alarms}; the leading stream is {leading} ({MEANING[leading.partition(':')[0]]}), "
            f"and the change began in {since}."
        )
        return Drift(
            kind="statistical", stream=leading, statistic=self.ln_m, threshold=self.ln_a, alarm_t=t,
            change_t=(first, last), text=text,
        )

    def to_state(self) -> dict[str, Any]:
        """Everything `from_state` needs to go on bit for bit; JSON-able."""
        return {
            "schema": STATE_SCHEMA, "names": list(self._names), "log_weights": list(self._log_weights),
            "weights": self._weights.to_state(), "sr": self._sr.to_state(), "battery": self._battery.to_state(),
            "last_t": self._last_t, "alarm_t": self._alarm_t, "resolved_t": self._resolved_t, "facts": self._facts.to_state(),
            "ignored": dict(self.ignored),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], config: DetectorsConfig, *, batch_seconds: float) -> Bank:
        """A bank that goes on where `to_state` left off. Raises InputError on a state of another schema."""
        if state.get("schema") != STATE_SCHEMA:
            raise InputError(f"is {state.get('schema')}, expected {STATE_SCHEMA}", field="schema", where="detector state")
        bank = cls(config, batch_seconds=batch_seconds)
        bank._names, bank._log_weights = list(state["names"]), list(state["log_weights"])
        bank._index = {name: i for i, name in enumerate(bank._names)}
        bank._weights.restore(state["weights"])
        bank._sr = ShiryaevRoberts.from_state(state["sr"])
        bank._battery.restore(state["battery"])
        bank._last_t, bank._alarm_t, bank._resolved_t = state["last_t"], state["alarm_t"], state["resolved_t"]
        bank._facts.restore(state["facts"])
        bank.ignored = dict(state["ignored"])
        return bank
