"""Betting explanations: does a known fault predict the engine's logprobs better than health does?

Question.    Tier 2: is the engine's logprob e closer to what fault f would report than to the expected prediction h?
Statistic.   A block of a rollout gives g = Σ w·(|e − h| − |e − f| − δ) / max(Σ w·|h − f|, s) over its tokens with |h − f| ≥ 5δ, where
             w = min(1, 1 nat / |h − f|); a bet at fraction λ gains log(1 + λ·g). Each (explanation, λ) is one stream. A rollout
             that can tell h from f by many nats bets once for every nat of Σ w·|h − f|, on successive tokens: one bet a
             rollout gains at most log(1 + λ) < .6 however much it could tell.
Units.       e, h, f, δ (dead band) and s (scale) in nats; g has none; the gain is nats of log evidence.
Guarantee.   −1.2 ≤ g ≤ 1, so 1 + λ·g > 0 for λ < 1/1.2. E[g] ≤ 0, hence E[1 + λ·g] ≤ 1, while the conditional median of e
             is within δ of h: the absolute deviation is smallest at the median and moves by at most δ. Which tokens count,
             and with what weight, is decided by h and f alone, never by e. Capping |·| would break this, for min(|x|, 1) is
             not smallest at the median.
Assumes.     Given the tokens, h and f are fixed and e has its median near h. Samples come from the noisy engine, which
             tilts e − h by about σ²: δ must cover it (σ = .03 → .0009 nats; σ = .13 → .017, above the default δ: such
             an engine is outside the null, and has a fault of its own). An error that all tokens of a rollout share must stay within δ
             too, or its blocks are one measurement. Measurements are not repeated: a token in a context
             that another rollout of the group had already is the same measurement and bets once (contexts.py).
Non-finite.  A token whose h or f was not scored (NaN), or whose h is −inf (outside the kept set), is left out: decided
             without e. f = −inf means the explanation calls the token impossible: it speaks against f with 1 nat, the limit.
             A token whose e is absent or non-finite gets the worst value any e could give, so that the argument holds
             whatever made it go missing; the hard fact on non-finite logprobs speaks instead.
When it lies. Differences below 5δ are invisible on purpose: once a policy is sure of itself, raw and processed logprobs
             agree within that on most tokens. A neighbour (T = .9 for raw at .7) can cross first: diagnosis names the cause.
Source.      DESIGN's form with a ratio of sums (docs/decisions/0003); Waudby-Smith & Ramdas (betting); tested under the null in tests/test_detectors_betting.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collector.errors import InputError
from collector.records import Rollout, Score

EXPLANATIONS = {
    "raw": "raw_logprobs",
    "temperature": "temperature",
    "stale_weights": "stale_weights",
    "stale_prefix_cache": "stale_prefix_cache",
    "truncation": "truncation",
    "penalties": "penalties",
}
"""View name up to its first colon → the cause it stands for."""

PLANNED_VARIANTS = {"raw_logprobs": 1, "temperature": 7, "stale_weights": 1, "stale_prefix_cache": 2, "truncation": 3, "penalties": 2}
"""Cause → how many of its variants (temperatures, KV versions) share its part of the budget equally."""


LEAST_DIFFERENCE = 5.0
"""Tokens on which the two predictions differ by less than this many dead bands are left out."""

LARGEST_DIFFERENCE_NATS = 1.0
"""A token counts for no more than a difference of this much: no single token decides a rollout's bet."""


def largest_fraction() -> float:
    """Fractions must stay below this for a bet never to lose everything: 1 / (1 + δ / 5δ)."""
    return 1 / (1 + 1 / LEAST_DIFFERENCE)


BLOCK_NATS = 1.0
"""A rollout bets once for every so many nats by which its two predictions differ."""


def bet(e_T: np.ndarray, h_T: np.ndarray, f_T: np.ndarray, *, dead_band: float, scale: float) -> float | None:
    """g of these tokens together, in [−1.2, 1]; None when no token tells the two predictions apart. Arrays are float [T], nats."""
    gain_K, difference_K = _telling(e_T, h_T, f_T, dead_band)
    return float(gain_K.sum() / max(difference_K.sum(), scale)) if gain_K.size else None


def bets(e_T: np.ndarray, h_T: np.ndarray, f_T: np.ndarray, *, dead_band: float, scale: float) -> np.ndarray:
    """g of each block of one rollout [B], as `bet`; blocks of BLOCK_NATS or a little more, cut by h and f alone."""
    gain_K, difference_K = _telling(e_T, h_T, f_T, dead_band)
    count = max(1, int(difference_K.sum() / BLOCK_NATS)) if gain_K.size else 0
    before_K = np.cumsum(difference_K) - difference_K
    block_K = np.minimum((before_K / BLOCK_NATS).astype(np.int64), count - 1)
    sums_B, told_B = (np.bincount(block_K, weights=x, minlength=count) for x in (gain_K, difference_K))
    told = told_B > 0
    return sums_B[told] / np.maximum(told_B[told], scale)


def _telling(e_T: np.ndarray, h_T: np.ndarray, f_T: np.ndarray, dead_band: float) -> tuple[np.ndarray, np.ndarray]:
    """(w·(|e − h| − |e − f| − δ), w·|h − f|) of the K tokens that tell the two predictions apart, in order."""
    e, h, f = (np.asarray(x, dtype=np.float64) for x in (e_T, h_T, f_T))
    known = np.isfinite(h) & (np.isfinite(f) | np.isneginf(f))
    e, h, f = e[known], h[known], f[known]
    impossible, absent = np.isneginf(f), ~np.isfinite(e)
    f, e = np.where(impossible, h, f), np.where(absent, h, e)
    difference = np.where(impossible, LARGEST_DIFFERENCE_NATS, np.abs(h - f))
    told = (difference >= LEAST_DIFFERENCE * dead_band) & (difference > 0)
    weight = np.minimum(1.0, LARGEST_DIFFERENCE_NATS / np.maximum(difference, LARGEST_DIFFERENCE_NATS))
    gain = np.where(absent, -difference, np.abs(e - h) - np.abs(e - f)) - dead_band
    gain = np.where(impossible, -LARGEST_DIFFERENCE_NATS, gain)
    return (weight * gain)[told], (weight * difference)[told]


def gains(
    rollout: Rollout, score: Score, *, fractions: Sequence[float], dead_band: float, scale: float,
    fresh_T: np.ndarray | None = None,
) -> dict[str, float]:
    """Log gain of one rollout per explanation and fraction: {"explain:raw_logprobs:0.3": nats}.

    `fresh_T`: tokens that are no repeated measurement (contexts.py); None = all. A rollout without any bets nothing.
    Raises InputError when a view's length is not the rollout's.
    """
    use = rollout.sampled_mask_T if score.scored_mask_T is None else rollout.sampled_mask_T & score.scored_mask_T
    use = use if fresh_T is None else use & fresh_T
    expected = score.views["expected"]
    found: dict[str, float] = {}
    for view, predicted in score.views.items():
        name = explanation(view)
        if name is None:
            continue
        if predicted.size != rollout.n_tokens or expected.size != rollout.n_tokens:
            reason = f"{predicted.size} values for {rollout.n_tokens} tokens"
            raise InputError(reason, field=f"views[{view}]", where=f"score of {rollout.request_id}")
        g_B = bets(rollout.engine_logprobs_T[use], expected[use], predicted[use], dead_band=dead_band, scale=scale)
        if g_B.size:
            found.update((stream(name, fraction), float(np.log1p(fraction * g_B).sum())) for fraction in fractions)
    return found


def explanation(view: str) -> str | None:
    """The explanation a view stands for, its variant kept; None for views nobody bets on.

    >>> explanation("raw"), explanation("temperature:0.8"), explanation("expected")
    ('raw_logprobs', 'temperature:0.8', None)
    """
    kind, _, variant = view.partition(":")
    cause = EXPLANATIONS.get(kind)
    if cause is None:
        return None
    return f"{cause}:{variant}" if variant else cause


def stream(name: str, fraction: float) -> str:
    """The stream's name.

    >>> stream("raw_logprobs", 0.3)
    'explain:raw_logprobs:0.3'
    """
    return f"explain:{name}:{fraction:g}"
