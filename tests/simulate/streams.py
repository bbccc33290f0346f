"""Mismatch streams as batch JSONL rows: healthy families and faults, 8 replicas × 4 positions, one batch every 2 minutes.

A token's |d| is log-normal-like (a mixture, heavy-tailed) with a level per batch, replica and position; counts by bin are
multinomial with over-dispersion from sequences. Everything is vectorised over runs: arrays [runs, replicas, positions, …].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import ndtr

EDGES = np.array([0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.2, 0.26, 0.5, 1, 3, np.inf])
LOG_EDGES = np.log(np.maximum(EDGES[1:-1], 1e-300))
REPLICAS, POSITIONS = 8, 4
MINUTES = 2.0


@dataclass(frozen=True, kw_only=True)
class Family:
    """A healthy floor. All rates a batch unless said otherwise."""

    name: str
    phi: tuple[float, float] = (0.0, 0.0)  # AR coefficients of the fleet-wide log level
    noise: float = 0.06  # standard deviation of the fleet-wide log level
    slice_noise: float = 0.04  # of each replica and of each position, iid
    slice_phi: float = 0.0
    trend_a_day: float = 0.0  # of the log level
    season: float = 0.0  # amplitude of a daily season of the log level
    sawtooth: float = 0.0  # height of an unreported lag sawtooth of the log level
    lag_effect: float = 0.0  # of a reported lag, a version
    missing: float = 0.0  # share of batches
    missing_slices: float = 0.0
    churn: float = 0.0  # chance a batch that a replica leaves or joins
    cadence_day: float = 0.0  # from this day on batches are half as long
    step_days: float = 0.0  # a benign, undeclared step of +10 % every so many days
    sharpen_days: float = 0.0  # entropy falls thirty-fold over so many days, jumping back at a curriculum step
    sigma: float = 1.1  # spread of log |d| over tokens
    tail: float = 0.002  # share of tokens from a component five times wider
    skew: float = 0.0  # E|log level| of rare upward excursions, MoE-like
    tokens: float = 4000.0
    sequences: float = 16.0


NULLS = {family.name: family for family in (
    Family(name="iid"),
    Family(name="ar1", phi=(0.8, 0.0), slice_phi=0.5),
    Family(name="ar2", phi=(1.7, -0.7154), noise=0.08, slice_phi=0.8),  # roots .98 and .73
    Family(name="trend", phi=(0.5, 0.0), trend_a_day=0.15),
    Family(name="lag", phi=(0.5, 0.0), lag_effect=0.03),
    Family(name="full", phi=(0.8, 0.0), slice_phi=0.5, trend_a_day=0.1, lag_effect=0.03, missing=0.03, missing_slices=0.03, churn=0.002),
    Family(name="sharpen", phi=(0.5, 0.0), sharpen_days=5.0),
    Family(name="heavy", phi=(0.5, 0.0), tail=0.02, sigma=1.6, skew=0.3, sequences=8.0),
    Family(name="hard_trend", phi=(0.9, 0.0), trend_a_day=0.8),
    Family(name="season", phi=(0.8, 0.0), season=0.15),
    Family(name="sawtooth", phi=(0.5, 0.0), sawtooth=0.15),
    Family(name="cadence", phi=(0.8, 0.0), slice_phi=0.5, cadence_day=2.0),
    Family(name="steps", phi=(0.5, 0.0), step_days=10.0),
)}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What changes from batch `start` on."""

    name: str
    scale: float = 1.0  # of |d|, on the slices
    replica: int | None = None
    position: int | None = None
    ramp: int = 0  # batches until the full scale
    broken: float = 0.0  # share of requests broken (|d| ten times wider)
    tail_only: float = 0.0  # share of tokens moved beyond 1 nat
    variance: float = 0.0  # extra noise of the log level
    clip: float = 0.0  # share of tokens moved to [.26, .5), mean kept by shrinking the rest
    sign: float = 0.0  # share of positive d moved

    @property
    def where(self) -> dict[str, int | None] | None:
        """The slice as `klaxon detect` names it."""
        return None if self.replica is None and self.position is None else {"replica": self.replica, "pos": self.position}


FAULTS = {fault.name: fault for fault in (
    Fault(name="global x1.1", scale=1.1), Fault(name="global x1.2", scale=1.2), Fault(name="global x1.5", scale=1.5),
    Fault(name="global x2", scale=2.0), Fault(name="global x10", scale=10.0), Fault(name="ramp x1.5", scale=1.5, ramp=120),
    Fault(name="replica x1.2", scale=1.2, replica=3), Fault(name="replica x2", scale=2.0, replica=3),
    Fault(name="position x1.2", scale=1.2, position=2), Fault(name="position x2", scale=2.0, position=2),
    Fault(name="1 % of requests", broken=0.01), Fault(name="tail only", tail_only=0.002), Fault(name="variance only", variance=0.2),
    Fault(name="clip 2 to 4 %", clip=0.02), Fault(name="sign shift", sign=0.03),
    Fault(name="stale replica", scale=1.6, ramp=60, replica=3), Fault(name="1 % of one replica", broken=0.01, replica=3),
    Fault(name="tail of one position", tail_only=0.002, position=2), Fault(name="clip of one replica", clip=0.02, replica=3),
    Fault(name="sign of one replica", sign=0.03, replica=3),
)}


@dataclass(kw_only=True)
class Batch:
    """One batch of all runs."""

    t: int
    counts: np.ndarray  # int64 [runs, R, P, 24]; zero where missing
    sequences: np.ndarray  # [runs, R, P]
    lag: np.ndarray  # [runs, R, P]
    entropy: np.ndarray  # [runs]
    changed: bool


@dataclass(kw_only=True)
class Simulation:
    """Seeded; iterate over `batches`."""

    family: Family
    runs: int
    seed: int
    fault: Fault | None = None
    start: int = 10**9
    replicas: int = REPLICAS
    positions: int = POSITIONS
    _warp: Callable[[float], float] | None = field(default=None)

    def batches(self, count: int) -> Iterator[Batch]:
        """`count` batches."""
        family, rng = self.family, np.random.default_rng(self.seed)
        shape = (self.runs, self.replicas, self.positions)
        base = np.log(0.012) + 0.3 * np.linspace(0, 1, self.positions) + 0.05 * rng.normal(size=(self.runs, self.replicas, 1))
        fleet, before = np.zeros(self.runs), np.zeros(self.runs)
        one, two = family.phi
        innovation = family.noise * np.sqrt(max((1 - two) ** 2 - one**2, 1e-9) * (1 + two) / (1 - two))
        rows, columns = np.zeros((self.runs, self.replicas)), np.zeros((self.runs, self.positions))
        here = np.ones((self.runs, self.replicas), bool)
        heavy, steps = rng.uniform(2, 10, self.runs), np.zeros(self.runs)
        for t in range(count):
            if family.cadence_day and t == int(family.cadence_day * 1440 / MINUTES):
                family = self.family = replace(family, tokens=family.tokens / 2, sequences=family.sequences / 2, slice_phi=family.slice_phi**0.5)
                one, innovation = one**0.5, family.noise * np.sqrt(1 - one)
            fleet, before = one * fleet + two * before + innovation * rng.normal(size=self.runs), fleet
            for part in (rows, columns):
                part *= family.slice_phi
                part += family.slice_noise * np.sqrt(1 - family.slice_phi**2) * rng.normal(size=part.shape)
            day = t * MINUTES / 1440.0
            level = fleet + family.trend_a_day * day + family.season * np.sin(2 * np.pi * (day + heavy / 10))
            level = level + family.sawtooth * (((t + heavy * 10) % 12) / 12 - 0.5)
            if family.step_days:
                steps += np.log(1.1) * (rng.random(self.runs) < MINUTES / 1440 / family.step_days)
            lag = rng.poisson(1.0, size=(self.runs, self.replicas, 1)) + np.zeros(shape)
            entropy = np.full(self.runs, 1.2)
            if family.sharpen_days:
                entropy = 1.2 * 30.0 ** -((day / family.sharpen_days + heavy / 10) % 1.0)
            level = level + np.log(entropy / 1.2) + steps
            noisy = entropy * np.exp(0.03 * rng.normal(size=self.runs))
            mu = base + level[:, None, None] + rows[:, :, None] + columns[:, None, :] + family.lag_effect * lag
            if family.skew:
                mu = mu + family.skew * rng.exponential(size=shape) * (rng.random(shape) < 0.1)
            here ^= rng.random(here.shape) < family.churn
            present = here[:, :, None] & (rng.random(shape) >= family.missing_slices) & (rng.random(self.runs) >= family.missing)[:, None, None]
            counts, sequences = self._counts(rng, mu, t, present)
            yield Batch(t=t, counts=counts, sequences=sequences, lag=lag, entropy=noisy, changed=t >= self.start)

    def _counts(self, rng: np.random.Generator, mu: np.ndarray, t: int, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        family, fault = self.family, self.fault if t >= self.start else None
        sequences = np.maximum(rng.poisson(family.sequences, mu.shape), 1).astype(float)
        tokens = rng.poisson(family.tokens / family.sequences * sequences)
        mu = mu + 0.35 / np.sqrt(sequences) * rng.normal(size=mu.shape)  # sequences differ
        up = 0.5 + 0.02 * rng.normal(size=mu.shape)
        if fault is not None:
            on = np.ones(mu.shape, bool)
            if fault.replica is not None:
                on &= (np.arange(self.replicas) == fault.replica)[:, None]
            if fault.position is not None:
                on &= np.arange(self.positions) == fault.position
            part = min(1.0, (t - self.start + 1) / fault.ramp) if fault.ramp else 1.0
            mu = mu + np.where(on, np.log(fault.scale) * part, 0.0)
            if fault.variance:
                mu = mu + fault.variance * rng.normal(size=(self.runs, 1, 1))
            up = up + np.where(on, fault.sign, 0.0)
        tail = family.tail * np.ones(mu.shape)
        share = _shares(mu, family.sigma, tail)
        if fault is not None and fault.broken:
            broken = np.where(on, rng.binomial(sequences.astype(int), fault.broken) / sequences, 0.0)
            share = (1 - broken)[..., None] * share + broken[..., None] * _shares(mu + np.log(10.0), family.sigma, tail)
        if fault is not None and fault.tail_only:
            moved = np.where(on, fault.tail_only, 0.0)
            share = (1 - moved)[..., None] * share
            share[..., 10] += moved
        if fault is not None and fault.clip:
            shrunk = _shares(mu - 0.35, family.sigma, tail)
            clipped = (1 - fault.clip) * shrunk
            clipped[..., 8] += fault.clip
            share = np.where(on[..., None], clipped, share)
        tokens = np.where(present, tokens, 0)
        counts = rng.multinomial(tokens, share)
        positive = rng.binomial(counts, np.clip(up, 0, 1)[..., None])
        return np.concatenate([positive, counts - positive], axis=-1), np.where(present, sequences, 0.0)


def _shares(mu: np.ndarray, sigma: float, tail: np.ndarray) -> np.ndarray:
    body = ndtr((LOG_EDGES - mu[..., None]) / sigma)
    wide = ndtr((LOG_EDGES - mu[..., None] - np.log(5.0)) / sigma)
    below = (1 - tail)[..., None] * body + tail[..., None] * wide
    full = np.concatenate([np.zeros((*mu.shape, 1)), below, np.ones((*mu.shape, 1))], axis=-1)
    return np.maximum(np.diff(full, axis=-1), 0.0)


def rows(simulation: Simulation, count: int) -> Iterator[dict]:
    """The first run as batch JSONL objects; a batch without a slice is left out."""
    for batch in replace(simulation, runs=1).batches(count):
        slices = [{"replica": r, "pos": p, "lag": float(batch.lag[0, r, p]), "n_tok": int(batch.counts[0, r, p].sum()),
                   "n_seq": float(batch.sequences[0, r, p]), "hist_pos": batch.counts[0, r, p, :12].tolist(),
                   "hist_neg": batch.counts[0, r, p, 12:].tolist()}
                  for r in range(simulation.replicas) for p in range(simulation.positions) if batch.counts[0, r, p].any()]
        if slices:
            yield {"t": batch.t, "minute": batch.t * MINUTES, "version": batch.t // 5, "entropy": float(batch.entropy[0]), "slices": slices}
