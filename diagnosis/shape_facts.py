"""Words of a shape that need no statistics: what rollouts declare, and tokens that no numerics can explain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collector.records import Rollout, Sampling, Score

FACT_FEATURES: dict[str, str] = {
    "confident_disagreement": "at least one token in a thousand has p ≥ 0.5 for the engine and is 2 nats less likely to the trainer",
    "exact_zeros": "at least 1 % of the engine's logprobs are exactly 0 where the trainer is not sure",
    "non_finite": "a sampled token's logprob is NaN, infinite or missing",
    "temperature": "a temperature other than 1 is declared or reported",
    "truncation": "top-p, top-k or min-p is declared or reported",
    "engine_penalty": "the engine reports a repetition, presence or frequency penalty",
    "raw_mode": "the engine claims raw logprobs",
    "fp8": "the engine's dtype names fp8",
    "adapter": "the rollouts name a LoRA adapter",
    "several_versions": "one rollout spans several weight versions",
    "tool_tokens": "tokens the policy did not sample stand inside the completion",
    "long_context": "positions beyond 4096 occur",
}
"""Feature → what it means."""

ZERO_SHARE, CONFIDENT_SHARE = 0.01, 0.001
CONFIDENT_P, CONFIDENT_NATS, NOT_SURE = 0.5, -2.0, -0.05
LONG = 4096


def facts_of(rollouts: Sequence[Rollout], scores: Sequence[Score | None]) -> set[str]:
    """Which of FACT_FEATURES hold."""
    said = {word for rollout in rollouts for word in _declared(rollout)}
    pairs = [(rollout, score) for rollout, score in zip(rollouts, scores, strict=True)
             if score is not None and score.views["expected"].size == rollout.n_tokens]
    if not pairs:
        return said
    use = [rollout.sampled_mask_T & np.isfinite(rollout.engine_logprobs_T) & np.isfinite(score.views["expected"]) for rollout, score in pairs]
    engine_N = np.concatenate([rollout.engine_logprobs_T[mask_T] for (rollout, _), mask_T in zip(pairs, use, strict=True)])
    trainer_N = np.concatenate([score.views["expected"][mask_T] for (_, score), mask_T in zip(pairs, use, strict=True)])
    if engine_N.size:
        confident_N = (engine_N >= np.log(CONFIDENT_P)) & (trainer_N - engine_N < CONFIDENT_NATS)
        said |= {"confident_disagreement"} if confident_N.mean() >= CONFIDENT_SHARE else set()
        said |= {"exact_zeros"} if ((engine_N == 0) & (trainer_N < NOT_SURE)).mean() >= ZERO_SHARE else set()
    return said


def _declared(rollout: Rollout) -> set[str]:
    both = (rollout.sampling, rollout.engine_sampling)
    mask_T = rollout.sampled_mask_T
    words = {
        "non_finite": bool((~np.isfinite(rollout.engine_logprobs_T) & mask_T).any()),
        "temperature": any(one.temperature not in (None, 1.0) for one in both), "truncation": any(_truncates(one) for one in both),
        "engine_penalty": rollout.engine_sampling.repetition_penalty not in (None, 1.0)
        or bool(rollout.engine_sampling.presence_penalty) or bool(rollout.engine_sampling.frequency_penalty),
        "raw_mode": rollout.logprobs_mode == "raw_logprobs", "fp8": "fp8" in (rollout.engine_dtype or "").lower(),
        "adapter": bool(rollout.labels.get("lora")), "several_versions": len({span.version for span in rollout.weight_versions}) > 1,
        "tool_tokens": bool((~mask_T[:int(np.flatnonzero(mask_T)[-1])]).any()) if mask_T.any() else False,
        "long_context": rollout.prompt_tokens_P.size + rollout.n_tokens > LONG,
    }
    return {word for word, holds in words.items() if holds}


def _truncates(sampling: Sampling) -> bool:
    return (sampling.top_p is not None and sampling.top_p < 1) or (sampling.top_k or -1) > 0 or bool(sampling.min_p)
