"""What of one rollout's tokens is added up: exact float64 sums, counts and extremes that merge over any grouping.

p, q: logprobs of rollout engine and trainer, nats; d = q − p; w = e^d. Legend: T = tokens, M = tokens inside a slice.
A rollout in several slices gives each its share of every per-sequence value, so that slices still add up to sequences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from collector.limits import Limits
from collector.records import Rollout, Score, SliceStats

LOG_RATIO_CAP = 20.0
"""e^d is taken at d clipped to ±20, against overflow; how often is in the sum `w_clipped`."""

CONFIDENT_LOGPROB = math.log(0.5)
CONFIDENT_DROP_NATS = 2.0
ZERO_BELOW_NATS = -0.05

FIRST_SUMS = (
    "d", "abs_d", "d2", "k3", "w", "w2", "exp_abs_d", "clip_low", "clip_high",  # over tokens
    "p", "q", "pp", "qq", "pq",  # probabilities, for Pearson
    "engine_logprob", "entropy", "entropy_tokens",  # how sure the policy is
    "gspo_low", "gspo_high", "ppl_ratio",  # per sequence, each slice its share
    "cluster_n2", "cluster_d2", "cluster_dn", "cluster_a2", "cluster_an",  # for standard errors clustered by rollout
    "confident", "nonfinite", "zeros", "outside_kept", "unscored", "w_clipped", "length_mismatch",  # counts
    "max_abs_d",
)
"""Sums of every stored record."""

WEIGHTED = ("ht_tokens", "ht_d", "ht_abs_d", "ht_k3", "ht_clip", "ht_n2", "ht_a2", "ht_an")
"""Sums over 1 / inclusion probability (Horvitz and Thompson): of tokens, d, |d|, k3, clipped tokens; and squares a rollout."""

LATER_SUMS = (
    "later_tokens", "later_sequences",  # what the sums below were taken over: an older record adds 0 to both
    "k3_squared", "k3_swapped", "js", "p_k1", "abs_dp", "dp2", "abs_w1",  # over tokens
    "tis", "tis2", "tis_truncated", "icepop_low", "icepop_high", "mis_low", "mis_high", "veto",
    "dppo_low", "dppo_high", "dppo_k3",
    "seq_d", "seq_abs_d", "seq_k3", "seq_exp_abs_d", "seq_clip", "seq_engine_logprob",  # sums of means over a sequence
    "seq_abs_mean_d", "rollout_ppl", "training_ppl", "seq_w", "seq_w2", "geo_w2",  # per sequence, each slice its share
    "seq_tis", "seq_truncated", "seq_masked", "seq_kept_w", "geo_masked", "product_masked", "seq_veto", "seq_outlier",
    "seq_k3_masked", "seq_tme_masked",
    *WEIGHTED,
    "lag_mismatch", "lag_mismatch2", "lag_total", "lag_total2",  # stale slices alone: |d| and d² of the other two comparisons
    "max_d", "min_d", "min_abs_d", "max_abs_dp", "max_seq_d", "min_seq_d", "max_seq_tme", "min_seq_tme",
)
"""Sums a record written before they existed lacks; their means are over `later_tokens` and `later_sequences`."""

SUMS = FIRST_SUMS + LATER_SUMS
MAXIMA = ("max_abs_d", "max_d", "max_abs_dp", "max_seq_d", "max_seq_tme")
MINIMA = ("min_d", "min_abs_d", "min_seq_d", "min_seq_tme")
"""These merge by max and min; all others by +."""


class Tokens:
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


def k3(d: np.ndarray) -> np.ndarray:
    """e^d − 1 − d, d capped at +20 inside the exponential; keeps its digits for tiny d."""
    return np.expm1(np.minimum(d, LOG_RATIO_CAP)) - d


def token_sums(tokens: Tokens, inside_T: np.ndarray, limits: Limits) -> dict[str, float]:
    """Sums over the tokens inside a slice."""
    p_M, q_M, d_M = tokens.p_T[inside_T], tokens.q_T[inside_T], tokens.d_T[inside_T]
    capped_M = np.clip(d_M, -LOG_RATIO_CAP, LOG_RATIO_CAP)
    abs_M, w_M, k3_M = np.abs(d_M), np.exp(capped_M), k3(d_M)
    prob_p_M, prob_q_M = np.exp(p_M), np.exp(q_M)
    low_M, high_M = clipped(w_M if limits.level == "token" else _sequence_ratio(tokens, w_M.size), limits)
    terms = {
        "d": d_M, "abs_d": abs_M, "d2": d_M**2, "k3": k3_M, "w": w_M, "w2": w_M**2, "exp_abs_d": np.exp(np.abs(capped_M)),
        "clip_low": low_M, "clip_high": high_M, "p": prob_p_M, "q": prob_q_M, "pp": prob_p_M**2, "qq": prob_q_M**2,
        "pq": prob_p_M * prob_q_M, "engine_logprob": p_M, "w_clipped": abs_M > LOG_RATIO_CAP,
        "confident": (p_M >= CONFIDENT_LOGPROB) & (d_M < -CONFIDENT_DROP_NATS),
    } | _correction_terms(w_M, limits) | _divergence_terms(p_M, q_M, d_M, k3_M, limits)
    sums = {name: math.fsum(values.tolist()) for name, values in terms.items()}
    n, sum_d, sum_a = float(d_M.size), sums["d"], sums["abs_d"]
    sums |= {"cluster_n2": n * n, "cluster_d2": sum_d**2, "cluster_dn": sum_d * n, "cluster_a2": sum_a**2,
             "cluster_an": sum_a * n, "later_tokens": n, "max_abs_d": float(abs_M.max(initial=0.0))}
    if d_M.size:
        sums |= {"max_d": float(d_M.max()), "min_d": float(d_M.min()), "min_abs_d": float(abs_M.min()),
                 "max_abs_dp": float(np.abs(prob_q_M - prob_p_M).max())}
    if tokens.entropy_T is not None:
        entropy_M = tokens.entropy_T[inside_T]
        finite_M = entropy_M[np.isfinite(entropy_M)]
        sums |= {"entropy": math.fsum(finite_M), "entropy_tokens": float(finite_M.size)}
    return sums


def weighted_sums(sums: dict[str, float], n_tokens: int, probability: float) -> dict[str, float]:
    """The slice's sums as all rollouts would have them, when this one was kept with `probability`."""
    n, sum_a = float(n_tokens), sums["abs_d"]
    clip = sums["clip_low"] + sums["clip_high"]
    plain = {"ht_tokens": n, "ht_d": sums["d"], "ht_abs_d": sum_a, "ht_k3": sums["k3"], "ht_clip": clip}
    squares = {"ht_n2": n * n, "ht_a2": sum_a**2, "ht_an": sum_a * n}
    return ({name: value / probability for name, value in plain.items()}
            | {name: value / probability**2 for name, value in squares.items()})


def clipped(w: np.ndarray, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
    """(below, above) the clip range; a side that is not clipped is never outside."""
    low = np.zeros(w.shape, bool) if limits.eps_low is None else w < 1 - limits.eps_low
    high = np.zeros(w.shape, bool) if limits.eps_high is None else w > 1 + limits.eps_high
    return low, high


def _sequence_ratio(tokens: Tokens, size: int) -> np.ndarray:
    """exp(mean d) of the whole rollout, repeated for each of `size` tokens."""
    return np.full(size, np.exp(_capped(tokens.d_T[tokens.ok_T].mean()) if size else 0.0))


def _correction_terms(w_M: np.ndarray, limits: Limits) -> dict[str, np.ndarray]:
    """What truncation and token masks would do to the weights."""
    tis_M = np.minimum(w_M, limits.tis_cap)
    return {
        "abs_w1": np.abs(w_M - 1), "tis": tis_M, "tis2": tis_M**2, "tis_truncated": w_M > limits.tis_cap,
        "icepop_low": w_M < limits.icepop[0], "icepop_high": w_M > limits.icepop[1],
        "mis_low": w_M < limits.mis[0], "mis_high": w_M > limits.mis[1], "veto": w_M < limits.veto,
    }


def _divergence_terms(p_M: np.ndarray, q_M: np.ndarray, d_M: np.ndarray, k3_M: np.ndarray,
                      limits: Limits) -> dict[str, np.ndarray]:
    """Other divergences, and differences of probabilities."""
    dp_M = np.exp(q_M) - np.exp(p_M)
    to_mixture_q_M, to_mixture_p_M = (math.log(2) - np.logaddexp(0.0, side * d_M) for side in (-1, 1))
    low_M, high_M = dp_M < -limits.dppo, dp_M > limits.dppo
    return {
        "k3_squared": k3_M**2, "k3_swapped": k3(-d_M), "js": 0.5 * k3(to_mixture_q_M) + 0.5 * k3(to_mixture_p_M),
        "p_k1": -np.exp(p_M) * d_M, "abs_dp": np.abs(dp_M), "dp2": dp_M**2, "dppo_low": low_M, "dppo_high": high_M,
        "dppo_k3": np.where(low_M | high_M, k3_M, 0.0),
    }


def token_counts(tokens: Tokens, in_slice_T: np.ndarray) -> dict[str, float]:
    """What cannot be averaged, counted."""
    zeros_T = (tokens.p_T == 0.0) & tokens.scored_T & (tokens.q_T < ZERO_BELOW_NATS)
    outside_T = np.isfinite(tokens.p_T) & tokens.scored_T & np.isneginf(tokens.q_T)
    flags = {"nonfinite": ~np.isfinite(tokens.p_T), "zeros": zeros_T, "outside_kept": outside_T,
             "unscored": ~tokens.scored_T}
    return {name: float((flag_T & in_slice_T).sum()) for name, flag_T in flags.items()}


def sequence_values(tokens: Tokens, limits: Limits) -> tuple[dict[str, float], dict[str, float]]:
    """(values a slice takes its share of, extremes every slice carries whole) of one rollout; empty without a token."""
    p_M, d_M = tokens.p_T[tokens.ok_T], tokens.d_T[tokens.ok_T]
    if not d_M.size:
        return {}, {}
    mean_p, mean_d, sum_d = float(p_M.mean()), float(d_M.mean()), float(d_M.sum())
    geo_w, seq_w = math.exp(_capped(mean_d)), math.exp(_capped(sum_d))
    w_M = np.exp(np.clip(d_M, -LOG_RATIO_CAP, LOG_RATIO_CAP))
    tme, mean_k3 = float(np.maximum(w_M, 1 / w_M).mean()), float(k3(d_M).mean())
    low, high = clipped(np.array([geo_w]), limits)
    veto = bool((w_M < limits.veto).any())
    over = seq_w > limits.sequence_mask_cap
    shares = {
        "gspo_low": low[0], "gspo_high": high[0], "ppl_ratio": math.exp(-_capped(mean_d)), "later_sequences": 1.0,
        "seq_abs_mean_d": abs(mean_d), "rollout_ppl": math.exp(_capped(-mean_p)),
        "training_ppl": math.exp(_capped(-mean_p - mean_d)), "seq_w": seq_w, "seq_w2": seq_w**2, "geo_w2": geo_w**2,
        "seq_tis": min(seq_w, limits.sequence_tis_cap), "seq_truncated": seq_w > limits.sequence_tis_cap,
        "seq_masked": over, "seq_kept_w": 0.0 if over else seq_w, "geo_masked": _outside(geo_w, limits.geometric),
        "product_masked": _outside(seq_w, limits.product), "seq_veto": veto,
        "seq_outlier": veto or bool((w_M > limits.outlier_high).any()),
        "seq_k3_masked": mean_k3 > limits.sequence_k3, "seq_tme_masked": tme > limits.sequence_tme,
    }
    extremes = {"max_seq_d": mean_d, "min_seq_d": mean_d, "max_seq_tme": tme, "min_seq_tme": tme}
    return {name: float(value) for name, value in shares.items()}, extremes


def per_sequence(sums: dict[str, float], n_ok: int) -> dict[str, float]:
    """A slice's part of means over the whole sequence: its token sums over the sequence's scored tokens."""
    if not n_ok:
        return {}
    whole = {"seq_d": sums["d"], "seq_abs_d": sums["abs_d"], "seq_k3": sums["k3"], "seq_exp_abs_d": sums["exp_abs_d"],
             "seq_clip": sums["clip_low"] + sums["clip_high"], "seq_engine_logprob": sums["engine_logprob"]}
    return {name: value / n_ok for name, value in whole.items()}


def merged_sums(items: Sequence[SliceStats]) -> dict[str, float]:
    """All sums of several records; one that a record lacks counts as 0, and an extreme only where tokens stand behind it."""
    sums = {name: math.fsum(item.sums.get(name, 0.0) for item in items) for name in SUMS}
    for names, pick in ((MAXIMA, max), (MINIMA, min)):
        for name in names:
            held = items if name in FIRST_SUMS else [item for item in items if item.sums.get("later_tokens", 0.0) > 0]
            sums[name] = pick((item.sums.get(name, 0.0) for item in held), default=0.0)
    return sums


def _outside(value: float, pair: tuple[float, float]) -> bool:
    return not pair[0] <= value <= pair[1]


def _capped(log_value: float) -> float:
    return min(max(log_value, -LOG_RATIO_CAP), LOG_RATIO_CAP)
