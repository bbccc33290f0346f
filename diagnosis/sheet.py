"""The tokens a diagnosis is about, flat: engine logprobs, and the predictions of explanations, one array each.

N = all sampled, finite, scored tokens of the rollouts at hand, in order. Rollouts are the clusters: tokens of one rollout
are not independent. Every rollout belongs to one of two folds (alternating in the order of a hash of its request id, so
that neither file order nor length decides): what is fitted on one fold is judged on the other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from collector.records import Rollout, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """How much better prediction g fits than f: mean of |e − f| − |e − g| over the tokens of rollouts where they differ."""

    gain: float  # nats; > 0: g fits better
    se: float  # clustered by rollout; inf with fewer than two rollouts
    tokens: int
    rollouts: int

    @property
    def z(self) -> float:
        """gain in standard errors; 0 when nothing differs."""
        return self.gain / self.se if self.se > 0 and math.isfinite(self.se) else (math.inf * np.sign(self.gain) if self.gain and self.se == 0 else 0.0)


class Sheet:
    """See the module. Build with `Sheet.of`; all arrays are [N]."""

    def __init__(self, rollouts: Sequence[Rollout], use: Sequence[np.ndarray]) -> None:
        self.rollouts = tuple(rollouts)
        self._use = tuple(use)  # bool [T] per rollout
        sizes = [int(mask.sum()) for mask in use]
        self.rollout_N = np.repeat(np.arange(len(rollouts)), sizes)
        indices = [np.flatnonzero(mask) for mask in use]
        self.index_N = np.concatenate(indices) if indices else np.empty(0, dtype=int)  # index of the token in its completion
        prompts = np.array([rollout.prompt_tokens_P.size for rollout in rollouts], dtype=int)
        self.position_N = self.index_N + prompts[self.rollout_N]  # and in prompt + completion
        self.engine_N = self.flat([rollout.engine_logprobs_T for rollout in rollouts])
        self.fold_N = _folds(rollouts)[self.rollout_N]
        cached = np.array([bool(rollout.cached_prompt_tokens) for rollout in rollouts], dtype=bool)
        self.cached_N = cached[self.rollout_N]

    @classmethod
    def of(cls, rollouts: Sequence[Rollout], scores: Sequence[Score]) -> Sheet:
        """Tokens that were sampled, reported finite and scored finite as expected; rollouts without any are left out."""
        kept = []
        for rollout, score in zip(rollouts, scores, strict=True):
            use_T = rollout.sampled_mask_T & np.isfinite(rollout.engine_logprobs_T) & np.isfinite(score.views["expected"])
            if use_T.any():
                kept.append((rollout, use_T))
        return cls([rollout for rollout, _ in kept], [use_T for _, use_T in kept])

    def part(self, rollouts: Sequence[int]) -> Sheet:
        """The sheet of some of its rollouts, by index."""
        return Sheet([self.rollouts[i] for i in rollouts], [self._use[i] for i in rollouts])

    @property
    def tokens(self) -> int:
        """N."""
        return int(self.engine_N.size)

    def flat(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Per-rollout arrays [T] of this sheet's rollouts, in its order, as one float64 array [N]."""
        parts = [np.asarray(row, dtype=np.float64)[mask] for row, mask in zip(rows, self._use, strict=True)]
        return np.concatenate(parts) if parts else np.empty(0)

    def wide(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Per-rollout arrays [T, D] of this sheet's rollouts, in its order, as one array [N, D]."""
        return np.concatenate([row[mask] for row, mask in zip(rows, self._use, strict=True)])

    def residual(self, predicted_N: np.ndarray, within_N: np.ndarray | None = None) -> float:
        """mean |e − predicted|, nats, over tokens the prediction allows (finite); inf without any."""
        error_N = np.abs(self.engine_N - predicted_N)
        keep_N = np.isfinite(error_N) if within_N is None else np.isfinite(error_N) & within_N
        return float(error_N[keep_N].mean()) if keep_N.any() else math.inf

    def differs(self, f_N: np.ndarray, g_N: np.ndarray) -> np.ndarray:
        """bool [N]: tokens of rollouts in which the two predictions differ anywhere."""
        with np.errstate(invalid="ignore"):  # −inf on both sides is no difference
            apart_N = ~((np.abs(f_N - g_N) < 1e-6) | (f_N == g_N))
        hit = np.zeros(len(self.rollouts), dtype=bool)
        hit[self.rollout_N[apart_N]] = True
        return hit[self.rollout_N]

    def contrast(self, f_N: np.ndarray, g_N: np.ndarray) -> Contrast:
        """Does g fit better than f?"""
        keep_N = self.differs(f_N, g_N) & np.isfinite(f_N) & np.isfinite(g_N)
        gain_N = np.abs(self.engine_N - f_N)[keep_N] - np.abs(self.engine_N - g_N)[keep_N]
        mean, se, clusters = clustered_mean(gain_N, self.rollout_N[keep_N])
        return Contrast(gain=mean, se=se, tokens=int(keep_N.sum()), rollouts=clusters)


def clustered_mean(values_N: np.ndarray, cluster_N: np.ndarray) -> tuple[float, float, int]:
    """(mean, standard error clustered by `cluster_N`, number of clusters); (0, inf, 0) without tokens.

    The sandwich of a ratio mean with the usual small-sample factor G/(G − 1).
    """
    if not values_N.size:
        return 0.0, math.inf, 0
    mean = float(values_N.mean())
    names, index_N = np.unique(cluster_N, return_inverse=True)
    sums_G = np.bincount(index_N, weights=values_N - mean)
    clusters = names.size
    if clusters < 2:
        return mean, math.inf, clusters
    return mean, math.sqrt(float((sums_G**2).sum()) * clusters / (clusters - 1)) / values_N.size, clusters


def _folds(rollouts: Sequence[Rollout]) -> np.ndarray:
    keys = [hashlib.blake2b(f"{rollout.request_id}/{i}".encode(), digest_size=8).digest() for i, rollout in enumerate(rollouts)]
    fold = np.zeros(len(rollouts), dtype=int)
    fold[sorted(range(len(keys)), key=lambda i: keys[i])[1::2]] = 1
    return fold
