"""Do two engines give the same logprobs? Tokens sampled on one, forced through the other, in both directions. Pure.

Question.    Is the difference of the two engines' logprobs of the same tokens what their precision alone makes of them?
Statistic.   d = log p_other − log p_sampler per token, nats: mean d, mean |d|, k1, k3, ESS, share of tokens beyond 1 nat; by
             position in the sequence and by class of token. KL is KL(sampler‖other), estimated on the sampler's tokens.
Errors.      Clustered by rollout: a sandwich for means, a delete-one-rollout jackknife for ESS.
Rule.        Differ when, in either direction, mean |d| is clearly above `at_floor_ratio` times the floor, mean d clearly
             off 0 by more than SHIFT_NATS, or a bucket of positions clearly above twice that limit; "clearly": by
             `confidence_z` standard errors. The floor is the shadow's own bf16 − fp32 difference on the same tokens.
When it lies. Both engines wrong alike look the same. Forced logprobs are raw by definition (vLLM's prompt_logprobs), so only a
             neutral sampler (T = 1, no truncation, no penalties) can be compared: settings and sampling are preflight's affair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from collector.records import Rollout
from diagnosis.config import DiagnosisConfig
from diagnosis.sheet import clustered_mean

SHIFT_NATS = 0.005
BEYOND_NATS = 1.0
MIN_BUCKET_TOKENS = 100
LOW = ("bfloat16", "float16")
_EDGES = (64, 256, 1024, 4096)
BUCKETS = ("0-64", "64-256", "256-1k", "1k-4k", "4k+")
"""Of a token's position in prompt + completion."""

CLASSES = ("first token", "special", "digits", "space, punctuation", "words", "other")


@dataclass(frozen=True, slots=True, kw_only=True)
class Forced:
    """One rollout of one engine, and what the other one makes of the same tokens."""

    rollout: Rollout  # engine_logprobs_T: the sampler's own
    other_T: np.ndarray  # float64 [T] nats; NaN = not told
    classes_T: tuple[str, ...]  # one of CLASSES a token


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Statistics of one group of tokens, each with its standard error clustered by rollout (inf in fewer than two rollouts)."""

    name: str
    tokens: int
    rollouts: int
    mean_d: float
    mean_d_se: float
    mean_abs_d: float
    mean_abs_d_se: float
    k1: float  # −mean d
    k1_se: float
    k3: float
    k3_se: float
    ess: float  # of the token weights e^d, as a share
    ess_se: float
    beyond: float  # share of tokens with |d| > 1 nat
    beyond_se: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Identical:
    """Two completions of the same prompts, token by token."""

    prompts: int
    tokens: int  # of the shorter completion of each pair
    same: float  # share of them before the first that differs
    same_se: float  # clustered by prompt
    whole: int  # prompts whose completions are the same to the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """Sampled on one engine, forced through another (or through itself)."""

    name: str  # "A on B": sampled on A, forced through B
    total: Numbers
    by_position: tuple[Numbers, ...]
    by_class: tuple[Numbers, ...]


def token_class(text: str, *, index: int, special: bool) -> str:
    """One of CLASSES. `text`: the token alone, as its tokenizer spells it; "" = unknown.

    >>> token_class(" 42", index=3, special=False), token_class(" the", index=3, special=False)
    ('digits', 'words')
    """
    bare = text.strip()
    if index == 0:
        return "first token"
    if special:
        return "special"
    if text and not bare:
        return "space, punctuation"
    if bare.isdigit():
        return "digits"
    if bare and not any(letter.isalnum() for letter in bare):
        return "other" if "\ufffd" in bare else "space, punctuation"
    return "words" if bare and all(letter.isalpha() or letter in "'’-_" for letter in bare) else "other"


def direction(name: str, pairs: Sequence[Forced]) -> Direction | None:
    """The numbers of one direction; None when no token is finite on both sides."""
    if not pairs:
        return None
    d_N = np.concatenate([pair.other_T - pair.rollout.engine_logprobs_T.astype(np.float64) for pair in pairs])
    cluster_N = np.repeat(np.arange(len(pairs)), [pair.rollout.n_tokens for pair in pairs])
    position_N = np.concatenate([pair.rollout.prompt_tokens_P.size + np.arange(pair.rollout.n_tokens) for pair in pairs])
    class_N = np.concatenate([np.array(pair.classes_T, dtype=object) for pair in pairs])
    keep_N = np.isfinite(d_N)
    if not keep_N.any():
        return None
    d_N, cluster_N, class_N = d_N[keep_N], cluster_N[keep_N], class_N[keep_N]
    bucket_N = np.searchsorted(_EDGES, position_N[keep_N], side="right")
    places = [numbers(bucket, d_N[bucket_N == i], cluster_N[bucket_N == i]) for i, bucket in enumerate(BUCKETS) if (bucket_N == i).any()]
    classes = [numbers(one, d_N[class_N == one], cluster_N[class_N == one]) for one in CLASSES if (class_N == one).any()]
    return Direction(name=name, total=numbers("all", d_N, cluster_N), by_position=tuple(places), by_class=tuple(classes))


def numbers(name: str, d_N: np.ndarray, cluster_N: np.ndarray) -> Numbers:
    """Statistics of tokens d_N (nats, finite), clustered by `cluster_N`."""
    mean, mean_se, clusters = clustered_mean(d_N, cluster_N)
    size, size_se, _ = clustered_mean(np.abs(d_N), cluster_N)
    k3, k3_se, _ = clustered_mean(np.expm1(d_N) - d_N, cluster_N)
    beyond, beyond_se, _ = clustered_mean((np.abs(d_N) > BEYOND_NATS).astype(np.float64), cluster_N)
    ess, ess_se = _ess(d_N, cluster_N)
    return Numbers(name=name, tokens=int(d_N.size), rollouts=clusters, mean_d=mean, mean_d_se=mean_se, mean_abs_d=size, mean_abs_d_se=size_se,
                   k1=-mean, k1_se=mean_se, k3=k3, k3_se=k3_se, ess=ess, ess_se=ess_se, beyond=beyond, beyond_se=beyond_se)


def _ess(d_N: np.ndarray, cluster_N: np.ndarray) -> tuple[float, float]:
    """(Σw)² / (N Σw²) with w = e^d, and its delete-one-cluster jackknife error."""
    w_N = np.exp(d_N - d_N.max())
    _, index_N = np.unique(cluster_N, return_inverse=True)
    first_G, second_G, count_G = (np.bincount(index_N, weights=values) for values in (w_N, w_N**2, np.ones_like(w_N)))

    def share(first: np.ndarray, second: np.ndarray, count: np.ndarray) -> np.ndarray:
        return first**2 / (count * second)

    whole = float(share(first_G.sum(), second_G.sum(), count_G.sum()))
    groups = first_G.size
    if groups < 2:
        return whole, math.inf
    left_G = share(first_G.sum() - first_G, second_G.sum() - second_G, count_G.sum() - count_G)
    return whole, math.sqrt((groups - 1) / groups * float(((left_G - left_G.mean()) ** 2).sum()))


def identical(one: Sequence[Rollout], other: Sequence[Rollout]) -> Identical | None:
    """How far completions of the same prompts agree; None without prompts."""
    if not one:
        return None
    same_rows, whole = [], 0
    for a, b in zip(one, other, strict=True):
        n = min(a.n_tokens, b.n_tokens)
        same_T = np.cumsum(a.completion_tokens_T[:n] != b.completion_tokens_T[:n]) == 0
        same_rows.append(same_T.astype(np.float64))
        whole += bool(same_T.all()) and a.n_tokens == b.n_tokens
    share, se, _ = clustered_mean(np.concatenate(same_rows), np.repeat(np.arange(len(same_rows)), [row.size for row in same_rows]))
    return Identical(prompts=len(one), tokens=sum(row.size for row in same_rows), same=share, same_se=se, whole=whole)


def pair_floor(intrinsic_nats: float, dtypes: Sequence[str | None], config: DiagnosisConfig) -> float:
    """Mean |d| that precision alone makes between two engines: √(low-precision sides) times what it makes of one. An untold dtype is taken for bfloat16."""
    low = sum(dtype is None or dtype in LOW for dtype in dtypes)
    if not low or not math.isfinite(intrinsic_nats):
        return config.fp32_floor_nats
    return max(config.fp32_floor_nats, intrinsic_nats * math.sqrt(low))


def differences(directions: Sequence[Direction], floor_nats: float, config: DiagnosisConfig) -> list[str]:
    """Why the engines differ, in words; nothing when they are the same within noise."""
    limit, z = config.at_floor_ratio * floor_nats, config.confidence_z
    found = []
    for one in directions:
        total = one.total
        if total.mean_abs_d - z * total.mean_abs_d_se > limit:
            found.append(f"{one.name}: mean |d| {total.mean_abs_d:.4f} ± {total.mean_abs_d_se:.4f} nats is above {config.at_floor_ratio:g} times the floor of {floor_nats:.4f}")
        if abs(total.mean_d) - z * total.mean_d_se > SHIFT_NATS:
            found.append(f"{one.name}: mean d {total.mean_d:+.4f} ± {total.mean_d_se:.4f} nats, every token is shifted")
        found += [f"{one.name}: positions {part.name}: mean |d| {part.mean_abs_d:.4f} ± {part.mean_abs_d_se:.4f} nats" for part in one.by_position
                  if part.tokens >= MIN_BUCKET_TOKENS and part.mean_abs_d - z * part.mean_abs_d_se > 2 * limit]
    return found


def too_little(directions: Sequence[Direction], config: DiagnosisConfig) -> str:
    """What is missing for a verdict of "same"; "" when there is enough."""
    least = min((one.total for one in directions), key=lambda total: total.tokens, default=None)
    if least is None or least.tokens < config.min_tokens or least.rollouts < config.min_rollouts:
        tokens, rollouts = (0, 0) if least is None else (least.tokens, least.rollouts)
        return f"{tokens} tokens of {rollouts} rollouts are too few (at least {config.min_tokens} of {config.min_rollouts} are needed)"
    return ""


def as_table(parts: Mapping[str, Sequence[Numbers]]) -> list[list[str]]:
    """Rows of text: group, tokens, mean |d|, k1, k3, ESS, share beyond 1 nat, each with its error."""
    rows = []
    for name, group in parts.items():
        for one in group:
            rows.append([f"{name} {one.name}".strip(), f"{one.tokens:,}", _pm(one.mean_abs_d, one.mean_abs_d_se, ".4f"), _pm(one.k1, one.k1_se, "+.4f"),
                         _pm(one.k3, one.k3_se, ".2g"), _pm(one.ess, one.ess_se, ".4f"), _pm(one.beyond, one.beyond_se, ".1%")])
    return rows


def _pm(value: float, error: float, spec: str) -> str:
    return f"{value:{spec}} ± {error:{spec.lstrip('+')}}" if math.isfinite(error) else f"{value:{spec}}"
