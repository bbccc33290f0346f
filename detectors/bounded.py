"""A bounded bet on a shift of something standardised: many small surprises add up, one large one cannot.

Question.    Is u, of mean 0 or below while nothing is wrong, m standard deviations higher?
Statistic.   Log gain m·clip(u, ±4) − ψ(m), ψ(m) = log E exp(m·clip(T)), T Student-t with 4 degrees of freedom stretched to a
             standard deviation of 1.25.
Units.       u, m: standard deviations. Gains: nats of log evidence.
Guarantee.   E[e] ≤ 1 as far as u is no heavier-tailed and no wider than T and centred at or below 0. Gains lie in
             [−4m − ψ(m), 4m − ψ(m)].
When it lies. u with a standard deviation above 1.25, or autocorrelated without its long-run spread in the denominator.
Example.     u = 3, m = 1: 3 − ψ(1) = 2.3 nats.
Source.      Waudby-Smith & Ramdas (betting on bounded means); the t(4) as a generous stand-in for finite batches.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy import stats

CLIP = 4.0
SHIFTS = (0.5, 1.0, 2.0)
"""Shifts bet on, each a stream of its own."""


@functools.cache
def normaliser(shift: float) -> float:
    """ψ(m) in nats."""
    scale = 1.25 / math.sqrt(2.0)
    u = np.linspace(-CLIP, CLIP, 4001)
    inside = float(np.trapezoid(np.exp(shift * u) * stats.t.pdf(u / scale, 4) / scale, u))
    return math.log(inside + 2 * math.cosh(shift * CLIP) * float(stats.t.sf(CLIP / scale, 4)))


def gain(u: float, shift: float) -> float:
    """The log gain of one observation."""
    return shift * min(max(u, -CLIP), CLIP) - normaliser(shift)
