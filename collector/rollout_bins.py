"""|d| of one rollout by how probable the engine found each sampled token. Legend: T = completion tokens, B = bins."""

from __future__ import annotations

import numpy as np

EDGES = np.log([0.01, 0.1, 0.5, 0.9, 0.99])
"""Edges of p, the engine's probability of the sampled token, as logprobs (nats) [B − 1]."""
BIN_NAMES = ("p < 1 %", "1–10 %", "10–50 %", "50–90 %", "90–99 %", "p ≥ 99 %")


def bins_of(engine_logprobs_T: np.ndarray, d_T: np.ndarray) -> tuple[list[int], list[float]]:
    """(tokens [B], sum of |d| in nats [B]) over the tokens given; both arrays finite.

    >>> bins_of(np.log([0.005, 0.3, 0.995, 0.999]), np.array([1.0, -0.5, 0.25, 0.25]))
    ([1, 0, 1, 0, 0, 2], [1.0, 0.0, 0.5, 0.0, 0.0, 0.5])
    """
    bin_T = np.searchsorted(EDGES, engine_logprobs_T, side="right")
    tokens_B = np.bincount(bin_T, minlength=len(BIN_NAMES))
    sums_B = np.bincount(bin_T, weights=np.abs(d_T), minlength=len(BIN_NAMES))
    return [int(count) for count in tokens_B], [float(value) for value in sums_B]
