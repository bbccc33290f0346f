"""Mismatch signals: what one rollout's two rows of logprobs say, as integer counts and exact sums that merge.

p = rollout engine, q = trainer, d = log q − log p per sampled token, nats, at the SAME weight version; w = e^d.
Everything is summed in float64. What cannot be averaged (non-finite, zeros, tokens outside the trainer's kept set,
unscored tokens) is counted apart.

Formulas: k1 = −d, k2 = d²/2, k3 = e^d − 1 − d (Schulman, "Approximating KL divergence"; all estimate KL(p‖q) on samples
of p); clip rate = share of w outside [1 − ε_low, 1 + ε_high] (PPO), on exp(mean d) of a sequence (GSPO);
ESS = (Σw)² / (N Σw²) on RAW weights: clamped weights hide the tail that ESS is asked about; χ² = mean w² − 1;
TME = mean e^|d|; PPL ratio = mean over sequences of exp(−mean d); Pearson on probabilities, as verl logs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from collector.records import POPULATIONS, Rollout, Score, SliceStats

PUBLIC_EDGES = np.array([0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.2, 0.26, 0.5, 1, 3, math.inf])
"""|d| bin edges of the public batch JSONL, nats [13]."""

EDGES = np.unique(np.concatenate([PUBLIC_EDGES, np.logspace(-6, 1, 57).round(12)]))
"""|d| bin edges Klaxon stores, nats: eight a decade from 1e-6 to 10, and every public edge."""

POSITIONS = ("0-1k", "1k-4k", "4k-16k", "16k+")
"""Buckets of a token's absolute position (prompt + index in the completion)."""

LOG_RATIO_CAP = 20.0
"""e^d is taken at d clipped to ±20, against overflow; how often is in the sum `w_clipped`."""

CONFIDENT_LOGPROB = math.log(0.5)
CONFIDENT_DROP_NATS = 2.0
ZERO_BELOW_NATS = -0.05

SUMS = (
    "d", "abs_d", "d2", "k3", "w", "w2", "exp_abs_d", "clip_low", "clip_high",  # over tokens
    "p", "q", "pp", "qq", "pq",  # probabilities, for Pearson
    "engine_logprob", "entropy", "entropy_tokens",  # how sure the policy is
    "gspo_low", "gspo_high", "ppl_ratio",  # per sequence, each slice its share
    "cluster_n2", "cluster_d2", "cluster_dn", "cluster_a2", "cluster_an",  # for standard errors clustered by rollout
    "confident", "nonfinite", "zeros", "outside_kept", "unscored", "w_clipped", "length_mismatch",  # counts
    "max_abs_d",  # merges by max; all others by +
)

_COUNTED = ("nonfinite", "zeros", "outside_kept", "unscored", "w_clipped", "length_mismatch")
_POSITION_EDGES = np.array([1024, 4096, 16384])
_BINS = EDGES.size - 1


def slice_stats(rollout: Rollout, score: Score, *, eps_low: float = 0.2, eps_high: float = 0.2,
                view: str = "expected") -> tuple[SliceStats, ...]:
    """Statistics of one scored rollout, one record a slice (position bucket × weight version) it touches.

    Only sampled tokens count. A token enters the averages when engine and view are both finite and it was scored.
    A rollout over several slices gives each its share of scored tokens as `n_sequences`, and of the sequence sums.
    Arrays of unequal length give one slice without tokens that counts the length mismatch.
    """
    cached = None if rollout.cached_prompt_tokens is None else rollout.cached_prompt_tokens > 0
    sizes = {rollout.engine_logprobs_T.size, rollout.sampled_mask_T.size, score.views[view].size}
    if sizes != {rollout.n_tokens}:
        return (_slice(rollout, POSITIONS[0], None, cached, {"length_mismatch": 1.0}),)
    tokens = _Tokens(rollout, score, view)
    n_ok = int(tokens.ok_T.sum())
    sequence = _sequence_sums(tokens.d_T[tokens.ok_T], eps_low, eps_high)
    slices = []
    for position, version, in_slice_T in _keys(rollout, tokens.sampled_T):
        d_M = tokens.d_T[in_slice_T & tokens.ok_T]
        share = d_M.size / n_ok if n_ok else 0.0
        sums = _token_sums(tokens, in_slice_T & tokens.ok_T, eps_low, eps_high) | _counts(tokens, in_slice_T)
        sums |= {name: value * share for name, value in sequence.items()}
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


def collapse(hist: np.ndarray) -> np.ndarray:
    """A stored histogram [bins of EDGES] on the public edges: int64 [12]."""
    owner = np.searchsorted(PUBLIC_EDGES, EDGES[:-1], side="right") - 1
    return np.bincount(owner, weights=hist, minlength=PUBLIC_EDGES.size - 1).astype(np.int64)


def metrics(stats: SliceStats) -> dict[str, float]:
    """The named signals of a slice; NaN where undefined (no scored token). Rates are fractions, the rest nats.

    `…_se` are standard errors clustered by rollout. Counts (confident_disagreements, nonfinite, zeros, …) are numbers.
    """
    sums, n, n_seq = stats.sums, stats.n_tokens, stats.n_sequences
    out = {"n_tokens": float(n), "n_sequences": float(n_seq)}
    out |= {"mean_d": _ratio(sums["d"], n), "mean_abs_d": _ratio(sums["abs_d"], n), "max_abs_d": sums["max_abs_d"],
            "k1": _ratio(-sums["d"], n), "k2": _ratio(sums["d2"] / 2, n), "k3": _ratio(sums["k3"], n)}
    out |= {"mean_d_se": _clustered_se(sums, n, "d"), "mean_abs_d_se": _clustered_se(sums, n, "a")}
    out |= {"clip_rate_low": _ratio(sums["clip_low"], n), "clip_rate_high": _ratio(sums["clip_high"], n),
            "clip_rate": _ratio(sums["clip_low"] + sums["clip_high"], n),
            "gspo_clip_rate": _ratio(sums["gspo_low"] + sums["gspo_high"], n_seq)}
    out |= {"ess": _ratio(sums["w"] ** 2, n * sums["w2"]), "chi2": _ratio(sums["w2"], n) - 1,
            "tme": _ratio(sums["exp_abs_d"], n), "ppl_ratio": _ratio(sums["ppl_ratio"], n_seq),
            "pearson": _pearson(sums, n)}
    out |= {"mean_engine_logprob": _ratio(sums["engine_logprob"], n),
            "mean_entropy": _ratio(sums["entropy"], sums["entropy_tokens"])}
    hist = stats.hist_pos + stats.hist_neg
    out |= {"p50_abs_d": _quantile(hist, 0.5), "p99_abs_d": _quantile(hist, 0.99)}
    out["confident_disagreements"] = sums["confident"]
    return out | {name: sums[name] for name in _COUNTED}


class _Tokens:
    """One rollout's rows as float64 [T], with the masks that say which tokens are what."""

    def __init__(self, rollout: Rollout, score: Score, view: str) -> None:
        self.p_T = rollout.engine_logprobs_T.astype(np.float64)
        self.q_T = score.views[view].astype(np.float64)
        self.entropy_T = score.entropy_T
        self.sampled_T = rollout.sampled_mask_T
        scored_T = ~np.isnan(self.q_T) & self.sampled_T
        self.scored_T = scored_T if score.scored_mask_T is None else scored_T & score.scored_mask_T
        self.ok_T = np.isfinite(self.p_T) & np.isfinite(self.q_T) & self.scored_T
        self.d_T = np.where(self.ok_T, 0.0, np.nan)
        self.d_T[self.ok_T] = self.q_T[self.ok_T] - self.p_T[self.ok_T]


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


def _token_sums(tokens: _Tokens, inside_T: np.ndarray, eps_low: float, eps_high: float) -> dict[str, float]:
    p_M, q_M, d_M = tokens.p_T[inside_T], tokens.q_T[inside_T], tokens.d_T[inside_T]
    capped_M = np.clip(d_M, -LOG_RATIO_CAP, LOG_RATIO_CAP)
    abs_M, w_M = np.abs(d_M), np.exp(capped_M)
    prob_p_M, prob_q_M = np.exp(p_M), np.exp(q_M)
    terms = {
        "d": d_M, "abs_d": abs_M, "d2": d_M**2, "k3": np.expm1(np.minimum(d_M, LOG_RATIO_CAP)) - d_M, "w": w_M,
        "w2": w_M**2, "exp_abs_d": np.exp(np.abs(capped_M)), "clip_low": w_M < 1 - eps_low,
        "clip_high": w_M > 1 + eps_high, "p": prob_p_M, "q": prob_q_M, "pp": prob_p_M**2, "qq": prob_q_M**2,
        "pq": prob_p_M * prob_q_M, "engine_logprob": p_M, "w_clipped": abs_M > LOG_RATIO_CAP,
        "confident": (p_M >= CONFIDENT_LOGPROB) & (d_M < -CONFIDENT_DROP_NATS),
    }
    sums = {name: math.fsum(values) for name, values in terms.items()}
    n, sum_d, sum_a = float(d_M.size), sums["d"], sums["abs_d"]
    sums |= {"cluster_n2": n * n, "cluster_d2": sum_d**2, "cluster_dn": sum_d * n, "cluster_a2": sum_a**2,
             "cluster_an": sum_a * n, "max_abs_d": float(abs_M.max(initial=0.0))}
    if tokens.entropy_T is not None:
        entropy_M = tokens.entropy_T[inside_T]
        finite_M = entropy_M[np.isfinite(entropy_M)]
        sums |= {"entropy": math.fsum(finite_M), "entropy_tokens": float(finite_M.size)}
    return sums


def _counts(tokens: _Tokens, in_slice_T: np.ndarray) -> dict[str, float]:
    zeros_T = (tokens.p_T == 0.0) & tokens.scored_T & (tokens.q_T < ZERO_BELOW_NATS)
    outside_T = np.isfinite(tokens.p_T) & tokens.scored_T & np.isneginf(tokens.q_T)
    flags = {"nonfinite": ~np.isfinite(tokens.p_T), "zeros": zeros_T, "outside_kept": outside_T,
             "unscored": ~tokens.scored_T}
    return {name: float((flag_T & in_slice_T).sum()) for name, flag_T in flags.items()}


def _sequence_sums(d_M: np.ndarray, eps_low: float, eps_high: float) -> dict[str, float]:
    if not d_M.size:
        return {}
    mean_d = float(np.clip(d_M.mean(), -LOG_RATIO_CAP, LOG_RATIO_CAP))
    return {"gspo_low": float(math.exp(mean_d) < 1 - eps_low), "gspo_high": float(math.exp(mean_d) > 1 + eps_high),
            "ppl_ratio": math.exp(-mean_d)}


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
    sums = {name: math.fsum(item.sums[name] for item in items) for name in SUMS}
    sums["max_abs_d"] = max((item.sums["max_abs_d"] for item in items), default=0.0)
    return SliceStats(
        replica=replica, position=position, version=version, cached=cached, population=population,
        n_tokens=sum(item.n_tokens for item in items), n_sequences=math.fsum(item.n_sequences for item in items),
        hist_pos=sum((item.hist_pos for item in items), zero), hist_neg=sum((item.hist_neg for item in items), zero),
        sums=sums)


def _position_rank(position: str) -> int:
    return POSITIONS.index(position) if position in POSITIONS else -1


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom else math.nan


def _clustered_se(sums: dict[str, float], n: float, which: str) -> float:
    """Standard error of a ratio mean, rollouts as clusters: sqrt(Σ (S_i − m n_i)²) / N."""
    if not n:
        return math.nan
    mean = sums["d" if which == "d" else "abs_d"] / n
    spread = sums[f"cluster_{which}2"] - 2 * mean * sums[f"cluster_{which}n"] + mean**2 * sums["cluster_n2"]
    return math.sqrt(max(0.0, spread)) / n


def _pearson(sums: dict[str, float], n: float) -> float:
    if not n:
        return math.nan
    var_p, var_q = n * sums["pp"] - sums["p"] ** 2, n * sums["qq"] - sums["q"] ** 2
    if var_p <= 0 or var_q <= 0:
        return math.nan
    return (n * sums["pq"] - sums["p"] * sums["q"]) / math.sqrt(var_p * var_q)


def _quantile(hist: np.ndarray, level: float) -> float:
    """|d| at a quantile level, linear inside its bin; the last, open bin answers with its lower edge."""
    cumulative = np.cumsum(hist)
    if not cumulative[-1]:
        return math.nan
    rank = level * cumulative[-1]
    index = int(np.searchsorted(cumulative, rank))
    low, high = EDGES[index], EDGES[index + 1]
    if math.isinf(high):
        return float(low)
    before = cumulative[index] - hist[index]
    return float(low + (high - low) * (rank - before) / hist[index])
