"""Tier 0, after a self-bet alarm: which fault do the reported probabilities look like? No model needed.

Question.    The reported top-1 probability does not match how often that token is sampled. Is it raw logprobs?
Statistic.   Over the N tokens a self-bet may use: the observed frequency f of sampling the top-1 token, against the mean
             of (a) the reported p₁ and (b) what p₁ would become if the report were raw and the sampler divided by T:
             p₁^{1/T} / Σ_v p_v^{1/T}. Only the k reported tokens are known, so (b) has an interval: the sum over the
             reported tokens is too small, hence an upper bound; for T ≤ 1 the unreported mass r adds at most
             r·p_min^{1/T−1} (p_min = least reported top probability), hence a lower bound.
Units.       Probabilities; z = (observed − predicted) / sqrt(Σ p(1 − p)) / N, a martingale's standard error: no clusters.
Also.        The T at which (b) would fit f best, whatever T is declared.
When it lies. A file in which raw and another fault act together; k = 1 (the upper bound is then 1 and says nothing).
Source.      DESIGN "Detectors" 1; the bound is derived above.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from collector.records import Rollout
from detectors.self_bets import TIE_NATS, why_not

TEMPERATURES = np.round(np.arange(0.3, 2.01, 0.05), 2)
SURPRISING_Z = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TopOne:
    """Reported, observed and hypothetical top-1 frequencies of one group of rollouts."""

    tokens: int
    uncertain: float  # Σ p(1 − p): how many coin flips' worth of surprise there was to bet on, times 1/4
    reported: float  # mean reported p₁
    observed: float  # share of tokens where the top-1 token was sampled
    z_reported: float  # (observed − reported) in standard errors
    temperature: float | None  # declared by the trainer; None = unknown or mixed
    if_raw: tuple[float, float] | None  # (lower, upper) if the report were raw at the declared T
    fits_raw_at: float | None  # T at which a raw report would fit best; None = no T fits better than the report

    @property
    def looks_raw(self) -> bool:
        """The observed frequency lies inside the interval for raw logprobs, and far from the report."""
        if self.if_raw is None or abs(self.z_reported) < SURPRISING_Z or self.temperature in (None, 1.0):
            return False
        slack = 2.5 * math.sqrt(self.uncertain) / max(1, self.tokens)
        return self.if_raw[0] - slack <= self.observed <= self.if_raw[1] + slack


def top_one_test(rollouts: Iterable[Rollout]) -> TopOne | None:
    """The test over all base-coin rollouts; None when no token can be used."""
    rows = [_Rows(rollout) for rollout in rollouts if rollout.base_coin and why_not(rollout) is None]
    rows = [row for row in rows if row.hit_N.size]
    if not rows:
        return None
    p_N = np.concatenate([row.log_p_NK[:, 0] for row in rows])
    p_N, hit_N = np.exp(p_N), np.concatenate([row.hit_N for row in rows])
    temperatures = {row.temperature for row in rows}
    declared = temperatures.pop() if len(temperatures) == 1 else None
    uncertain = float((p_N * (1 - p_N)).sum())
    tokens = hit_N.size
    z = (hit_N.sum() - p_N.sum()) / math.sqrt(uncertain) if uncertain > 0 else 0.0
    return TopOne(
        tokens=tokens, uncertain=uncertain, reported=float(p_N.mean()), observed=float(hit_N.mean()), z_reported=float(z),
        temperature=declared, if_raw=None if not declared else _mean_bounds(rows, declared), fits_raw_at=_best(rows, p_N, hit_N),
    )


class _Rows:
    """One rollout's usable tokens: log p of the reported tokens [N, K] (−inf padded, top-1 first), unreported mass, hits."""

    def __init__(self, rollout: Rollout) -> None:
        self.temperature = rollout.sampling.temperature
        reported = [row for row in rollout.top_logprobs if row is not None]
        width = max(row.size for row in reported)
        listed = min(row.size for row in reported)
        logs, hits = [], []
        for token, sampled, ids, logprobs in zip(
            rollout.completion_tokens_T, rollout.sampled_mask_T, rollout.top_tokens, rollout.top_logprobs, strict=True
        ):
            if not sampled or ids is None or logprobs is None or not np.isfinite(logprobs[0]):
                continue
            order = np.argsort(-logprobs, kind="stable")
            tied = order.size > 1 and logprobs[order[1]] >= logprobs[order[0]] - TIE_NATS
            if tied and listed > 1:
                continue
            row = np.full(width, -np.inf)
            row[: order.size] = np.minimum(logprobs[order], 0.0)
            logs.append(row)
            hits.append(not tied and ids[order[0]] == token)
        self.log_p_NK = np.array(logs, dtype=np.float64).reshape(-1, width)
        self.hit_N = np.array(hits, dtype=bool)

    def bounds(self, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """(lower_N, upper_N) of the top-1 probability of a sampler at `temperature` whose raw report this is."""
        power = 1.0 / temperature
        log_q_NK = self.log_p_NK * power
        relative_N = np.exp(log_q_NK - log_q_NK[:, :1]).sum(axis=1)
        upper_N = 1.0 / relative_N
        rest_N = np.clip(1.0 - np.exp(self.log_p_NK).sum(axis=1), 0.0, None)
        if power < 1:
            return np.zeros_like(upper_N), upper_N
        least_N = np.min(np.where(np.isfinite(self.log_p_NK), self.log_p_NK, 0.0), axis=1)
        extra_N = rest_N * np.exp(least_N * (power - 1.0) - log_q_NK[:, 0])
        return 1.0 / (relative_N + extra_N), upper_N


def _mean_bounds(rows: list[_Rows], temperature: float) -> tuple[float, float]:
    pairs = [row.bounds(temperature) for row in rows]
    lower, upper = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return float(lower.mean()), float(upper.mean())


def _best(rows: list[_Rows], p_N: np.ndarray, hit_N: np.ndarray) -> float | None:
    """T of the largest Bernoulli likelihood of the hits at the middle of the bounds; None when the report itself is best."""
    best, best_fit = None, _log_likelihood(p_N, hit_N) + 2.0  # two nats for the free parameter
    for temperature in TEMPERATURES:
        lower, upper = (np.concatenate(side) for side in zip(*[row.bounds(temperature) for row in rows], strict=True))
        if (upper - lower).mean() > 0.1:
            continue
        fit = _log_likelihood((lower + upper) / 2, hit_N)
        if fit > best_fit:
            best, best_fit = float(temperature), fit
    return best


def _log_likelihood(p_N: np.ndarray, hit_N: np.ndarray) -> float:
    p_N = np.clip(p_N, 1e-9, 1 - 1e-9)
    return float(np.log(np.where(hit_N, p_N, 1 - p_N)).sum())
