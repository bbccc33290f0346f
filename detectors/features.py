"""What a histogram of |d| says about a slice: eight numbers that react to different faults.

Question.    How large is the mismatch of these tokens, how heavy is its tail, and to which side does it lean?
Statistic.   From counts by |d| bin and sign: log mean |d|, log mean k3 (|d| clipped at 5), log rates of |d| ≥ .2 (stands in
             for the clip rate), of |d| ≥ 1 and of |d| ≥ 3, and sign balance (n₊ − n₋)/(n₊ + n₋ + 1) over |d| ≥ 1e-3. The
             two conditional features, clip rate given mean |d| and tail given k3, are the same numbers with the other one
             as covariate of their baseline (detectors/frontend.py).
Units.       Natural logs of nats or of rates; rates are (n + .5)/(N + 1), that of |d| ≥ 3 (n + 1)/(N + 2). Sign balance has none.
Never.       The mean of d (k1): its heavy tail hides what sign balance and k3 show.
Source.      Reference measurements on simulated streams; k3: Schulman, *Approximating KL divergence*.
"""

from __future__ import annotations

import numpy as np

from collector.metric_values import EDGES, PUBLIC_EDGES

FEATURES = ("mean", "k3", "clip", "tail1", "tail3", "sign", "clip|mean", "tail|k3")
"""Names, in the order of the last axis everywhere."""

GIVEN = {"clip|mean": ("clip", "mean"), "tail|k3": ("tail1", "k3")}
"""Conditional feature → (the feature itself, the feature it is compared given)."""

COUNTED = {"clip": 3, "tail1": 4, "tail3": 5, "clip|mean": 3, "tail|k3": 4}
"""Features that are rates → the column of `sums` that is counted."""

BENT = ("clip", "tail1", "tail3", "sign")
"""Features whose contrasts, too, move with the policy's certainty."""

SLOPES = {"mean": 1.0, "k3": 2.0, "clip": 1.0, "tail1": 1.0, "tail3": 1.0}
"""Prior slope on the log of the policy's uncertainty: |d| follows it, k3 its square; 0 where none is named."""

MEANING = {
    "mean": "mean |d|", "k3": "mean k3 (an estimate of the KL divergence)", "clip": "the share of tokens with |d| >= 0.2",
    "tail1": "the share of tokens with |d| >= 1", "tail3": "the share of tokens with |d| >= 3",
    "sign": "the balance of positive and negative d", "clip|mean": "the share of tokens with |d| >= 0.2, given mean |d|,",
    "tail|k3": "the share of tokens with |d| >= 1, given k3,",
}
"""Feature → words for an alarm."""

K3_CLIP = 5.0
SMALLEST_SIGNED = 1e-3


def kernel(edges: np.ndarray) -> np.ndarray:
    """Matrix [2 · bins, 8] from counts (positive bins, then negative) to sums over tokens.

    Columns: tokens, |d|, k3, |d| ≥ .2, |d| ≥ 1, |d| ≥ 3, n₊ − n₋, n₊ + n₋. A bin counts at its geometric middle.
    """
    low, high = edges[:-1].copy(), edges[1:].copy()
    low[0], high[-1] = high[0] / 4, low[-1] * 1.8
    middle = np.minimum(np.sqrt(low * high), 1e3)
    rows = []
    for sign in (1.0, -1.0):
        d = sign * np.minimum(middle, K3_CLIP)
        signed = (edges[:-1] >= SMALLEST_SIGNED).astype(float)
        rows.append(np.stack([np.ones_like(middle), middle, np.expm1(d) - d, edges[:-1] >= 0.2, edges[:-1] >= 1.0,
                              edges[:-1] >= 3.0, sign * signed, signed], axis=1))
    return np.concatenate(rows)


KERNELS = {2 * (len(edges) - 1): kernel(edges) for edges in (PUBLIC_EDGES, EDGES)}
"""Number of counts in a row → its kernel."""


def sums(counts: np.ndarray) -> np.ndarray:
    """Counts [..., 2 · bins] → the sums [..., 8] of `kernel`; they add over slices."""
    return counts @ KERNELS[counts.shape[-1]]


def features(sums_S: np.ndarray) -> np.ndarray:
    """Sums [..., 8] → features [..., 8] in the order of FEATURES; NaN without a token."""
    n = np.where(sums_S[..., 0] > 0, sums_S[..., 0], np.nan)
    out = np.empty((*sums_S.shape[:-1], len(FEATURES)))
    out[..., 0] = np.log(sums_S[..., 1] / n)
    out[..., 1] = np.log(sums_S[..., 2] / n)
    out[..., 2:4] = np.log((sums_S[..., 3:5] + 0.5) / (n + 1.0)[..., None])
    out[..., 4] = np.log((sums_S[..., 5] + 1.0) / (n + 2.0))
    out[..., 5] = np.where(np.isnan(n), np.nan, sums_S[..., 6] / (sums_S[..., 7] + 1.0))
    out[..., 6], out[..., 7] = out[..., 2], out[..., 3]
    return out


def log_weight_variation(counts: np.ndarray) -> float | None:
    """log(N/ESS − 1) of weights e^d, d cut at ±2, from counts [2 · bins]: their squared variation; None where there is none."""
    d = _MIDDLES[counts.shape[-1]]
    w = np.exp(np.clip(d, -2.0, 2.0))
    n, first, second = float(counts.sum()), float(counts @ w), float(counts @ w**2)
    ratio = n * second / first**2 - 1 if first > 0 else 0.0
    return float(np.log(ratio)) if ratio > 0 else None


def _signed_middles(edges: np.ndarray) -> np.ndarray:
    positive = kernel(edges)[: len(edges) - 1, 1]
    return np.concatenate([positive, -positive])


_MIDDLES = {2 * (len(edges) - 1): _signed_middles(edges) for edges in (PUBLIC_EDGES, EDGES)}
