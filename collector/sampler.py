"""Which rollouts are scored: two coins, so that the estimates stay unbiased on a small budget.

The **base coin** has a probability fixed before the rollout is seen: from the previous minute's token rate of its
stratum (replica × weight version × prompt-length bucket), never below `min_probability`. Bets and contrasts use
base-coin rollouts, unweighted. The stratum uses the *prompt's* length, not the completion's: the completion's length
depends on which tokens were drawn, so choosing by it would bend the null of the self-bets.

The **hint coin** is a second chance for suspicious rollouts (loops, unusual length, a very unlikely or a non-finite token,
a trainer that disagrees). Rollouts it alone keeps are marked `base_coin=False`: they feed per-request checks and weighted
estimates only. It never spends more than `hint_share` of the budget, so a fault that leaves no hint is found nearly as
fast as without it.

The base coin is a hash of (seed, weight version, prompt): a group keeps or loses all its rollouts together, because
scoring the first of a group pays for the prompt and the rest are nearly free; it knows nothing of what was sampled. The
hint coin is a hash of (seed, request id). Both are the same on every replay.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from collector.records import Rollout
from collector.sources.config import SamplerConfig

Stratum = tuple[str, str | None, int]
LATE_SECONDS, CATCH_UP, RECOVER = 60.0, 0.7, 1.25
_PROMPT_BUCKETS = (256, 1024, 4096, 16384)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The sampler's decision. `rollout` carries its inclusion probability when kept, else None."""

    rollout: Rollout | None
    base: bool
    hinted: bool


class TwoCoinSampler:
    """Splits `tokens_per_minute` evenly over the strata seen in the previous minute (what one leaves, others get).

    Every probability of a minute follows from the minute before it alone. Where rollouts wait for the scorer longer than
    LATE_SECONDS, the budget of the next minute is what it got done, less a part that works off the backlog: a scorer too slow for
    its budget sees fewer rollouts of now, not all of them an hour late.
    """

    def __init__(self, config: SamplerConfig) -> None:
        self.config = config
        self._minute: int | None = None
        self._tokens: dict[Stratum, int] = defaultdict(int)  # offered in the running minute
        self._prompts: set[str] = set()  # groups offered in the running minute: a prompt is forwarded once
        self._probability: dict[Stratum, float] = {}
        self._default = 1.0  # a stratum never seen: what an even share would allow
        self._kept = self._drawn = 0  # tokens kept and rollouts offered in the running minute
        self._waited, self._backlog = 0.0, 0  # the longest wait (seconds) and the newest backlog (rollouts) of the running minute
        self.limit: float | None = None  # tokens a minute while the scorer is late; None = it keeps up
        self._hinted = 0  # tokens of suspicious rollouts in the running minute
        self._hint_probability = config.hint_probability
        self._lengths: dict[Stratum, list[int]] = defaultdict(list)  # completion lengths of the running minute
        self._lows: dict[Stratum, list[float]] = defaultdict(list)  # each rollout's least likely token, nats
        self._usual: dict[Stratum, Usual] = {}  # from the minute before

    def note_wait(self, seconds: float, backlog: int) -> None:
        """What the worker found: how long the oldest rollout in hand has waited, and how many wait behind it."""
        self._waited, self._backlog = max(self._waited, seconds), backlog

    def draw(self, rollout: Rollout, *, now: float) -> Draw:
        """Flip both coins for one rollout; `now` is UTC seconds."""
        self._roll_minute(now)
        stratum = stratum_of(rollout)
        group = group_of(rollout)
        cost = rollout.n_tokens + (0 if group in self._prompts else rollout.prompt_tokens_P.size)
        self._tokens[stratum] += cost
        self._drawn += 1
        self._prompts.add(group)
        self._lengths[stratum].append(rollout.n_tokens)
        self._lows[stratum].append(least_likely(rollout))
        p_base = self._probability.get(stratum, self._default)
        base = _coin(self.config.seed, "base", group) < p_base
        hinted = suspicious(rollout, self._usual.get(stratum))
        self._hinted += cost if hinted else 0
        p_hint = self._hint_probability if hinted else 0.0
        hint = _coin(self.config.seed, "hint", rollout.request_id) < p_hint
        if not (base or hint):
            return Draw(rollout=None, base=False, hinted=hinted)
        self._kept += cost
        inclusion = p_base + (1.0 - p_base) * p_hint
        return Draw(rollout=replace(rollout, inclusion_probability=inclusion, base_coin=base), base=base, hinted=hinted)

    def _roll_minute(self, now: float) -> None:
        minute = int(now // 60)
        if self._minute is None:
            self._minute = minute
        if minute == self._minute:
            return
        gap = minute - self._minute
        late = self._waited > LATE_SECONDS
        offered, hinted = (dict(self._tokens), self._hinted) if gap == 1 or late else ({}, 0)
        if late:
            arrived = (self._drawn + self._backlog) / max(self._drawn, 1) / gap  # the backlog will be offered too
            offered, hinted = {stratum: round(tokens * arrived) for stratum, tokens in offered.items()}, round(hinted * arrived)
            self.limit = max(CATCH_UP * self._kept / gap, 1.0)
        elif self.limit is not None:
            self.limit = self.limit * RECOVER if self.limit * RECOVER < self.config.tokens_per_minute else None
        config = self.config if self.limit is None else self.config.model_copy(update={"tokens_per_minute": max(1, int(min(self.limit, self.config.tokens_per_minute)))})
        self._hint_probability = hint_probability(hinted, config)
        self._probability, self._default = base_probabilities(offered, config, for_hints=self._hint_probability * hinted)
        self._usual = {stratum: Usual.of(lengths, self._lows[stratum]) for stratum, lengths in self._lengths.items()}
        self._tokens.clear()
        self._prompts.clear()
        self._lengths.clear()
        self._lows.clear()
        self._hinted = self._kept = self._drawn = 0
        self._waited, self._minute = 0.0, minute


def hint_probability(hinted_tokens: int, config: SamplerConfig) -> float:
    """The hint coin's probability when suspicious rollouts brought this many tokens in the last minute."""
    if not hinted_tokens:
        return config.hint_probability
    return min(config.hint_probability, config.hint_share * config.tokens_per_minute / hinted_tokens)


def base_probabilities(offered: dict[Stratum, int], config: SamplerConfig, *,
                       for_hints: float = 0.0) -> tuple[dict[Stratum, float], float]:
    """Base-coin probability per stratum from the tokens it offered last minute, and that of an unseen stratum.

    Water-filling: strata below their even share are kept whole, the rest share what remains evenly. `for_hints` tokens
    of the budget are left to the hint coin.
    """
    left, remaining = float(config.tokens_per_minute) - for_hints, dict(offered)
    out: dict[Stratum, float] = {}
    for stratum, tokens in sorted(offered.items(), key=lambda item: item[1]):
        share = left / len(remaining)
        out[stratum] = max(config.min_probability, min(1.0, share / max(tokens, 1)))
        left -= min(tokens, share)
        del remaining[stratum]
    return out, min(out.values(), default=1.0)


def stratum_of(rollout: Rollout) -> Stratum:
    """(replica, weight version at the first token, prompt-length bucket): all known before the first token is drawn."""
    version = rollout.weight_versions[0].version if rollout.weight_versions else None
    return rollout.replica, version, int(np.searchsorted(_PROMPT_BUCKETS, rollout.prompt_tokens_P.size))


def group_of(rollout: Rollout) -> str:
    """Name of the group: rollouts of one prompt under one weight version."""
    digest = hashlib.blake2b(rollout.prompt_tokens_P.tobytes(), digest_size=12).hexdigest()
    return f"{stratum_of(rollout)[1]}:{digest}"


LOOP_TOKENS, LOOP_SHARE = 16, 0.25
UNLIKELY_LOGPROB = -9.0
UNLIKELY_SHARE = 0.01
LONG_FACTOR = 4.0
SURPRISE_NATS = 0.5
"""The trainer's mean |d| over a rollout that makes it suspicious at tier 1: far above any healthy engine's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """What rollouts of a stratum looked like in the minute before: the hint coin must be choosy to be worth its tokens."""

    length: float  # mean, tokens
    low: float  # 1 % of the rollouts had a token less likely than this, nats

    @classmethod
    def of(cls, lengths: list[int], lows: list[float]) -> Usual:
        """From one minute's rollouts."""
        return cls(length=float(np.mean(lengths)), low=float(np.quantile(lows, UNLIKELY_SHARE)))


def least_likely(rollout: Rollout) -> float:
    """The logprob of the least likely sampled token, nats; 0 where none is finite."""
    logprobs_T = rollout.engine_logprobs_T[rollout.sampled_mask_T]
    return float(np.min(logprobs_T, initial=0.0, where=np.isfinite(logprobs_T)))


def suspicious(rollout: Rollout, usual: Usual | None = None) -> bool:
    """Cheap hints that a rollout deserves a second chance: loops, a non-finite report, a very unlikely token (for its
    stratum, too), a completion many times as long as usual, or a trainer that disagrees with it."""
    tokens_T = rollout.completion_tokens_T
    logprobs_T = rollout.engine_logprobs_T[rollout.sampled_mask_T]
    looping = tokens_T.size >= LOOP_TOKENS and np.unique(tokens_T).size < tokens_T.size * LOOP_SHARE
    unlikely = least_likely(rollout) < min(UNLIKELY_LOGPROB, usual.low if usual is not None else 0.0)
    long = usual is not None and tokens_T.size > max(LONG_FACTOR * usual.length, LOOP_TOKENS)
    return bool(looping or unlikely or long or not np.isfinite(logprobs_T).all() or _surprised(rollout, logprobs_T))


def _surprised(rollout: Rollout, logprobs_T: np.ndarray) -> bool:
    if rollout.trainer_logprobs_T is None:
        return False
    d_T = rollout.trainer_logprobs_T[rollout.sampled_mask_T].astype(np.float64) - logprobs_T
    d_T = d_T[np.isfinite(d_T)]
    return bool(d_T.size and np.abs(d_T).mean() > SURPRISE_NATS)


def _coin(seed: int, name: str, key: str) -> float:
    digest = hashlib.blake2b(f"{seed}:{name}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
