"""Per-request corruption: is one rollout in a thousand confidently wrong while the rest are fine?

Question.    Did an engine return single rollouts that belong to another request, another state, another model?
Statistic.   Two numbers a rollout. *Outlier*: s = log(mean |d| + .0005) − log(certainty + .05), certainty = the smaller of the
             two sides' mean −log p, less the median s of the last 128 rollouts, so that what moves everybody moves nobody.
             *Confident*: c = tokens with engine p ≥ .5 that the trainer puts more than 2 nats lower; rounding cannot do that.
             Each becomes the probability P of a healthy rollout being as odd. Outlier: its rank among the healthy ones learnt;
             beyond the largest of them an exponential tail (Hill's estimate from the top 2 %, widened by two standard errors).
             Confident: π·r^(c − 1), π a bound on the share of healthy rollouts with one, r on the chance of a further one.
             e = 1 − λ + λ·κ·P^(κ − 1), κ = .1, averaged over the rollouts of one prompt and version: they are no
             independent witnesses. (kind, λ) is one stream; its gain is the log of that average as it grows.
Units.       s, gains: nats. P, λ: probabilities.
Guarantee.   κ·P^(κ − 1) is an e-value when P is at most uniform, whatever the distribution of d: a heavy-tailed but healthy
             floor (fp8, MoE) is learnt as it is. Ranks make P uniform while rollouts are exchangeable; beyond the largest one
             seen, and for c, P is an estimate: approximate, tested by bootstrap in tests/test_detectors_requests.py.
             P ≥ 1e-7, so one rollout gains at most log(1 + 2e5·λ), and the bank caps the batch.
Warm-up.     `warmup_rollouts`, for each coin and environment (label `env`) by itself: rollouts the hint coin kept are odd on purpose,
             and environments differ.
When it lies. A fault in more than a few per cent of the rollouts becomes the normal (the other streams see that one). Rollouts
             that are odd because their prompt is: they are averaged over one prompt, not over many alike, so a new kind of prompt under an
             old `env` can page. A healthy engine that makes one wildly odd rollout in a thousand cannot be told from a faulty one
             before a few thousand rollouts were learnt: it may page once.
Example.     Two thousand healthy rollouts with s ≤ .9 and mean excess .2; s = 5: P ≤ .02·exp(−(5 − .5)/.26) → 1e-7.
Source.      Vovk (conformal test martingales), Vovk & Wang (calibrators κ·p^(κ − 1)), Hill (1975); per-request faults in
             the field: one prompt in a thousand read another request's state (AI21, 2026).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from collector.records import Rollout, Score
from collector.signal_sums import CONFIDENT_DROP_NATS, CONFIDENT_LOGPROB
from detectors.requests_config import RequestsConfig

KINDS = ("outlier", "confident")
SMALLEST_P, KAPPA = 1e-7, 0.1
SMALLEST_D, SMALLEST_CERTAINTY = 0.0005, 0.05  # nats; a rollout both sides are sure of must come out low, never high
CLIP_NATS = 20.0  # a token outside the trainer's kept set counts as this much
CENTRE_ROLLOUTS, GROUPS, KINDS_HELD = 128, 256, 32
PRIOR_ROLLOUTS = {True: 5000.0, False: 250.0}
"""Healthy rollouts without a confident disagreement taken for granted, by base coin: rounding makes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Oddness:
    """What one rollout shows. `outlier` in nats, not yet centred; `confident` in tokens."""

    outlier: float
    confident: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What one rollout is worth: log gains a stream (nats), and how likely a healthy one is to be as odd; None = still learning."""

    gains: dict[str, float]
    probability: float | None


def stream(kind: str, fraction: float) -> str:
    """The stream's name.

    >>> stream("outlier", 0.01)
    'requests:outlier:0.01'
    """
    return f"requests:{kind}:{fraction:g}"


def streams(config: RequestsConfig) -> tuple[str, ...]:
    """Every stream this detector can give birth to."""
    return tuple(stream(kind, fraction) for kind in KINDS for fraction in config.bet_fractions)


def oddness(rollout: Rollout, score: Score, *, min_tokens: int) -> Oddness | None:
    """The two numbers of one rollout; None when too few of its tokens can be compared."""
    p_T, q_T = rollout.engine_logprobs_T.astype(np.float64), score.views["expected"].astype(np.float64)
    if not p_T.size == q_T.size == rollout.sampled_mask_T.size:
        return None
    known_T = rollout.sampled_mask_T & np.isfinite(p_T) & (np.isfinite(q_T) | np.isneginf(q_T))
    if score.scored_mask_T is not None:
        known_T = known_T & score.scored_mask_T
    if known_T.sum() < min_tokens:
        return None
    p, q = p_T[known_T], np.maximum(q_T[known_T], p_T[known_T] - CLIP_NATS)
    d = np.clip(q - p, -CLIP_NATS, CLIP_NATS)
    certainty = max(-max(p.mean(), q.mean()), 0.0)
    return Oddness(outlier=math.log(np.abs(d).mean() + SMALLEST_D) - math.log(certainty + SMALLEST_CERTAINTY),
                   confident=int(((p >= CONFIDENT_LOGPROB) & (d < -CONFIDENT_DROP_NATS)).sum()))


class Normal:
    """What healthy rollouts of one coin look like, learnt late and forgotten slowly."""

    def __init__(self, config: RequestsConfig, prior: float) -> None:
        self.config, self.prior = config, prior
        self._waiting: deque[tuple[float, int]] = deque()
        self._learnt: deque[tuple[float, int]] = deque()
        self._sorted: list[float] = []
        self._with = self._tokens = 0  # learnt rollouts with a confident disagreement, and how many tokens those have

    @property
    def ready(self) -> bool:
        """Were enough rollouts learnt to bet?"""
        return len(self._learnt) >= self.config.warmup_rollouts

    def learn(self, centred: float, confident: int) -> None:
        """Remember one rollout; it counts once `delay_rollouts` more have come."""
        self._waiting.append((centred, confident))
        if len(self._waiting) <= self.config.delay_rollouts:
            return
        taught = self._waiting.popleft()
        self._learnt.append(taught)
        insort(self._sorted, taught[0])
        self._with, self._tokens = self._with + (taught[1] > 0), self._tokens + taught[1]
        if len(self._learnt) > self.config.memory_rollouts:
            old = self._learnt.popleft()
            del self._sorted[bisect_left(self._sorted, old[0])]
            self._with, self._tokens = self._with - (old[1] > 0), self._tokens - old[1]

    def to_state(self) -> dict[str, Any]:
        """JSON-able."""
        return {"waiting": [list(item) for item in self._waiting], "learnt": [list(item) for item in self._learnt]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `to_state`."""
        self._waiting = deque((float(s), int(c)) for s, c in state["waiting"])
        self._learnt = deque((float(s), int(c)) for s, c in state["learnt"])
        self._sorted = sorted(s for s, _ in self._learnt)
        self._with, self._tokens = sum(c > 0 for _, c in self._learnt), sum(c for _, c in self._learnt)

    def outlier(self, centred: float) -> float:
        """P(a healthy rollout is at least this far out)."""
        n, at_least = len(self._sorted), len(self._sorted) - bisect_left(self._sorted, centred)
        rank = (1 + at_least) / (n + 1)
        top = max(20, n // 50)
        if at_least or n <= 2 * top:
            return rank
        edge = self._sorted[-top - 1]
        excess = sum(self._sorted[-top:]) / top - edge
        slope = max(excess, 1e-6) * (1 + 2 / math.sqrt(top))
        return min(rank, top / n * math.exp(-(centred - edge) / slope))

    def confident(self, tokens: int) -> float:
        """P(a healthy rollout has at least this many confident disagreements)."""
        if not tokens:
            return 1.0
        n, k = len(self._learnt), self._with
        share = max((k + 0.5) / (n + self.prior), (k + 2 * math.sqrt(k)) / n if k > 1 else 0.0)
        more = self._tokens - k
        again = min(max(0.5, (more + 2 * math.sqrt(more + 1)) / max(self._tokens, 1) if k > 1 else 0.0), 0.95)
        return min(1.0, share * again ** (tokens - 1))


class Requests:
    """Judges rollouts one by one, in order; owned by one caller."""

    def __init__(self, config: RequestsConfig) -> None:
        self.config = config
        self._normal: OrderedDict[tuple[bool, str], Normal] = OrderedDict()
        self._recent: dict[tuple[bool, str], deque[float]] = {}
        self._groups: OrderedDict[tuple, tuple[int, dict[str, float]]] = OrderedDict()

    @property
    def learning(self) -> bool:
        """True until rollouts of the base coin can be bet on."""
        return not any(normal.ready for (base, _), normal in self._normal.items() if base)

    def judge(self, rollout: Rollout, score: Score) -> Judged:
        """The log gains of one scored rollout; it is learnt from, later."""
        found = oddness(rollout, score, min_tokens=self.config.min_tokens)
        if found is None:
            return Judged(gains={}, probability=None)
        group = (rollout.base_coin, rollout.prompt_tokens_P.tobytes(), rollout.version)
        return self.weigh(found, base=rollout.base_coin, group=group, env=rollout.labels.get("env", ""))

    def weigh(self, found: Oddness, *, base: bool, group: tuple, env: str = "") -> Judged:
        """The same of what was already measured; `group` names the prompt and version."""
        normal, recent = self._kind(base, env)
        centred = found.outlier - (sorted(recent)[len(recent) // 2] if recent else found.outlier)
        judged = Judged(gains={}, probability=None)
        if normal.ready:
            p = {"outlier": normal.outlier(centred), "confident": normal.confident(found.confident)}
            judged = Judged(gains=self._gains(p, group), probability=min(p.values()))
        recent.append(found.outlier)
        normal.learn(centred, found.confident)
        return judged

    def to_state(self) -> list[dict[str, Any]]:
        """What was learnt, JSON-able; groups in hand are left out."""
        return [{"base": base, "env": env, "recent": list(self._recent[base, env]), "normal": normal.to_state()}
                for (base, env), normal in self._normal.items()]

    def restore(self, state: list[Mapping[str, Any]]) -> None:
        """The inverse of `to_state`."""
        for held in state:
            normal, recent = self._kind(bool(held["base"]), str(held["env"]))
            normal.restore(held["normal"])
            recent.extend(float(value) for value in held["recent"])

    def _kind(self, base: bool, env: str) -> tuple[Normal, deque[float]]:
        """What is normal for rollouts of this coin and environment; the environment not heard of for longest is forgotten."""
        key = (base, env)
        if key not in self._normal:
            self._normal[key], self._recent[key] = Normal(self.config, PRIOR_ROLLOUTS[base]), deque(maxlen=CENTRE_ROLLOUTS)
        self._normal.move_to_end(key)
        while len(self._normal) > KINDS_HELD:
            del self._recent[self._normal.popitem(last=False)[0]]
        return self._normal[key], self._recent[key]

    def _gains(self, p: dict[str, float], group: tuple) -> dict[str, float]:
        """How much the group's average e-value grows in logs by one more rollout."""
        count, sums = self._groups.pop(group, (0, {}))
        gains, after = {}, {}
        for kind, probability in p.items():
            calibrated = KAPPA * max(probability, SMALLEST_P) ** (KAPPA - 1)
            for fraction in self.config.bet_fractions:
                name = stream(kind, fraction)
                after[name] = sums.get(name, 0.0) + 1 - fraction + fraction * calibrated
                before = sums[name] / count if count else 1.0
                gains[name] = math.log(after[name] / (count + 1)) - math.log(before)
        self._groups[group] = (count + 1, after)
        while len(self._groups) > GROUPS:
            self._groups.popitem(last=False)
        return gains
