"""Bounded bets on whitened residuals, and their e-Shiryaev–Roberts processes, for a block of streams at once.

Question.    Did this stream rise, fall, spread or begin to flicker, and since when?
Statistic.   Seven bets a stream, each an e-value of one batch. Shifts: exp(m·clip(u − o, ±5) − ψ(m)), o = dead band + doubt
             of the baseline. Variance: likelihood ratio of a 1.7 times wider normal, u² cut at 25
             (upward u only where only rises count). Burst, for a fault in
             some batches only: 0.7 + 0.3·LR of a shift of 2.5. Jump, for faults far beyond the noise: 0.5 + 0.5·LR of a
             density ∝ u⁻² on [4, 30]. SR ← (SR + 1)·e for each, in logs.
Units.       Nats of log evidence. Sizes m in standard deviations of u.
Guarantee.   E[e] ≤ 1 while u − o has no more exponential moment than a Student-t(8) of standard deviation 1.05 centred at 0
             or below. Where a stream's own past says otherwise (delayed, like the baseline), the mean of its e-values is
             taken off: ψ(m) + ln max(1, mean e). Every gain is bounded, and the largest of an excursion counts at most `cap`: one
             corrupt batch cannot page, two great ones can.
Change.      The summands of SR (one a starting batch, times the gains since) are a likelihood over starting batches: its
             argmax, mean and spread are carried along in O(1).
When it lies. A stream's own mean e needs some hundred batches; before that heavy tails beyond t(8) are not seen.
Source.      Shin, Ramdas, Rinaldo, *E-detectors*; Saha & Ramdas, arXiv 2502.06096, for the change time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from detectors.arrays import Arrays

BETS = 7
CLIP = 5.0
SHAPES = {"up": (0.4, 0.8, 1.6, 2.5), "both": (0.5, -0.5, 1.5, -1.5), "jump": (1.6, -1.6, 2.5, -2.5)}
"""Kind of stream → its four shift bets; the last three bets are variance, burst and jump."""

WIDER, BURST_SHARE, BURST_SHIFT = 1.7, 0.3, 2.5
JUMP_SHARE, JUMP_FROM, JUMP_TO = 0.5, 4.0, 30.0
NULL_SD, NULL_DF = 1.05, 8
WINSOR = 8.0  # nats: one gain teaches a stream's mean of e no more
Z90 = 1.7


@functools.cache
def _null() -> tuple[np.ndarray, np.ndarray]:
    """Points and probabilities of the pessimistic null: Student-t(8) of standard deviation 1.05, cut at ±12."""
    u = np.linspace(-12, 12, 12_001)
    x = u / (NULL_SD / math.sqrt(NULL_DF / (NULL_DF - 2)))
    density = (1 + x**2 / NULL_DF) ** (-(NULL_DF + 1) / 2)
    return u, density / density.sum()


@functools.cache
def log_normaliser(shift: float) -> float:
    """ψ(m), nats: log E exp(m·clip(T, ±5)) under the pessimistic null."""
    u, p = _null()
    return float(np.log(np.sum(p * np.exp(shift * np.clip(u, -CLIP, CLIP)))))


def _variance_normaliser(one_sided: bool) -> float:
    u, p = _null()
    u = np.maximum(u, 0.0) if one_sided else u
    return float(np.log(np.sum(p * np.exp(VARIANCE_RATE * np.minimum(u**2, CLIP**2)))))


VARIANCE_RATE = 0.5 * (1 - 1 / WIDER**2)
VARIANCE_PSI = {one_sided: _variance_normaliser(one_sided) for one_sided in (True, False)}
BURST_PSI = log_normaliser(BURST_SHIFT)
_JUMP_SCALE = NULL_SD / math.sqrt(NULL_DF / (NULL_DF - 2))
_JUMP_LOG_C = (-math.log(1 / JUMP_FROM - 1 / JUMP_TO) - math.lgamma((NULL_DF + 1) / 2) + math.lgamma(NULL_DF / 2)
               + 0.5 * math.log(NULL_DF * math.pi) + math.log(_JUMP_SCALE))


def jump_log_ratio(u: np.ndarray) -> np.ndarray:
    """log LR of the density ∝ u⁻² on [JUMP_FROM, JUMP_TO] against the pessimistic null; −inf below, the end's value beyond."""
    at = np.clip(u, JUMP_FROM, JUMP_TO)
    ratio = _JUMP_LOG_C - 2 * np.log(at) + (NULL_DF + 1) / 2 * np.log1p((at / _JUMP_SCALE) ** 2 / NULL_DF)
    return np.where(u >= JUMP_FROM, ratio, -np.inf)


class Bets(Arrays):
    """Parallel arrays [7, K]; `step` once a batch."""

    STATE = ("log_sr", "height", "centre", "spread", "mean_e", "biggest")
    cap = math.inf  # of the last batch

    def names(self) -> tuple[str, ...]:
        """Arrays with a value a stream."""
        return (*self.STATE, "start", "mass", "shift", "psi")

    def empty(self, name: str, count: int) -> np.ndarray:
        """The value at birth."""
        if name == "mass":
            return np.zeros(count)
        if name in ("shift", "psi"):
            return np.zeros((4, count))
        if name == "start":
            return np.full((BETS, count), -1, np.int64)
        return np.full((BETS, count), {"log_sr": -np.inf, "mean_e": 1.0}.get(name, 0.0))

    def born(self, kinds: list[str]) -> None:
        """Add streams, one a kind (a key of SHAPES)."""
        self.grow(len(kinds))
        shift = np.array([SHAPES[kind] for kind in kinds]).T
        self.shift[:, -len(kinds):] = shift
        table = {size: log_normaliser(size) for size in np.unique(np.abs(shift)).tolist()}
        self.psi[:, -len(kinds):] = np.vectorize(table.__getitem__)(np.abs(shift))

    def gains(self, u: np.ndarray, off: np.ndarray) -> np.ndarray:
        """Log e-values [7, K] before what the stream's own past takes off; NaN where u is."""
        out = np.empty((BETS, self.size))
        sided = np.sign(self.shift) * u - off
        far = np.where(self.shift[1] > 0, sided[0], np.maximum(sided[0], sided[1]))
        np.clip(sided, -CLIP, CLIP, out=sided)
        out[:4] = np.abs(self.shift) * sided - self.psi
        one_sided = self.shift[1] > 0
        np.multiply(np.minimum(np.where(one_sided, np.maximum(u, 0.0), u) ** 2, CLIP**2), VARIANCE_RATE, out=out[4])
        out[4] -= np.where(one_sided, VARIANCE_PSI[True], VARIANCE_PSI[False])
        up, down = sided[0], sided[1]  # the same side for "up", both sides for the rest
        best = np.maximum(up, down)
        halved = np.where(one_sided, 0.0, math.log(2.0))
        out[5] = np.log((1 - BURST_SHARE) + BURST_SHARE * np.exp(BURST_SHIFT * best - BURST_PSI - halved))
        out[6] = math.log(1 - JUMP_SHARE)
        high = np.flatnonzero(far >= JUMP_FROM)
        if high.size:
            out[6, high] = np.logaddexp(out[6, high], math.log(JUMP_SHARE) + jump_log_ratio(far[high]) - halved[high])
        return out

    def learn(self, u: np.ndarray, off: np.ndarray, keep: float) -> None:
        """Take the delayed u into the running mean of e."""
        told = np.isfinite(u)
        if not told.any():
            return
        e = np.exp(np.minimum(self.gains(np.where(told, u, 0.0), np.where(told, off, 0.0)), WINSOR))
        rate = np.where(told, 1.0 / np.minimum(self.mass + 100.0, 1.0 / (1.0 - keep)), 0.0)
        self.mean_e += rate * (e - self.mean_e)
        self.mass = self.mass + told

    def step(self, t: int, u: np.ndarray, off: np.ndarray, cap: float) -> np.ndarray:
        """Tick every stream whose u is a number; the gains [7, K] used, 0 where none ticked."""
        told = np.isfinite(u)
        gain = self.gains(np.where(told, u, 0.0), off)
        gain -= np.log(np.maximum(self.mean_e, 1.0))
        self.cap = cap
        lower = np.maximum(self.log_sr, 0.0)
        grown = lower + np.log1p(np.exp(np.minimum(self.log_sr, 0.0) - lower))  # log(SR + 1)
        share = np.exp(-grown)  # of the summand that starts here
        ahead = t - self.centre
        centre = self.centre + share * ahead
        spread = (1 - share) * (self.spread + share * ahead**2)
        at_low = (self.height <= 0.0) & told
        height = np.maximum(self.height + gain, 0.0)
        biggest = np.where(at_low, gain, np.maximum(self.biggest, gain))
        if told.all():
            self.log_sr, self.centre, self.spread, self.height, self.biggest = grown + gain, centre, spread, height, biggest
        else:
            for name, value in (("log_sr", grown + gain), ("centre", centre), ("spread", spread), ("height", height), ("biggest", biggest)):
                setattr(self, name, np.where(told, value, getattr(self, name)))
            gain = np.where(told, gain, 0.0)
        self.start = np.where(at_low, t, self.start)
        return gain

    def mean_log_sr(self) -> np.ndarray:
        """log of the mean SR over a stream's bets [K], each less what its largest gain has above `cap`: below an e-detector."""
        held = self.log_sr - np.maximum(self.biggest - self.cap, 0.0)
        high = held.max(axis=0)
        safe = np.where(np.isfinite(high), high, 0.0)
        with np.errstate(divide="ignore"):
            return safe + np.log(np.exp(held - safe).sum(axis=0)) - math.log(BETS)

    def change(self, column: int) -> tuple[int, int, int]:
        """(most likely, earliest, latest plausible) first changed batch of one stream's leading bet, at about 90 %."""
        bet = int(np.argmax(self.log_sr[:, column]))
        best, centre = int(self.start[bet, column]), float(self.centre[bet, column])
        wide = Z90 * math.sqrt(max(float(self.spread[bet, column]), 0.0)) + 1.0
        return best, math.floor(min(best, centre - wide)), math.ceil(max(best, centre + wide))

    def reset(self, columns: np.ndarray | None = None) -> None:
        """Forget the evidence (of some streams); what was learnt about the noise stays."""
        where = slice(None) if columns is None else columns
        count = self.log_sr[:, where].shape[1]
        for name in ("log_sr", "height", "centre", "spread", "start", "biggest"):
            getattr(self, name)[:, where] = self.empty(name, count)

    def to_state(self) -> dict[str, Any]:
        """JSON-able."""
        return self.pack() | {"cap": None if math.isinf(self.cap) else self.cap}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `to_state`."""
        self.unpack(state)
        self.cap = math.inf if state["cap"] is None else state["cap"]
