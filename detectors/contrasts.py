"""From one batch's grid of slices to contrasts: what is compared with what, so that common noise cancels.

Legend. R replicas, P position buckets, F = 8 features (features.py), C = 1 + R + P + R·P contrasts in this order:
    global                 the whole fleet
    replica r              r against all other replicas
    position p             p against all other positions
    replica r, position p  what neither the replica nor the position explains (interaction)
Leading axes (simulated runs, say) pass through. A contrast without enough tokens on one of its sides is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detectors.features import BENT, COUNTED, FEATURES, GIVEN, features

_RATES = [FEATURES.index(name) for name in COUNTED]
_COUNTS = list(COUNTED.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """One batch by replica and position; every array [..., R, P] or [..., R, P, 8]."""

    sums: np.ndarray  # features.sums
    n_sequences: np.ndarray
    lag: np.ndarray  # weight versions, token-weighted mean; NaN = not reported
    surprise: np.ndarray  # [..., R, P, 2]: summed −log p of engine and trainer, nats; NaN = unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """What the streams of the grid see, [..., C, F]; x NaN = absent."""

    x: np.ndarray
    z1: np.ndarray
    z2: np.ndarray
    n: np.ndarray
    least: np.ndarray  # smallest standard deviation believable: that of a log of Poisson counts


def grid_values(grid: Grid, *, unsure: np.ndarray | float = np.nan, min_tokens: int) -> Values:
    """All contrasts of a grid. `unsure`: log entropy of the whole batch where cells do not tell their own, [...]."""
    tokens = grid.sums[..., 0]
    lag_sum = np.where(np.isfinite(grid.lag), grid.lag, 0.0) * tokens
    known = np.where(np.isfinite(grid.lag), tokens, 0.0)
    stack = np.concatenate([grid.sums, grid.n_sequences[..., None], lag_sum[..., None], known[..., None], grid.surprise], axis=-1)
    own, rest = _sides(stack)
    f_own, f_rest = features(own[..., :8]), features(rest[..., :8])
    lag_own, lag_rest = _ratio(own[..., 9], own[..., 10]), _ratio(rest[..., 9], rest[..., 10])
    sure_own, sure_rest = _log_unsure(own), _log_unsure(rest)
    sure_own[..., 0] = np.where(np.isfinite(sure_own[..., 0]), sure_own[..., 0], np.nan_to_num(unsure))
    x = _compare(f_own, f_rest, own, rest, grid)
    enough = (own[..., 0] >= min_tokens) & (rest[..., 0] >= min_tokens)
    enough[..., 0] = own[..., 0, 0] >= min_tokens
    x = np.where(enough[..., None] & np.isfinite(x), x, np.nan)
    lag, sure = lag_own - lag_rest, sure_own - sure_rest
    lag[..., 0], sure[..., 0] = lag_own[..., 0], sure_own[..., 0]
    n_own, n_rest = own[..., 8], rest[..., 8]
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.where(n_rest > 0, 1 / (1 / n_own + 1 / n_rest), n_own)
    n[..., 0] = n_own[..., 0]
    return _spread(x, lag, sure, n, _least(own))


def two_sides(newer: np.ndarray, older: np.ndarray, *, min_tokens: int) -> np.ndarray:
    """One contrast [F] of two rows of sums [8]: newer weights against older ones in the same batch."""
    if newer[0] < min_tokens or older[0] < min_tokens:
        return np.full(len(FEATURES), np.nan)
    x = features(newer) - features(older)
    x[_RATES] = _excess(newer, older[_COUNTS] / older[0])
    return x


def _sides(stack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(own side, rest) of every contrast, [..., C, S]; the rest of the global one is empty."""
    replica, position = stack.sum(axis=-2), stack.sum(axis=-3)
    whole = replica.sum(axis=-2)[..., None, :]
    cells = stack.reshape(*stack.shape[:-3], -1, stack.shape[-1])
    own = np.concatenate([whole, replica, position, cells], axis=-2)
    return own, np.concatenate([np.zeros_like(whole), whole - replica, whole - position, whole - cells], axis=-2)


def _compare(f_own: np.ndarray, f_rest: np.ndarray, own: np.ndarray, rest: np.ndarray, grid: Grid) -> np.ndarray:
    """Differences of features; rates as log (n + 1)/(expected + 1), which stays at 0 where counts vanish."""
    replicas, positions = grid.sums.shape[-3:-1]
    x, whole = f_own - f_rest, f_own[..., 0, :]
    x[..., 0, :] = whole
    middle = 1 + replicas + positions
    rate = _ratio(rest[..., 1:middle, _COUNTS], rest[..., 1:middle, :1])
    x[..., 1:middle, _RATES] = _excess(own[..., 1:middle, :], rate)
    lead = f_own.shape[:-2]
    if replicas < 2 or positions < 2:
        x[..., middle:, :] = np.nan
        return x
    rows, columns = f_own[..., 1:1 + replicas, :], f_own[..., 1 + replicas:middle, :]
    cells = f_own[..., middle:, :].reshape(*lead, replicas, positions, f_own.shape[-1])
    apart = cells - rows[..., :, None, :] - columns[..., None, :, :] + whole[..., None, None, :]
    x[..., middle:, :] = apart.reshape(*lead, -1, f_own.shape[-1])
    every = _ratio(own[..., :middle, _COUNTS], own[..., :middle, :1])
    rate = _ratio(every[..., 1:1 + replicas, None, :] * every[..., None, 1 + replicas:, :], every[..., :1, None, :])
    x[..., middle:, _RATES] = _excess(own[..., middle:, :], rate.reshape(*lead, -1, len(_RATES)))
    return x


def _excess(own: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """log of (counts + 1)/(counts expected at this rate + 1)."""
    return np.log(own[..., _COUNTS] + 1.0) - np.log(own[..., :1] * rate + 1.0)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.where(below > 0, above / np.maximum(below, 1e-300), 0.0)


def _log_unsure(side: np.ndarray) -> np.ndarray:
    """log mean −log p, the smaller of both sides' (one gone astray cannot explain itself); NaN when unknown."""
    least = np.minimum(side[..., 11], side[..., 12])
    good = (least > 0) & (side[..., 0] > 0)
    return np.where(good, np.log(np.where(good, least, 1.0) / np.maximum(side[..., 0], 1.0)), np.nan)


def _least(own: np.ndarray) -> np.ndarray:
    """1/√(λ + 2) for the rates, λ = the count expected on the contrast's own side at the fleet's rate; 0 for the others."""
    whole = own[..., :1, :]
    share = own[..., 0] / np.maximum(whole[..., 0], 1.0)
    out = np.zeros((*own.shape[:-1], len(FEATURES)))
    for name, column in COUNTED.items():
        out[..., FEATURES.index(name)] = 1.0 / np.sqrt(share * whole[..., column] + 2.0)
    return out


def _spread(x: np.ndarray, lag: np.ndarray, sure: np.ndarray, n: np.ndarray, least: np.ndarray) -> Values:
    """Covariates and weights for each feature.

    mean and k3: lag, and certainty of one side less the other's. Rates and sign, whose contrasts bend with the level: lag,
    and the fleet's certainty. Conditional features: the fleet's certainty, and what they are given.
    """
    level = np.broadcast_to(np.nan_to_num(sure[..., :1]), sure.shape)
    z1 = np.broadcast_to(np.nan_to_num(lag)[..., None], x.shape).copy()
    z2 = np.broadcast_to(np.nan_to_num(sure)[..., None], x.shape).copy()
    for name in BENT:
        z2[..., FEATURES.index(name)] = level
    for name, (_, given) in GIVEN.items():
        z1[..., FEATURES.index(name)] = level
        z2[..., FEATURES.index(name)] = x[..., FEATURES.index(given)]
    return Values(x=x, z1=z1, z2=z2, n=np.broadcast_to(n[..., None], x.shape), least=least)
