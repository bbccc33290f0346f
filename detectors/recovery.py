"""After an alarm: has the leading stream come back, or become twice as bad?

Question.    Is the level since the change still there? The mirrored question of the alarm.
Statistic.   y = the leading stream's value less its level before the change (battery), or its gain (other kinds). L = mean y
             since the change, followed slowly. v = whitened (y − L)/sd towards the fault. Recovery: e-SR of bets that v fell,
             and the median of the last three y below L/2. Growth: e-SR of bets that y rose by a doubling (ln 2 where y is a
             log, else L again).
Units.       Log evidence, nats; resolved at ln A of the budget, a second page at ln 4A (a quarter of the budget).
Guarantee.   While the fault holds its level, at least A batches on average to a false "resolved", as far as v is no wider
             than bets.py allows for: a lasting incident of 20 hours (600 batches) at A = 21,600 ends falsely in under 3 %.
When it lies. A fault that fades slower than L follows (some 60 batches) is followed down and resolved late.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detectors.bets import CLIP, log_normaliser

FOLLOW, FEWEST = 60.0, 5


class Aftermath:
    """One open statistical incident; `take` the leading stream's y once a batch."""

    def __init__(self, values: Sequence[float], *, sd: float, phi: float, logarithmic: bool, ln_a: float) -> None:
        """values: y since the change, the alarm's batch last. sd, phi: of y before the change."""
        self.ln_a, self.phi, self.logarithmic = ln_a, min(max(phi, 0.0), 0.95), logarithmic
        self.level, self.count, self.variance = 0.0, 0, sd**2
        self.before: float | None = None
        self.recovered_nats = self.grown_nats = -math.inf
        self.recent: list[float] = []
        for value in values:
            self._follow(value)

    def take(self, y: float) -> str | None:
        """"recovered", "grown" or None."""
        self.recent = [*self.recent[-2:], y]
        if self.count < FEWEST:
            self._follow(y)
            return None
        side, sd = math.copysign(1.0, self.level), math.sqrt(self.variance)
        off = (y - self.level) * side
        before = 0.0 if self.before is None else min(max(self.before, -3 * sd), 3 * sd)
        scale = sd * math.sqrt(1 - self.phi**2)
        v = (off - self.phi * before) / scale
        self.before = off
        effect = abs(self.level) * (1 - self.phi) / scale
        doubt = min(1.0, 1.0 / math.sqrt(self.count))
        self.recovered_nats = self._bet(self.recovered_nats, -v - doubt, 0.7 * effect)
        rise = (math.log(2.0) if self.logarithmic else abs(self.level)) * (1 - self.phi) / scale
        self.grown_nats = self._bet(self.grown_nats, v - doubt - 0.5 * rise, 0.35 * rise)
        if self.recovered_nats >= self.ln_a and float(np.median(self.recent)) * side < 0.5 * abs(self.level):
            return "recovered"
        if self.grown_nats >= self.ln_a + math.log(4.0):
            self.grown_nats, self.count, self.level = -math.inf, 1, y
            return "grown"
        if off > -0.5 * abs(self.level):
            self._follow(y)
        return None

    def _bet(self, log_sr: float, v: float, size: float) -> float:
        m = round(min(max(size, 0.3), 2.0), 1)
        gain = m * min(max(v, -CLIP), CLIP) - log_normaliser(m)
        return float(np.logaddexp(log_sr, 0.0)) + min(gain, self.ln_a / 2)

    def _follow(self, y: float) -> None:
        self.count += 1
        rate = 1.0 / min(float(self.count), FOLLOW)
        if self.count > 2:
            sd = math.sqrt(self.variance)
            held = min(max(y - self.level, -4 * sd), 4 * sd)
            self.variance += 0.5 * rate * (held**2 - self.variance) if held**2 > self.variance else 0.1 * rate * (held**2 - self.variance)
        self.level += rate * (y - self.level)

    def to_state(self) -> dict[str, Any]:
        """JSON-able."""
        finite = {name: value if math.isfinite(value) else None
                  for name, value in (("recovered", self.recovered_nats), ("grown", self.grown_nats))}
        return finite | {"ln_a": self.ln_a, "phi": self.phi, "logarithmic": self.logarithmic, "level": self.level, "count": self.count,
                         "variance": self.variance, "before": self.before, "recent": list(self.recent)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Aftermath:
        """The inverse of `to_state`."""
        made = cls([], sd=1.0, phi=state["phi"], logarithmic=state["logarithmic"], ln_a=state["ln_a"])
        made.level, made.count, made.variance = state["level"], state["count"], state["variance"]
        made.before, made.recent = state["before"], list(state["recent"])
        made.recovered_nats, made.grown_nats = (-math.inf if state[name] is None else state[name] for name in ("recovered", "grown"))
        return made
