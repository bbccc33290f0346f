"""What a file of rollouts alone can tell: tier 0 always, tier 1 where it carries the trainer's logprobs. No model, no torch.

A file has no clock worth trusting, so its rollouts are put in order (finish time where all have one, else file order) and
cut into equal batches, at most MAX_BATCHES. The bank then runs on them exactly as it does live, with the same budget: the
chance that a healthy file alarms is at most batches / A (a sum of e-processes has expectation ≤ batches; Markov, Doob).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from collector import populations, signals
from collector.config import SignalsConfig
from collector.records import BatchStats, Evidence, Rollout, SliceStats
from detectors.bank import Bank
from detectors.config import DetectorsConfig
from detectors.gains import rollout_gains
from detectors.hardfacts import facts
from detectors.self_bets import why_not
from diagnosis.audit import transforms

MAX_BATCHES = 200

State = Literal["wrong", "fine", "unknown", "blind"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report.

    >>> Finding(state="fine", topic="logprobs", text="all 20 logprobs are finite").state
    'fine'
    """

    state: State
    topic: str
    text: str  # one plain sentence with its numbers
    details: tuple[str, ...] = ()
    cause: str = ""  # one of CAUSES, when it points to one: "looks like", never a verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class BankRun:
    """The bank over one file."""

    batches: int
    ln_m: float  # highest reached, nats; −inf without a bet
    ln_a: float
    alarm_rollout: int | None  # number of rollouts (bets or not) when it crossed
    leading: str | None
    betting_rollouts: int
    why_not: str  # why rollouts could not bet, most common reason; "" when all did
    facts: tuple[str, ...]  # texts of hard facts, over the whole file
    fact_names: tuple[str, ...]

    @property
    def false_alarm_chance(self) -> float:
        """Upper bound on the chance that a healthy file alarms."""
        return min(1.0, self.batches * math.exp(-self.ln_a))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One batch of a file as the bank judged it. Its times are its number, not a clock's."""

    batch: BatchStats
    rollouts: tuple[Rollout, ...]
    evidence: tuple[Evidence, ...]
    ln_m: float  # after it, nats


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """Everything `klaxon look` says about a file. `tier` is 1 when at least one rollout carries trainer logprobs."""

    tier: Literal[0, 1]
    rollouts: int
    tokens: int  # sampled completion tokens
    engines: int
    verdict: Literal["mismatch", "nothing_wrong_found", "untested"]
    looks_like: str  # cause or ""
    findings: tuple[Finding, ...]
    bank: BankRun
    next: str
    signals: dict[str, float] = field(default_factory=dict)  # collector.signals.metrics, tier 1 only
    numbers: dict[str, Any] = field(default_factory=dict)  # tests behind the findings, for scripts


def ordered(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """By finish time when every rollout has one, otherwise as given; equal times keep the order of the file."""
    if any(rollout.finished_at is None for rollout in rollouts):
        return list(rollouts)
    return sorted(rollouts, key=lambda rollout: rollout.finished_at or 0.0)


def can_bet(rollout: Rollout) -> str | None:
    """Why this rollout cannot be bet on, or None. Where the trainer expects raw logprobs, reports need not match the sampler."""
    if rollout.expected_logprobs_mode == "raw_logprobs" and transforms(rollout.sampling):
        return "the trainer expects raw logprobs, which are not what tokens are sampled from"
    return why_not(rollout)


def run_bank(rollouts: Sequence[Rollout], *, config: DetectorsConfig, batch_seconds: float,
             signals_config: SignalsConfig | None = None, each: Callable[[Judged], None] = lambda judged: None) -> BankRun:
    """Self-bets, hard facts and, with trainer logprobs, the battery over the file; see the module for the batches. `each` hears every batch."""
    bank = Bank(config, batch_seconds=batch_seconds)
    size = max(1, math.ceil(len(rollouts) / MAX_BATCHES))
    whole = facts(_batch(0, rollouts, config, {}, signals_config)[0], None, config.facts)
    highest, alarm_rollout, leading, betting = -math.inf, None, None, 0
    reasons: dict[str, int] = {}
    batches = range(0, len(rollouts), size)
    for t, start in enumerate(batches):
        group = rollouts[start : start + size]
        batch, bets = _batch(t, group, config, reasons, signals_config)
        betting += bets
        evidence, _ = bank.update(batch)
        each(Judged(batch=batch, rollouts=tuple(group), evidence=evidence, ln_m=bank.ln_m))
        if bank.ln_m > highest:
            highest, leading = bank.ln_m, bank.leading
        if bank.firing and alarm_rollout is None:
            alarm_rollout = start + len(group)
    return BankRun(
        batches=len(batches), ln_m=highest, ln_a=bank.ln_a, alarm_rollout=alarm_rollout, leading=leading,
        betting_rollouts=betting, why_not=max(reasons, key=lambda reason: reasons[reason], default=""),
        facts=tuple(fact.text.replace("of this batch", "of this file") for fact in whole), fact_names=tuple(fact.name for fact in whole),
    )


def slices_of(rollouts: Sequence[Rollout], config: SignalsConfig | None = None) -> tuple[SliceStats, ...]:
    """Tier-1 statistics of all rollouts that carry trainer logprobs, every population."""
    config = config or SignalsConfig()
    return signals.merge(item for rollout in rollouts for item in populations.slices_of(rollout, None, config))


def _batch(t: int, group: Sequence[Rollout], config: DetectorsConfig, reasons: dict[str, int],
           signals_config: SignalsConfig | None) -> tuple[BatchStats, int]:
    gains: dict[str, float] = {}
    bets = 0
    for rollout in group:
        reason = can_bet(rollout)
        if reason is not None:
            reasons[reason] = reasons.get(reason, 0) + 1
            continue
        one = rollout_gains(rollout, None, config)
        bets += bool(one)
        for stream, gain in one.items():
            gains[stream] = gains.get(stream, 0.0) + gain
    nonfinite = sum(int((~np.isfinite(r.engine_logprobs_T) & r.sampled_mask_T).sum()) for r in group)
    batch = BatchStats(
        t=t, opened_at=float(t), closed_at=float(t + 1), slices=slices_of(group, signals_config), gains=gains,
        counts={"seen": len(group), "sampled": len(group), "nonfinite": nonfinite},
    )
    return batch, bets
