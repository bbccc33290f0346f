"""Plain series (KL, clip rate, entropy, reward, gradient norm, loss, …) with the battery's front end and bets, two-sided.

Question.    Did this number leave its own past, up or down?
Statistic.   The value on a scale where noise is even: log where all first values are above 0, log-odds where they lie inside
             (0, 1), log of (v·n + .5)/(n + 1) for shares with zeros, else the value over its first spread. Then frontend.py
             and bets.py, with no covariate but time.
Units.       Gains in nats of log evidence.
Guarantee.   As the battery's. Every series has a weight fixed at its first bet: all that bet by then share half of the
             budget, later ones 1/(j(j+1)).
Warm-up.     FIRST values to choose the scale, then as the battery's.
When it lies. A metric that drifts with training by design, faster than the memory, or in steps (a schedule): expect pages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from detectors.block import Block
from detectors.config import BatteryConfig
from detectors.frontend import Settings

FIRST = 20
DEAD_BANDS = {"log": 0.03, "logit": 0.05, "share": 0.05, "plain": 0.1}
TINY = 1e-12


def scale_of(values: list[float]) -> tuple[str, float, float]:
    """(name, shift, spread) of the scale for a series that begins with these values.

    >>> scale_of([0.2, 0.4, 0.3])[0], scale_of([3.0, 50.0])[0], scale_of([0.0, 0.01])[0], scale_of([-1.0, 2.0])[0]
    ('logit', 'log', 'share', 'plain')
    """
    low, high = min(values), max(values)
    if 0 < low and high < 1:
        return "logit", 0.0, 1.0
    if low > 0:
        return "log", 0.0, 1.0
    if low >= 0 and high <= 1 and any(0 < value < 1 for value in values):
        return "share", 0.0, 1.0
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(np.array(values) - middle)))
    return "plain", middle, max(spread, 1e-3 * abs(middle), TINY)


def scaled(value: float, n: float, scale: tuple[str, float, float]) -> float:
    """The value on its scale; values beyond the scale's range are taken to its edge."""
    name, middle, spread = scale
    if name == "log":
        return math.log(max(value, TINY))
    if name == "logit":
        held = min(max(value, TINY), 1 - 1e-9)
        return math.log(held / (1 - held))
    if name == "share":
        count = n if n > 1 else 1000.0
        return math.log((max(value, 0.0) * count + 0.5) / (count + 1))
    return (value - middle) / spread


class Series:
    """One series: a block of one stream. `update` once a batch."""

    def __init__(self, name: str, config: BatteryConfig) -> None:
        self.name, self.config = name, config
        self.first: list[float] = []
        self.scale: tuple[str, float, float] | None = None
        settings = Settings(warmup=config.warmup_batches - FIRST, delay=config.delay_batches, memory=config.memory_batches)
        self.block = Block(settings, {"series": 1.0})
        self.log_weight = -math.inf

    def update(self, t: int, value: float, n: float, *, cap: float) -> None:
        """Take the value of batch t."""
        if self.scale is None:
            self.first.append(value)
            if len(self.first) < FIRST:
                return
            self.scale = scale_of(self.first)
            self.block.add([self.name], family="series", kinds=["both"], slopes=[0.0], floors=[0.003], dead_bands=[DEAD_BANDS[self.scale[0]]])
        x, zero = np.array([scaled(value, n, self.scale)]), np.zeros(1)
        self.block.step(t, x, zero, zero, np.array([max(n, TINY)]), cap=cap)

    @property
    def log_sr(self) -> float:
        """log of the mean SR over its bets; −inf before the first."""
        return float(self.block.bets.mean_log_sr()[0]) if self.block.size else -math.inf

    @property
    def betting(self) -> bool:
        """Did it bet yet?"""
        return bool(self.block.size) and not self.block.learning


class SeriesBattery:
    """Many series under one share of the budget; each ticks on its own batches."""

    def __init__(self, config: BatteryConfig, *, share: float) -> None:
        self.config, self.share = config, share
        self.series: dict[str, Series] = {}
        self._cohorts = 0

    def update(self, t: int, values: Mapping[str, tuple[float, float]], *, cap: float) -> None:
        """Take (value, n) of some series at batch t; non-finite values must not come here."""
        for name, (value, n) in values.items():
            if name not in self.series:
                self.series[name] = Series(name, self.config)
            self.series[name].update(t, value, n, cap=cap)
        self._weigh()

    def gains(self, t: int, values: Mapping[str, tuple[float, float]], *, cap: float) -> dict[str, float]:
        """As `update`, for a bank: "trainer_metrics:NAME" → log of the e-value of this batch, averaged over the bets."""
        before = {name: self.series[name].log_sr if name in self.series else -math.inf for name in values}
        self.update(t, values, cap=cap)
        return {f"trainer_metrics:{name}": self.series[name].log_sr - float(np.logaddexp(before[name], 0.0))
                for name in values if self.series[name].betting}

    def _weigh(self) -> None:
        new = [one for one in self.series.values() if one.betting and one.log_weight == -math.inf]
        if not new:
            return
        known = sum(one.log_weight == -math.inf for one in self.series.values())  # those about to bet share the cohort
        self._cohorts += 1
        parts = max(known, len(new)) if self._cohorts == 1 else len(new)
        for one in new:
            one.log_weight = math.log(self.share / (self._cohorts * (self._cohorts + 1)) / parts)
        if self._cohorts == 1:
            for one in self.series.values():
                one.log_weight = new[0].log_weight

    @property
    def ln_m(self) -> float:
        """ln of the weighted average."""
        worth = [one.log_weight + one.log_sr for one in self.series.values() if one.betting]
        return float(np.logaddexp.reduce(worth)) if worth else -math.inf

    @property
    def leading(self) -> Series | None:
        """The series that contributes most."""
        betting = [one for one in self.series.values() if one.betting]
        return max(betting, key=lambda one: one.log_weight + one.log_sr, default=None)

    def to_state(self) -> dict[str, Any]:
        """JSON-able."""
        return {"cohorts": self._cohorts, "series": {name: {
            "first": one.first, "scale": one.scale, "weight": None if one.log_weight == -math.inf else one.log_weight,
            "block": one.block.to_state()} for name, one in self.series.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `to_state` gave."""
        self._cohorts = state["cohorts"]
        for name, held in state["series"].items():
            one = self.series[name] = Series(name, self.config)
            one.first, one.scale = list(held["first"]), None if held["scale"] is None else tuple(held["scale"])
            one.log_weight = -math.inf if held["weight"] is None else held["weight"]
            one.block.restore(held["block"])
