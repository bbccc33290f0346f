"""Mismatch signals: what one rollout's two rows of logprobs say, as integer counts and exact sums that merge.

p = rollout engine, q = trainer, d = log q − log p per sampled token, nats, at the SAME weight version; w = e^d.
Everything is summed in float64 (collector/signal_sums.py). What cannot be averaged (non-finite, zeros, tokens outside
the trainer's kept set, unscored tokens) is counted apart. The signals themselves, each with formula, direction, level
and the names frameworks log it under, are one table: collector/metric_table.py, printed as docs/metrics.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from collector.limits import Limits
from collector.metric_table import METRICS
from collector.metric_values import EDGES, PUBLIC_EDGES
from collector.records import POPULATIONS, Rollout, Score, SliceStats
from collector.signal_sums import SUMS, WEIGHTED, Tokens, merged_sums, per_sequence, sequence_values, token_counts, token_sums, weighted_sums

__all__ = ["EDGES", "POSITIONS", "PUBLIC_EDGES", "SUMS", "collapse", "merge", "metrics", "slice_stats", "total",
           "trainer_score", "weighted"]

POSITIONS = ("0-1k", "1k-4k", "4k-16k", "16k+")
"""Buckets of a token's absolute position (prompt + index in the completion)."""

_POSITION_EDGES = np.array([1024, 4096, 16384])
_BINS = EDGES.size - 1


def slice_stats(rollout: Rollout, score: Score, *, limits: Limits | None = None,
                view: str = "expected") -> tuple[SliceStats, ...]:
    """Statistics of one scored rollout, one record a slice (position bucket × weight version) it touches.

    Only sampled tokens count. A token enters the averages when engine and view are both finite and it was scored.
    A rollout over several slices gives each its share of scored tokens as `n_sequences`, and of the sequence sums.
    Arrays of unequal length give one slice without tokens that counts the length mismatch.
    """
    limits = limits or Limits()
    cached = None if rollout.cached_prompt_tokens is None else rollout.cached_prompt_tokens > 0
    sizes = {rollout.engine_logprobs_T.size, rollout.sampled_mask_T.size, score.views[view].size}
    if sizes != {rollout.n_tokens}:
        return (_slice(rollout, POSITIONS[0], None, cached, {"length_mismatch": 1.0}),)
    tokens = Tokens(rollout, score, view)
    n_ok = int(tokens.ok_T.sum())
    shared, extremes = sequence_values(tokens, limits)
    slices = []
    for position, version, in_slice_T in _keys(rollout, tokens.sampled_T):
        d_M = tokens.d_T[in_slice_T & tokens.ok_T]
        share = d_M.size / n_ok if n_ok else 0.0
        sums = token_sums(tokens, in_slice_T & tokens.ok_T, limits) | token_counts(tokens, in_slice_T)
        sums |= {name: value * share for name, value in shared.items()} | (extremes if share else {})
        sums |= per_sequence(sums, n_ok) | weighted_sums(sums, d_M.size, rollout.inclusion_probability)
        slices.append(_slice(rollout, position, version, cached, sums, d_M=d_M, n_sequences=share))
    return tuple(slices)


def trainer_score(rollout: Rollout) -> Score | None:
    """Tier 1: the trainer's own logprobs as a Score; None where the rollout carries none."""
    if rollout.trainer_logprobs_T is None:
        return None
    logprobs_T = rollout.trainer_logprobs_T
    return Score(request_id=rollout.request_id, views={"expected": logprobs_T}, version=rollout.version,
                 scored_mask_T=~np.isnan(logprobs_T) & rollout.sampled_mask_T, source="trainer")


def merge(slices: Iterable[SliceStats]) -> tuple[SliceStats, ...]:
    """Add up slices with the same key (population, replica, position, version, cached); sorted by key.

    Histograms and counts add exactly; float sums use math.fsum, so the order of one merge does not matter.
    """
    by_key: dict[tuple, list[SliceStats]] = {}
    for item in slices:
        by_key.setdefault((item.replica, item.position, item.version, item.cached, item.population), []).append(item)
    order = sorted(by_key, key=lambda key: (POPULATIONS.index(key[4]), key[0], _position_rank(key[1]), str(key[2]), str(key[3])))
    return tuple(_add(by_key[key], *key) for key in order)


def total(slices: Iterable[SliceStats], *, population: str = "served") -> SliceStats:
    """All slices of one population as one, with key ("*", "*", None, None)."""
    return _add([item for item in slices if item.population == population], "*", "*", None, None, population)


def weighted(slices: Iterable[SliceStats], seen: Mapping[str, float] | None = None) -> dict[str, float]:
    """What ALL rollouts would show, from those the two coins kept, each weighted by 1 / its inclusion probability.

    One ratio a replica (the coins' strata), put together by `seen`, replica → tokens seen; a replica it does not name
    counts with its weighted tokens. tokens, mean_d, mean_abs_d, k3 in nats, clip_rate. mean_abs_d_se clusters by rollout.
    NaN without a token. Horvitz & Thompson (1952); ratio and post-stratification as in Cochran, Sampling Techniques, 6.
    """
    kept: dict[str, list[SliceStats]] = {}
    for item in slices:
        if item.population in ("served", "hinted"):
            kept.setdefault(item.replica, []).append(item)
    strata = {replica: {name: math.fsum(item.sums.get(name, 0.0) for item in items) for name in WEIGHTED} for replica, items in kept.items()}
    strata = {replica: sums for replica, sums in strata.items() if sums["ht_tokens"] > 0}
    names = {"mean_d": "ht_d", "mean_abs_d": "ht_abs_d", "k3": "ht_k3", "clip_rate": "ht_clip"}
    if not strata:
        return {"tokens": 0.0, "mean_abs_d_se": math.nan, **dict.fromkeys(names, math.nan)}
    tokens = {replica: float((seen or {}).get(replica) or sums["ht_tokens"]) for replica, sums in strata.items()}
    whole = math.fsum(tokens.values())
    out = {name: math.fsum(tokens[r] / whole * sums[key] / sums["ht_tokens"] for r, sums in strata.items()) for name, key in names.items()}
    variance = math.fsum((tokens[r] / whole) ** 2 * _ratio_variance(sums) for r, sums in strata.items())
    return {"tokens": whole, "mean_abs_d_se": math.sqrt(variance), **out}


def _ratio_variance(sums: Mapping[str, float]) -> float:
    n = sums["ht_tokens"]
    mean = sums["ht_abs_d"] / n
    return max(sums["ht_a2"] - 2 * mean * sums["ht_an"] + mean**2 * sums["ht_n2"], 0.0) / n**2


def collapse(hist: np.ndarray) -> np.ndarray:
    """A stored histogram [bins of EDGES] on the public edges: int64 [12]."""
    owner = np.searchsorted(PUBLIC_EDGES, EDGES[:-1], side="right") - 1
    return np.bincount(owner, weights=hist, minlength=PUBLIC_EDGES.size - 1).astype(np.int64)


def metrics(stats: SliceStats) -> dict[str, float]:
    """The named signals of a slice (collector/metric_table.py); NaN where undefined, as without a scored token.

    Rates are fractions, the rest nats unless the table says otherwise; counts are numbers.
    """
    return {metric.name: metric.value(stats) for metric in METRICS}


def _keys(rollout: Rollout, sampled_T: np.ndarray) -> Iterator[tuple[str, str | None, np.ndarray]]:
    """(position, version, bool [T]) of every slice this rollout has a sampled token in."""
    absolute_T = rollout.prompt_tokens_P.size + np.arange(rollout.n_tokens)
    bucket_T = np.searchsorted(_POSITION_EDGES, absolute_T, side="right")
    version_T = np.full(rollout.n_tokens, -1)
    names: list[str | None] = [None]
    for span in rollout.weight_versions:
        if span.version not in names:
            names.append(span.version)
        version_T[span.start:span.end] = names.index(span.version) - 1
    for bucket in np.unique(bucket_T):
        for index in np.unique(version_T):
            in_slice_T = (bucket_T == bucket) & (version_T == index) & sampled_T
            if in_slice_T.any():
                yield POSITIONS[bucket], names[index + 1], in_slice_T


def _slice(rollout: Rollout, position: str, version: str | None, cached: bool | None, sums: dict[str, float], *,
           d_M: np.ndarray = np.empty(0), n_sequences: float = 0.0) -> SliceStats:
    bins_M = np.searchsorted(EDGES, np.abs(d_M), side="right") - 1
    hist_pos = np.bincount(bins_M[d_M >= 0], minlength=_BINS).astype(np.int64)
    hist_neg = np.bincount(bins_M[d_M < 0], minlength=_BINS).astype(np.int64)
    return SliceStats(replica=rollout.replica, position=position, version=version, cached=cached,
                      n_tokens=int(d_M.size), n_sequences=n_sequences, hist_pos=hist_pos, hist_neg=hist_neg,
                      sums=dict.fromkeys(SUMS, 0.0) | sums)


def _add(items: list[SliceStats], replica: str, position: str, version: str | None, cached: bool | None,
         population: str) -> SliceStats:
    zero = np.zeros(_BINS, dtype=np.int64)
    return SliceStats(
        replica=replica, position=position, version=version, cached=cached, population=population,
        n_tokens=sum(item.n_tokens for item in items), n_sequences=math.fsum(item.n_sequences for item in items),
        hist_pos=sum((item.hist_pos for item in items), zero), hist_neg=sum((item.hist_neg for item in items), zero),
        sums=merged_sums(items))


def _position_rank(position: str) -> int:
    return POSITIONS.index(position) if position in POSITIONS else -1
