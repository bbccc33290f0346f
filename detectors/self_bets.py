"""Self-bets: do the engine's reported probabilities match what it samples?

Question.    Tier 0: without a model, do the reported logprobs mean the distribution the engine samples from?
Statistic.   p = reported probability of the top-1 token, y = 1 when the sampled token is that token. For each tilt θ
             (log-odds) the gain of one token is the log likelihood ratio of Bernoulli(tilted p) against Bernoulli(p):
             θ·y − log(1 − p + p·e^θ). Six tilts are six streams; a rollout's gain is the sum over its tokens.
Units.       Nats of log evidence.
Guarantee.   If reports match the sampler, E[exp(gain)] = 1 given the past, exactly, for every θ: no floor, no warm-up,
             no weights. Each token's gain lies in [−|θ|, |θ|].
Assumes.     The top-1 token is known before the sample. vLLM puts the sampled token into the reported list, so with
             exact ties the choice could follow the sample: with two or more entries tied tokens are left out (both are
             reported whatever was sampled); with a single one, the entry that is not the sampled token is the top-1.
             A reported p = 1 gives gain 0 when hit and −θ when missed.
When it lies. Blind to self-consistent faults: hidden temperature or truncation, stale weights, wrong prompts, numerics.
             Greedy decoding (temperature 0, on the trainer's or the engine's side) always samples the top-1: nothing
             can be bet and `why_not` says so; an engine that is greedy by mistake is the engine audit's finding.
             Selecting rollouts by their logprobs breaks the null: base-coin rollouts only (see gains.py).
Example.     Raw logprobs at T = .7: reported p = .5 but sampled at .62; the +.3 and +.6 tilts gain about .025 nats a token.
Source.      Waudby-Smith & Ramdas, *Estimating means of bounded random variables by betting*; reference measurements in
             docs/decisions/0002-one-budget-for-every-stream.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collector.records import Rollout

TIE_NATS = 1e-6


def why_not(rollout: Rollout) -> str | None:
    """Why this rollout carries no self-bet, in plain words; None when it does."""
    if not any(tops is not None and tops.size for tops in rollout.top_logprobs):
        return "no top logprobs were reported (ask the engine for logprobs >= 1)"
    if 0 in (rollout.sampling.temperature, rollout.engine_sampling.temperature):
        return "temperature 0 always samples the most likely token: nothing to bet on"
    return None


def top_one(rollout: Rollout) -> tuple[np.ndarray, np.ndarray]:
    """(p_N float64, hit_N bool) over the N usable tokens: sampled, top-1 finite, top-1 known without the sample."""
    listed = min((tops.size for tops in rollout.top_logprobs if tops is not None and tops.size), default=0)
    log_p: list[float] = []
    hit: list[bool] = []
    rows = zip(rollout.completion_tokens_T, rollout.sampled_mask_T, rollout.top_tokens, rollout.top_logprobs, strict=False)
    for token, sampled, tokens, logprobs in rows:
        if not sampled or tokens is None or logprobs is None or not logprobs.size or tokens.size != logprobs.size:
            continue
        best = int(np.argmax(logprobs))
        top = logprobs[best]
        if not np.isfinite(top):
            continue
        tied = np.count_nonzero(logprobs >= top - TIE_NATS) > 1
        if tied and listed > 1:
            continue
        log_p.append(float(top))
        hit.append(False if tied else bool(tokens[best] == token))
    return np.exp(np.minimum(np.array(log_p, dtype=np.float64), 0.0)), np.array(hit, dtype=bool)


def gains(rollout: Rollout, tilts: Sequence[float]) -> dict[str, float]:
    """Log gain of one rollout per tilt: {"self_bet:+0.3": nats}; {} when it carries no bet (see `why_not`)."""
    if why_not(rollout) is not None:
        return {}
    p_N, hit_N = top_one(rollout)
    if not p_N.size:
        return {}
    hits = int(hit_N.sum())
    return {stream(tilt): tilt * hits - float(np.log1p(p_N * np.expm1(tilt)).sum()) for tilt in tilts}


def stream(tilt: float) -> str:
    """The stream's name.

    >>> stream(0.3)
    'self_bet:+0.3'
    """
    return f"self_bet:{tilt:+g}"
