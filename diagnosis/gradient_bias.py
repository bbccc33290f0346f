"""What the mismatch does to the policy gradient, in size and direction, before and after a correction.

Question.    Tokens are sampled from p (the engine) and the gradient is taken of q (the trainer). How far is the gradient
             that the trainer computes from the one it means, and how much of that does TIS or IcePop take away?
Statistic.   One coordinate a trained token t: m_t the loss mask, A_t the advantage, w_t = e^{d_t}, d = log q − log p in nats.
                 meant      g*_t = m_t A_t w_t           (importance weight: samples of p stand for samples of q)
                 computed   g_t  = m_t A_t               (no correction)
                 TIS        g_t  = m_t A_t min(w_t, C)   C = [signals] tis_cap
                 IcePop     g_t  = m_t A_t w_t 1{low ≤ w_t ≤ high}          [signals] icepop; MIS the same with [signals] mis
             relative bias = ‖g − g*‖ / ‖g*‖ and angle = arccos(g·g* / ‖g‖‖g*‖). Base-coin rollouts alone enter.
Assumption.  The score vectors ∇ log q of different tokens are uncorrelated and equally long; then norms and angles of the
             parameter gradient are those of these coordinates. Token weights stand in for the product over a sequence, as they
             do in every trainer's token-level correction.
Advantages.  As told (label `advantage`, one number a rollout); else, where prompts were sampled more than once under one
             version, reward − mean reward of the group, over its standard deviation (GRPO); else none is known: then |A| is
             taken as equal for all tokens (signs do not matter), and `bound` says how large the relative bias can be under ANY
             advantages that are constant over a rollout: the largest rollout's own. sin(angle) ≤ relative bias bounds the angle.
Data lost.   truncated_or_masked: share of trained tokens the correction touches. weight_removed = Σ m|A||g − g*| / Σ m|A| w.
             ess = (Σ m c)² / (n Σ m c²) of the corrected weights c, the share of the tokens that is left in effect.
Needed.      A correction is called needed while the uncorrected relative bias is above NEEDED; a healthy bf16 pair (root mean
             square d of .03) stays below a third of it.
Source.      TIS: Yao et al., *Your Efficient RL Framework Secretly Brings You Off-Policy RL Training* (2025). IcePop: Ling
             team, *Every Step Evolves* (2025). Group advantages: Shao et al., *DeepSeekMath* (2024).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from collector.limits import Limits
from collector.records import Rollout, Score

NEEDED = 0.1
"""Relative bias of the uncorrected gradient above which a correction is worth its data."""

LARGEST_D = 20.0
"""|d| in nats is cut here, as trainers do, so that one token's e^d stays a number."""

Pair = tuple[Rollout, Score]
Correction = Callable[[np.ndarray], np.ndarray]


def gradient_bias(pairs: Sequence[Pair], *, limits: Limits | None = None) -> dict[str, Any] | None:
    """JSON-able figures of one stretch of a run; None without a trained token both sides have a finite logprob for.

    Keys: basis ("advantages", "rewards" or "equal"), rollouts, tokens, uncorrected, tis, icepop, mis (each relative_bias,
    angle_degrees; the corrections also truncated_or_masked, weight_removed, ess), bound and bound_degrees (basis "equal"
    alone), correction_needed. relative_bias and shares are fractions.
    """
    limits = limits or Limits()
    trained = [(rollout, d) for rollout, score in pairs if (d := trained_differences(rollout, score)).size]
    if not trained:
        return None
    basis, advantages = _advantages([rollout for rollout, _ in trained])
    used = [(d, a) for (_, d), a in zip(trained, advantages, strict=True) if a is not None]
    w_N = np.exp(np.clip(np.concatenate([d for d, _ in used]), -LARGEST_D, LARGEST_D))
    a_N = np.concatenate([np.full(d.size, a, dtype=np.float64) for d, a in used])
    found: dict[str, Any] = {"basis": basis, "rollouts": len(used), "tokens": int(w_N.size), "uncorrected": _compare(a_N, a_N * w_N)}
    for name, correct in corrections(limits).items():
        c_N = correct(w_N)
        found[name] = _compare(a_N * c_N, a_N * w_N) | _lost(np.abs(a_N), w_N, c_N)
    if basis == "equal":
        largest = max(_relative(np.ones(d.size), np.exp(np.clip(d, -LARGEST_D, LARGEST_D))) for d, _ in used)
        found |= {"bound": largest, "bound_degrees": math.degrees(math.asin(min(1.0, largest)))}
    relative = found["uncorrected"]["relative_bias"]
    return found | {"correction_needed": None if relative is None else relative > NEEDED}


def corrections(limits: Limits) -> dict[str, Correction]:
    """Name → what the correction makes of w [N]."""
    return {
        "tis": lambda w_N: np.minimum(w_N, limits.tis_cap),
        "icepop": lambda w_N: np.where((w_N >= limits.icepop[0]) & (w_N <= limits.icepop[1]), w_N, 0.0),
        "mis": lambda w_N: np.where((w_N >= limits.mis[0]) & (w_N <= limits.mis[1]), w_N, 0.0),
    }


def trained_differences(rollout: Rollout, score: Score) -> np.ndarray:
    """d [N] in nats of the tokens the trainer learns from; empty for dropped and hint-coin rollouts."""
    expected_T = score.views["expected"].astype(np.float64)
    if rollout.dropped or not rollout.base_coin or expected_T.size != rollout.n_tokens:
        return np.empty(0)
    keep_T = np.asarray(rollout.sampled_mask_T, dtype=bool).copy()
    for mask_T in (rollout.loss_mask_T, score.scored_mask_T):
        if mask_T is not None:
            keep_T &= mask_T
    engine_T = rollout.engine_logprobs_T.astype(np.float64)
    keep_T &= np.isfinite(engine_T) & np.isfinite(expected_T)
    return expected_T[keep_T] - engine_T[keep_T]


def group_of(rollout: Rollout) -> tuple[str, bytes]:
    """What makes rollouts one group: the same prompt under the same weights."""
    return rollout.version or "", rollout.labels.get("group", "").encode() + b"/" + rollout.prompt_tokens_P.astype(np.int32).tobytes()


def _advantages(rollouts: Sequence[Rollout]) -> tuple[str, list[float | None]]:
    """(basis, advantage a rollout; None = leave it out)."""
    told = [_told(rollout) for rollout in rollouts]
    if any(told):  # all zero: nothing to learn from
        return "advantages", told
    groups: dict[tuple[str, bytes], list[int]] = defaultdict(list)
    for index, rollout in enumerate(rollouts):
        if rollout.reward is not None and math.isfinite(rollout.reward):
            groups[group_of(rollout)].append(index)
    made: list[float | None] = [None] * len(rollouts)
    for members in groups.values():
        if len(members) > 1:
            rewards = np.array([rollouts[index].reward for index in members], dtype=np.float64)
            spread = float(rewards.std())
            for index, reward in zip(members, rewards, strict=True):
                made[index] = float((reward - rewards.mean()) / spread) if spread > 0 else 0.0
    return ("rewards", made) if any(made) else ("equal", [1.0] * len(rollouts))


def _told(rollout: Rollout) -> float | None:
    try:
        value = float(rollout.labels["advantage"])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _compare(g_N: np.ndarray, meant_N: np.ndarray) -> dict[str, float | None]:
    length = float(np.linalg.norm(g_N) * np.linalg.norm(meant_N))
    cosine = float(g_N @ meant_N) / length if length > 0 else None
    return {"relative_bias": _relative(g_N, meant_N),
            "angle_degrees": None if cosine is None else math.degrees(math.acos(min(1.0, max(-1.0, cosine))))}


def _relative(g_N: np.ndarray, meant_N: np.ndarray) -> float | None:
    size = float(np.linalg.norm(meant_N))
    return float(np.linalg.norm(g_N - meant_N)) / size if size > 0 else None


def _lost(weight_N: np.ndarray, w_N: np.ndarray, c_N: np.ndarray) -> dict[str, float | None]:
    whole, squares = float(weight_N @ w_N), float(c_N @ c_N)
    return {"truncated_or_masked": float(np.mean(c_N != w_N)), "weight_removed": float(weight_N @ (w_N - c_N)) / whole if whole > 0 else None,
            "ess": float(c_N.sum()) ** 2 / (c_N.size * squares) if squares > 0 else 0.0}
