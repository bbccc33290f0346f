"""Small staleness: too small for residuals, visible as a projection between two weight versions.

Question.    Does the engine sit at the labelled version W0 or at an older one W1, when both fit within the noise?
Statistic.   β = ⟨e − W0, W1 − W0⟩ / |W1 − W0|² over tokens (e engine, W0 labelled, W1 older): 0 = labelled, 1 = older.
Units.       None; the standard error is clustered by rollout.
Rule.        0 is compared with 1, β = 0 is not tested: rollouts used for training correlate with W1 − W0.
When it lies. When something else moves e along W1 − W0; so it is asked only where the labelled version explains the residual.
Source.      DESIGN, reference measurements (staleness of 4 steps at lr 1e-5 is invisible to every marginal statistic).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diagnosis.sheet import Sheet

SMALLEST_DIFFERENCE_NATS = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """Position of the engine between two predictions."""

    beta: float
    se: float
    difference_nats: float  # mean |W1 − W0|
    tokens: int
    rollouts: int

    @property
    def z(self) -> float:
        """Distance from the middle in standard errors: > 0 older, < 0 labelled."""
        return (self.beta - 0.5) / self.se if self.se > 0 else 0.0

    @property
    def text(self) -> str:
        """The numbers in one line."""
        return (f"β = {self.beta:+.2f} ± {self.se:.2f} (0 = labelled version, 1 = the older one; they differ by "
                f"{self.difference_nats:.4f} nats over {self.tokens:,} tokens)")


def projection(sheet: Sheet, labelled_N: np.ndarray, older_N: np.ndarray) -> Projection | None:
    """None when the two predictions are the same, or in fewer than two rollouts."""
    keep_N = sheet.differs(labelled_N, older_N) & np.isfinite(labelled_N) & np.isfinite(older_N)
    x_N, y_N = (older_N - labelled_N)[keep_N], (sheet.engine_N - labelled_N)[keep_N]
    cluster_N = sheet.rollout_N[keep_N]
    found = slope(x_N, y_N, cluster_N)
    if found is None:
        return None
    return Projection(beta=found[0], se=found[1], difference_nats=float(np.abs(x_N).mean()), tokens=int(x_N.size), rollouts=np.unique(cluster_N).size)


def slope(x_N: np.ndarray, y_N: np.ndarray, cluster_N: np.ndarray) -> tuple[float, float] | None:
    """β of y = β x through the origin and its standard error, clustered; None without x or with fewer than two clusters."""
    square = float((x_N**2).sum())
    clusters = np.unique(cluster_N).size
    if square <= 0 or clusters < 2:
        return None
    beta = float((x_N * y_N).sum()) / square
    sums = np.bincount(cluster_N, weights=x_N * (y_N - beta * x_N))
    return beta, math.sqrt(float((sums**2).sum()) * clusters / (clusters - 1)) / square
