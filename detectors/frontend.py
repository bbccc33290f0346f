"""The front end: what is left of a series once trend, lag, the policy's certainty and its own memory are taken out.

Question.    Is this batch's value higher than what this stream's own recent past makes likely?
Statistic.   x̂ = forgetting ridge regression on [1, t, z₁, z₂] (z₁ reported lag, z₂ log uncertainty of the policy, or the
             feature a conditional feature is given), Huber-clipped at 2.5 standard deviations, weighted by how much was
             seen, taught by a batch only `delay` batches later and never frozen by evidence. The residual is whitened by
             AR(p ≤ 2) (Yule–Walker on delayed residuals, partial correlations up to .98), then divided by its innovation
             standard deviation, by √(long-run variance at 8 and 32 batches), and by the noise of a batch with fewer
             sequences than usual.
Units.       u: standard deviations of the whitened residual. `doubt`: 0.7 standard errors of the baseline, same unit.
Guarantee.   None exact: u is centred with variance near 1 as far as residuals look like the recent past. Bets allow for
             wider, heavier-tailed u and for `doubt` (bets.py); the live audit measures what is left (audit.py).
Warm-up.     `ready` after `warmup` learnt batches; a late stream that was given the fleet's noise needs a third of that.
When it lies. A change in what covariates mean; a season much shorter than the memory and longer than 32 batches.
Cost.        O(1) a batch, all streams at once: arrays [..., K], K streams last; no stream waits for another.
Source.      Reference simulations; Yule–Walker and Levinson as in Brockwell & Davis, *Time Series*, 5.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from detectors.arrays import Arrays, spd_inverse

HUBER, CONDITION = 2.5, 3.0
MAX_PARTIAL, MIN_PARTIAL = 0.98, -0.3
SCALES = (1 / 8, 1 / 32)  # forgetting of the two running means behind the long-run variance
SHRINK = 2.0  # runs of a scale's length at which the long-run variance is believed half
POWER_CLIP = 4.0  # a fault must not pass for memory: one batch counts at most so many times the usual
DOUBT = 0.7
KNOWN = 40.0  # learnt residuals from which on u is taken into the long-run variance and the bets' own mean
STRANGE, STRANGE_LEAST = 2.5, 0.1
SOLVE_EVERY = 8  # a stream's baseline is solved again every so many batches
PRIOR_TREND, PRIOR_LAG, PRIOR_UNSURE = 5.0, 1.0, 1.0  # prior rows behind a slope of 0, 0 and `slope`
REBASE = 512  # batches after which the origin of t moves, for the sake of digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Of a block of streams, all in batches."""

    warmup: int
    delay: int
    memory: int


class FrontEnd(Arrays):
    """Parallel arrays, one column a stream; `step` once a batch."""

    FLOATS = ("moment", "beta", "rows", "c0", "c1", "c2", "mass", "taught1", "taught2", "n_typical", "last1", "last2",
              "smooth", "power", "power_mass", "slope", "floor", "prior_rows", "wary")
    SHAPES = {"gram": (4, 4), "inverse": (4, 4), "moment": (4,), "beta": (4,), "smooth": (2,), "power": (2,)}

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        super().__init__()
        self.keep = 1.0 - 1.0 / settings.memory
        self.origin: int | None = None
        self.calls = 0
        self.times = [0] * settings.delay  # batch numbers of the ring's slots

    def names(self) -> tuple[str, ...]:
        """Arrays with a value a stream; ring buffers included."""
        return ("gram", "inverse", *self.FLOATS, "last_at", "ring")

    def empty(self, name: str, count: int) -> np.ndarray:
        """The value at birth."""
        if name == "ring":  # x, z1, z2, n, u, off; NaN in x = absent
            return np.full((self.settings.delay, 6, count), np.nan)
        if name == "last_at":
            return np.full(count, -(10**9), np.int64)
        made = np.zeros((*self.SHAPES.get(name, ()), count))
        if name in ("last1", "last2", "taught1", "taught2"):
            made[:] = np.nan
        return made

    def born(self, count: int, *, slope: np.ndarray, floor: np.ndarray) -> None:
        """Add streams: prior slope on z₂, and the smallest standard deviation believed."""
        self.grow(count)
        self.slope[-count:], self.floor[-count:] = slope, floor
        self.beta[3, -count:] = slope
        for i in range(4):
            self.inverse[i, i, -count:] = 1.0

    def inherit(self, column: np.ndarray, like: np.ndarray) -> None:
        """New streams `column` start with the noise of the older streams `like` (one row of older streams each)."""
        rows = np.minimum(np.nanmedian(self.mass[like], axis=-1), 50.0)
        for name in ("c0", "c1", "c2"):
            mean = np.nanmedian(getattr(self, name)[like] / np.maximum(self.mass[like], 1e-9), axis=-1)
            getattr(self, name)[column] = mean * rows
        self.mass[column] = rows
        self.n_typical[column] = np.nanmedian(self.n_typical[like], axis=-1)
        self.power[:, column] = np.nanmedian(self.power[:, like] / np.maximum(self.power_mass[like], 1e-9), axis=-1) * rows
        self.power_mass[column] = rows
        self.prior_rows[column] = 2.0 * self.settings.warmup / 3.0

    @property
    def ready(self) -> np.ndarray:
        """bool [K]: enough was learnt to bet."""
        return self.rows + self.prior_rows >= self.settings.warmup

    def step(self, t: int, x: np.ndarray, z1: np.ndarray, z2: np.ndarray, n: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(u, doubt) of batch t, both [K]. Also learns the batch `delay` calls ago.

        u is NaN where x is, and where z₂ lies farther out than the baseline has seen: there a fit says nothing.
        least: standard deviation that a batch's counts cannot fall below, in units of x.
        """
        if self.origin is None:
            self.origin = t
        if t - self.origin >= REBASE:
            self._rebase(t)
        tau = (t - self.origin) / self.settings.memory
        here = np.isfinite(x)
        z1, z2 = np.where(here, z1, 0.0), np.where(here, z2, 0.0)
        residual = x - (self.beta[0] + self.beta[1] * tau + self.beta[2] * z1 + self.beta[3] * z2)
        raw = np.where(self._strange(z1, z2), np.nan, self._whiten(t, residual, least))
        widen = self.widening()
        thin = np.sqrt(np.clip(n / np.maximum(self.n_typical, 1e-9), 1e-4, 1.0))
        u = raw * thin / widen
        row = (1.0, tau, z1, z2)
        leverage = sum(row[i] * row[j] * self.inverse[i, j] for i in range(4) for j in range(4))
        doubt = DOUBT * np.sqrt(np.maximum(leverage, 0.0))
        self._remember(t, here, residual)
        self._learn()
        slot = self.ring[self.calls % self.settings.delay]
        known = np.where(self.mass >= KNOWN, raw * thin, np.nan)  # u over a noise hardly known would teach the bets fear
        slot[0], slot[1], slot[2], slot[3], slot[4], slot[5] = x, z1, z2, n, known, doubt
        self.times[self.calls % self.settings.delay] = t
        self.calls += 1
        return u, doubt

    def widening(self) -> np.ndarray:
        """√ of the long-run variance of u, at least 1 [K]; nearer to 1 while it rests on few batches."""
        mass = np.maximum(self.power_mass, 1.0)
        ratio = [(self.power[i] / mass * (2 - rate) / rate - 1) * mass * rate / (mass * rate + SHRINK) for i, rate in enumerate(SCALES)]
        return np.sqrt(1 + np.clip(np.maximum(*ratio), 0.0, 400.0))

    def sd(self) -> np.ndarray:
        """Standard deviation of the residual, AR part included [K]."""
        return np.maximum(np.sqrt(self.c0 / np.maximum(self.mass, 1e-9)) * 1.02, self.floor)

    def partials(self) -> tuple[np.ndarray, np.ndarray]:
        """Partial autocorrelations κ₁, κ₂ [K], each shrunk to 0 by its own uncertainty's square."""
        c0 = np.maximum(self.c0, 1e-30)
        one = np.clip(self.c1 / c0, MIN_PARTIAL, MAX_PARTIAL)
        two = np.clip((self.c2 / c0 - one**2) / (1 - one**2), -0.9, 0.9)
        return one, two * (self.mass > 30)

    def level(self, column: int, t: int, z1: float, z2: float) -> float:
        """The baseline of one stream."""
        tau = (t - (self.origin or 0)) / self.settings.memory
        return float(self.beta[:, column] @ [1.0, tau, z1, z2])

    def _strange(self, z1: np.ndarray, z2: np.ndarray) -> np.ndarray:
        """Is z₂, or z₁ where `wary`, more than STRANGE standard deviations from what was learnt [K]?"""
        rows = np.maximum(self.gram[0, 0], 1.0)

        def far(z: np.ndarray, i: int) -> np.ndarray:
            mean = self.gram[0, i] / rows
            return np.abs(z - mean) > STRANGE * np.sqrt(np.maximum(self.gram[i, i] / rows - mean**2, 0.0) + STRANGE_LEAST**2)

        return (far(z2, 3) | (far(z1, 2) & (self.wary > 0))) & (self.gram[0, 0] > 10)

    def _whiten(self, t: int, residual: np.ndarray, least: np.ndarray) -> np.ndarray:
        one, two = self.partials()
        sd, gap = np.maximum(self.sd(), least), t - self.last_at
        limit = CONDITION * sd
        near, before = np.clip(self.last1, -limit, limit), np.clip(self.last2, -limit, limit)
        second = (gap == 1) & np.isfinite(before)
        two = np.where(second, two, 0.0)
        first = np.where(gap == 1, one, np.where(gap < 200, np.maximum(one, 0.0) ** np.minimum(gap, 200), 0.0))
        expected = first * (1 - two) * np.where(np.isfinite(near), near, 0.0) + two * np.where(second, before, 0.0)
        first = np.where(np.isfinite(near), first, 0.0)
        return (residual - expected) / (sd * np.sqrt((1 - first**2) * (1 - two**2)))

    def _remember(self, t: int, here: np.ndarray, residual: np.ndarray) -> None:
        follows = here & (t - self.last_at == 1)
        self.last2 = np.where(here, np.where(follows, self.last1, np.nan), self.last2)
        self.last1 = np.where(here, residual, self.last1)
        self.last_at = np.where(here, t, self.last_at)

    def _learn(self) -> None:
        x, z1, z2, n, raw, _ = self.ring[self.calls % self.settings.delay]
        here = np.isfinite(x)
        if not here.any():
            return
        tau = (self.times[self.calls % self.settings.delay] - (self.origin or 0)) / self.settings.memory
        x0, keep = np.where(here, x, 0.0), np.where(here, self.keep, 1.0)
        self.n_typical = np.where(here, np.where(self.n_typical > 0, self.keep * self.n_typical + (1 - self.keep) * n, n), self.n_typical)
        weight = np.where(here, np.clip(n / np.maximum(self.n_typical, 1e-9), 0.0, 1.0), 0.0)
        predicted = self.beta[0] + self.beta[1] * tau + self.beta[2] * z1 + self.beta[3] * z2
        residual = x0 - predicted
        limit = np.where((self.rows >= 10) & ~self._strange(z1, z2), HUBER * self.sd(), np.inf)
        residual = np.clip(residual, -limit, limit)
        row = (np.ones_like(x0), np.full_like(x0, tau), z1, z2)
        weighted = [weight * np.where(here, value, 0.0) for value in row]
        y = predicted + residual
        for i in range(4):
            for j in range(i, 4):
                self.gram[i, j] = keep * self.gram[i, j] + weighted[i] * np.where(here, row[j], 0.0)
            self.moment[i] = keep * self.moment[i] + weighted[i] * np.where(here, y, 0.0)
        self.rows = self.rows + here
        self._learn_noise(here, keep, np.where(here, residual * np.sqrt(weight), np.nan), raw)
        self._solve()

    def _learn_noise(self, here: np.ndarray, keep: np.ndarray, residual: np.ndarray, raw: np.ndarray) -> None:
        ripe = here & (self.rows + self.prior_rows > 10)
        keep = np.where(ripe, keep, 1.0)
        for name, other in (("c0", residual), ("c1", self.taught1), ("c2", self.taught2)):
            product = residual * other
            setattr(self, name, keep * getattr(self, name) + np.where(ripe & np.isfinite(product), product, 0.0))
        self.mass = keep * self.mass + ripe
        self.taught2, self.taught1 = self.taught1, np.where(ripe, residual, np.nan)
        told = np.isfinite(raw)
        held = np.clip(np.where(told, raw, 0.0), -3.0, 3.0)
        for i, rate in enumerate(SCALES):
            self.smooth[i] = np.where(told, (1 - rate) * self.smooth[i] + rate * held, self.smooth[i])
            typical = np.maximum(self.power[i] / np.maximum(self.power_mass, 1.0), rate / (2 - rate))
            self.power[i] = np.where(told, self.keep * self.power[i] + np.minimum(self.smooth[i] ** 2, POWER_CLIP * typical), self.power[i])
        self.power_mass = np.where(told, self.keep * self.power_mass + 1.0, self.power_mass)

    def _solve(self) -> None:
        """Solve a share of the streams again; all of them while little was learnt."""
        young = bool((self.rows < 64).any())
        part = slice(None) if young else slice(self.calls % SOLVE_EVERY, None, SOLVE_EVERY)
        gram = self.gram[:, :, part].copy()
        prior = np.array([1e-3, PRIOR_TREND, PRIOR_LAG, PRIOR_UNSURE])
        for i in range(4):
            gram[i, i] += prior[i]
            for j in range(i):
                gram[i, j] = gram[j, i]
        inverse = spd_inverse(gram)
        moment = self.moment[:, part].copy()
        moment[3] += PRIOR_UNSURE * self.slope[part]
        self.inverse[:, :, part] = inverse
        self.beta[:, part] = np.einsum("ijk,jk->ik", inverse, moment)

    def _rebase(self, t: int) -> None:
        """Move the origin of t to here; every fit stays what it is."""
        h = (t - (self.origin or 0)) / self.settings.memory
        g = self.gram
        g[1, 1] += h * h * g[0, 0] - 2 * h * g[0, 1]
        g[1, 2] -= h * g[0, 2]
        g[1, 3] -= h * g[0, 3]
        g[0, 1] -= h * g[0, 0]
        self.moment[1] -= h * self.moment[0]
        self.beta[0] += h * self.beta[1]
        v = self.inverse
        v[0, :] += h * v[1, :]
        v[:, 0] += h * v[:, 1]
        self.origin = t

    def to_state(self) -> dict[str, Any]:
        """JSON-able."""
        return self.pack() | {"origin": self.origin, "calls": self.calls, "times": list(self.times)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `to_state` gave, bit for bit."""
        self.unpack(state)
        self.origin, self.calls, self.times = state["origin"], state["calls"], list(state["times"])

    def go_back(self, state: Mapping[str, Any]) -> None:
        """Take up the baseline and noise of an earlier `to_state`; streams born since keep theirs. Nothing waits to be learnt."""
        now = {name: getattr(self, name) for name in self.names()}
        calls, times, size = self.calls, self.times, self.size
        self.restore(state)
        for name, value in now.items():
            if name in ("ring", "last1", "last2", "last_at"):
                setattr(self, name, value)
            else:
                setattr(self, name, np.concatenate([getattr(self, name), value[..., self.size:]], axis=-1))
        self.calls, self.times, self.size = calls, times, size
        self.ring[:, 0] = np.nan
        self.ring[:, 4] = np.nan
        self.last1[:] = self.last2[:] = np.nan
