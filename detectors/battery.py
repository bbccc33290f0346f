"""The battery's first stream: has mean |d| risen beyond what the policy's certainty explains?

Question.    Tiers 1 and 2: did the mismatch of the whole fleet shift up and stay up?
Statistic.   x = log mean |d| of a batch, z = log mean (−log p). The healthy floor follows z (it fell thirty-fold in one
             real run as the policy grew sure of itself), so x is compared with a baseline x̂ = β₀ + β₁·z: ridge
             regression with prior slope 1, exponential forgetting, residuals Huber-clipped, taught by a batch only
             `delay_batches` later and never frozen by evidence. The residual less a dead band is whitened by AR(1),
             divided by its standard deviation and clipped at ±4: u. A bet on a shift of m standard deviations gains
             m·u − ψ(m), ψ(m) = log E exp(m·clip(T)) with T Student-t(4) stretched to a standard deviation of 1.25.
             z takes the smaller of the engine's and the trainer's −log p: one side gone astray cannot explain itself.
Units.       u in standard deviations; gains in nats of log evidence.
Guarantee.   E[e] ≤ 1 as far as the whitened residual is no heavier-tailed and no wider than T, and centred at or below
             the dead band. Unlike the bets of tier 0 and the explanations this is an approximation, tested by simulation
             (tests/test_detectors_battery.py), not a theorem. Every gain is bounded by 4·m − ψ(m).
Warm-up.     No bets until `warmup_batches` were learnt ("learning"); a missing batch changes nothing.
When it lies. A benign trend that z does not explain leaks in at its slope times the baseline's lag; very strong
             autocorrelation (above .95) whitens badly; a fault present from the first batch is the baseline; falls of
             mean |d| are not looked at; weight-version lag is no covariate yet.
Example.     Mean |d| trebles while z stays: log 3 = 1.1 against a residual spread of .1: u = 4, +4.5 nats a batch at m = 2.
Source.      Reference simulations on whitened contrasts; Shin, Ramdas, Rinaldo (*E-detectors*) for the combination.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from collector import signals
from collector.records import BatchStats
from detectors.config import BatteryConfig

CLIP = 4.0
HUBER = 2.5
PRIOR_SLOPE, PRIOR_ROWS = 1.0, 5.0
MAX_PHI = 0.95
SMALLEST_SD = 0.02  # of log mean |d|: 2 % batch to batch


def stream(shift: float) -> str:
    """The stream's name.

    >>> stream(0.5)
    'battery:log_abs_d:0.5'
    """
    return f"battery:log_abs_d:{shift:g}"


def features(batch: BatchStats, *, min_tokens: int) -> tuple[float, float, int] | None:
    """(log mean |d|, log mean −log p, scored tokens) of a batch; None when there is too little to look at."""
    if not batch.slices:
        return None
    whole = signals.total(batch.slices)
    engine, trainer = whole.sums["engine_logprob"], whole.sums["engine_logprob"] + whole.sums["d"]
    abs_d, sure = whole.sums["abs_d"], -max(engine, trainer)
    if whole.n_tokens < min_tokens or not (abs_d > 0 and sure > 0):
        return None
    return math.log(abs_d / whole.n_tokens), math.log(sure / whole.n_tokens), whole.n_tokens


def log_normalisers(shifts: Sequence[float]) -> np.ndarray:
    """ψ(m) for each shift m, nats: log E exp(m·clip(T, ±CLIP)), T Student-t(4) with standard deviation 1.25."""
    scale = 1.25 / math.sqrt(2.0)
    u = np.linspace(-CLIP, CLIP, 4001)
    x = u / scale
    density = 0.375 * (1 + x**2 / 4) ** -2.5 / scale
    root = math.sqrt(1 + x[-1] ** 2 / 4)
    tail = 0.5 - 0.375 * (x[-1] / root) * (1 - (x[-1] / root) ** 2 / 12)  # closed form of the t(4) tail
    means = [np.trapezoid(np.exp(m * u) * density, u) + tail * 2 * math.cosh(m * CLIP) for m in shifts]
    return np.log(np.array(means))


class Battery:
    """Forgetting baseline and bounded bets for one stream; `update` once a batch."""

    def __init__(self, config: BatteryConfig) -> None:
        self._config = config
        self._keep = 1.0 - 1.0 / config.memory_batches
        self._psi = log_normalisers(config.shifts)
        self._prior = np.diag([0.0, PRIOR_ROWS])
        self._gram, self._moment = np.zeros((2, 2)), np.zeros(2)
        self._beta = np.array([0.0, PRIOR_SLOPE])
        self._rows = self._squares = self._products = self._weight = 0.0
        self._typical_tokens = 0.0
        self._taught_residual: float | None = None
        self._last: tuple[int, float] | None = None
        self._waiting: deque[tuple[int, float, float, int]] = deque()

    @property
    def learning(self) -> bool:
        """True until enough batches were learnt to bet."""
        return self._rows < self._config.warmup_batches

    def update(self, batch: BatchStats) -> dict[str, float]:
        """Stream → log gain of this batch, nats; {} while learning or when the batch has nothing to look at."""
        seen = features(batch, min_tokens=self._config.min_tokens)
        if seen is None:
            return {}
        x, z, tokens = seen
        gains = {} if self.learning else self._bet(batch.t, x, z, tokens)
        self._waiting.append((batch.t, x, z, tokens))
        if len(self._waiting) > self._config.delay_batches:
            self._learn(*self._waiting.popleft())
        return gains

    def _bet(self, t: int, x: float, z: float, tokens: int) -> dict[str, float]:
        sd = self._sd()
        residual = x - self._predict(z) - math.log(self._config.dead_band_ratio)
        u = residual / sd
        if self._last is not None and self._last[0] == t - 1:
            phi = self._phi()
            before = min(max(self._last[1], -3 * sd), 3 * sd)
            u = (residual - phi * before) / (sd * math.sqrt(1 - phi**2))
        self._last = (t, residual)
        u *= math.sqrt(min(1.0, tokens / self._typical_tokens))
        clipped = min(max(u, -CLIP), CLIP)
        shifts = self._config.shifts
        return {stream(m): m * clipped - float(psi) for m, psi in zip(shifts, self._psi, strict=True)}

    def _learn(self, t: int, x: float, z: float, tokens: int) -> None:
        residual = x - self._predict(z)
        if self._rows >= 10:
            limit = HUBER * self._sd()
            residual = min(max(residual, -limit), limit)
            x = self._predict(z) + residual
            self._squares = self._keep * self._squares + residual**2
            self._products = self._keep * self._products + residual * (self._taught_residual or 0.0)
            self._weight = self._keep * self._weight + 1.0
            self._taught_residual = residual
        row = np.array([1.0, z])
        self._gram = self._keep * self._gram + np.outer(row, row)
        self._moment = self._keep * self._moment + row * x
        self._beta = np.linalg.solve(self._gram + self._prior, self._moment + self._prior @ [0.0, PRIOR_SLOPE])
        self._typical_tokens = tokens if not self._rows else self._keep * self._typical_tokens + (1 - self._keep) * tokens
        self._rows += 1

    def _predict(self, z: float) -> float:
        return float(self._beta[0] + self._beta[1] * z)

    def _sd(self) -> float:
        return max(SMALLEST_SD, math.sqrt(self._squares / self._weight)) if self._weight else 1.0

    def _phi(self) -> float:
        return min(max(self._products / self._squares, 0.0), MAX_PHI) if self._squares else 0.0

    def to_state(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "gram": self._gram.tolist(), "moment": self._moment.tolist(), "beta": self._beta.tolist(), "rows": self._rows,
            "squares": self._squares, "products": self._products, "weight": self._weight,
            "typical_tokens": self._typical_tokens, "taught_residual": self._taught_residual,
            "last": list(self._last) if self._last else None, "waiting": [list(row) for row in self._waiting],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `to_state` gave, bit for bit."""
        self._gram, self._moment = np.array(state["gram"]), np.array(state["moment"])
        self._beta, self._rows = np.array(state["beta"]), state["rows"]
        self._squares, self._products, self._weight = state["squares"], state["products"], state["weight"]
        self._typical_tokens, self._taught_residual = state["typical_tokens"], state["taught_residual"]
        self._last = tuple(state["last"]) if state["last"] else None
        self._waiting = deque(tuple(row) for row in state["waiting"])
