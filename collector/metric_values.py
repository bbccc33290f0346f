"""From sums to a signal: the few shapes every value of the metric table has, and the edges of the |d| histogram.

Each helper returns a function of one record (SliceStats). NaN = undefined: nothing stands behind the value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from collector.records import SliceStats
from collector.signal_sums import FIRST_SUMS, LOG_RATIO_CAP

PUBLIC_EDGES = np.array([0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.2, 0.26, 0.5, 1, 3, math.inf])
"""|d| bin edges of the public batch JSONL, nats [13]."""

EDGES = np.unique(np.concatenate([PUBLIC_EDGES, np.logspace(-6, 1, 57).round(12)]))
"""|d| bin edges Klaxon stores, nats: eight a decade from 1e-6 to 10, and every public edge."""

Value = Callable[[SliceStats], float]
Level = Literal["token", "sequence", "per-sequence-then-mean", "count"]
MASK = "sampled tokens, scored, finite on both sides"


@dataclass(frozen=True, slots=True)
class Alias:
    """What a framework logs a signal as; `note` says where its averaging or clamping differs from ours."""

    framework: str
    name: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One signal: what it is, in which direction, over what it is averaged, and from which sums."""

    name: str
    formula: str
    direction: str
    level: Level
    unit: str
    sums: tuple[str, ...]  # names of collector.signal_sums.SUMS, and "hist" for the histogram of |d| by sign
    value: Value
    aliases: tuple[Alias, ...] = ()
    mask: str = MASK


def ratio(top: float, bottom: float) -> float:
    """top / bottom, NaN where the bottom is 0."""
    return top / bottom if bottom else math.nan


def read(stats: SliceStats, name: str) -> float:
    """A sum; 0 where an older record lacks it."""
    return stats.sums.get(name, 0.0)


def tokens_behind(stats: SliceStats, name: str) -> float:
    """Over how many tokens the sum `name` was taken."""
    return stats.n_tokens if name in FIRST_SUMS else read(stats, "later_tokens")


def sequences_behind(stats: SliceStats, name: str) -> float:
    """Over how many sequences the sum `name` was taken; a rollout over several slices counts in parts."""
    return stats.n_sequences if name in FIRST_SUMS else read(stats, "later_sequences")


def per_token(*names: str, sign: float = 1.0) -> Value:
    """Mean over tokens of the sum of some terms."""
    return lambda stats: ratio(sign * math.fsum(read(stats, name) for name in names), tokens_behind(stats, names[0]))


def per_sequence(*names: str, sign: float = 1.0) -> Value:
    """Mean over sequences of the sum of some terms."""
    return lambda stats: ratio(sign * math.fsum(read(stats, name) for name in names), sequences_behind(stats, names[0]))


def count(name: str) -> Value:
    """A number of tokens."""
    return lambda stats: read(stats, name)


def extreme(name: str, then: Callable[[float], float] = float) -> Value:
    """A largest or smallest value; NaN where no token stands behind it."""
    return lambda stats: then(read(stats, name)) if read(stats, "later_tokens") else math.nan


def minus_one(value: Value) -> Value:
    """value − 1."""
    return lambda stats: value(stats) - 1


def spread(name: str, squares: str) -> Value:
    """Standard deviation over tokens from a sum and a sum of squares."""
    def value(stats: SliceStats) -> float:
        n = min(tokens_behind(stats, name), tokens_behind(stats, squares))
        if not n:
            return math.nan
        mean = read(stats, name) / tokens_behind(stats, name)
        return math.sqrt(max(0.0, read(stats, squares) / tokens_behind(stats, squares) - mean**2))
    return value


def effective_share(total: str, squares: str, behind: Callable[[SliceStats, str], float] = tokens_behind) -> Value:
    """ESS: (Σw)² / (N Σw²), 1 = every token (or sequence) counts fully."""
    return lambda stats: ratio(read(stats, total) ** 2, behind(stats, total) * read(stats, squares))


def clustered_error(total: str, letter: str) -> Value:
    """Standard error of a ratio mean, rollouts as clusters: sqrt(Σ (S_i − m n_i)²) / N."""
    def value(stats: SliceStats) -> float:
        if not stats.n_tokens:
            return math.nan
        mean = read(stats, total) / stats.n_tokens
        squares = (read(stats, f"cluster_{letter}2") - 2 * mean * read(stats, f"cluster_{letter}n")
                   + mean**2 * read(stats, "cluster_n2"))
        return math.sqrt(max(0.0, squares)) / stats.n_tokens
    return value


def pearson(stats: SliceStats) -> float:
    """Correlation of the two sides' probabilities; NaN where one side does not vary."""
    n = stats.n_tokens
    var_p, var_q = n * read(stats, "pp") - read(stats, "p") ** 2, n * read(stats, "qq") - read(stats, "q") ** 2
    if not n or var_p <= 0 or var_q <= 0:
        return math.nan
    return (n * read(stats, "pq") - read(stats, "p") * read(stats, "q")) / math.sqrt(var_p * var_q)


def largest_k3(stats: SliceStats) -> float:
    """k3 falls to 0 at d = 0 and rises on both sides, so its largest value is at the largest or the smallest d."""
    if not read(stats, "later_tokens"):
        return math.nan
    return max(math.expm1(min(d, LOG_RATIO_CAP)) - d for d in (read(stats, "max_d"), read(stats, "min_d")))


def unmasked_k3(stats: SliceStats) -> float:
    """Mean k3 of the tokens a mask on the probability difference would keep."""
    n = read(stats, "later_tokens")
    masked = read(stats, "dppo_low") + read(stats, "dppo_high")
    if n != stats.n_tokens:
        return math.nan  # an older record is among them: its k3 cannot be split
    return ratio(read(stats, "k3") - read(stats, "dppo_k3"), n - masked)


def lag_share(own: str, other: str) -> Value:
    """Share in mean t² of one of its two parts, t = mismatch + staleness: E[part · t] / E[t²], from the sums of squares of both."""
    return lambda stats: ratio(read(stats, own) + read(stats, "lag_total2") - read(stats, other), 2 * read(stats, "lag_total2"))


def beside_stale(name: str) -> Value:
    """Mean over the tokens of stale slices; NaN for every other population."""
    return lambda stats: ratio(read(stats, name), stats.n_tokens) if read(stats, "lag_total2") else math.nan


def quantile_abs(level: float) -> Value:
    """A quantile of |d|."""
    return lambda stats: quantile(stats.hist_pos + stats.hist_neg, level)


def quantile_signed(level: float, then: Callable[[float], float] = float) -> Value:
    """A quantile of d: from the far end of the negative side, mirrored, or from the positive side."""
    def value(stats: SliceStats) -> float:
        negative, positive = int(stats.hist_neg.sum()), int(stats.hist_pos.sum())
        if not negative + positive:
            return math.nan
        rank = level * (negative + positive)
        if rank < negative or not positive:
            return then(-quantile(stats.hist_neg, 1 - rank / negative))
        return then(quantile(stats.hist_pos, (rank - negative) / positive))
    return value


def quantile(hist: np.ndarray, level: float) -> float:
    """|d| at a quantile level, linear inside its bin; the last, open bin answers with its lower edge."""
    cumulative = np.cumsum(hist)
    if not cumulative[-1]:
        return math.nan
    rank = level * cumulative[-1]
    index = int(np.searchsorted(cumulative, rank))
    while not hist[index]:
        index += 1  # a rank of 0 belongs to the first bin that holds something
    low, high = EDGES[index], EDGES[index + 1]
    if math.isinf(high):
        return float(low)
    before = cumulative[index] - hist[index]
    return float(low + (high - low) * (rank - before) / hist[index])
