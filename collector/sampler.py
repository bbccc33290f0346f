"""Which rollouts are scored: two coins, so that the estimates stay unbiased on a small budget.

The **base coin** has a probability fixed before the rollout is seen: from the previous minute's token rate of its
stratum (replica × weight version × prompt-length bucket), never below `min_probability`. Bets and contrasts use
base-coin rollouts, unweighted. The stratum uses the *prompt's* length, not the completion's: the completion's length
depends on which tokens were drawn, so choosing by it would bend the null of the self-bets.

The **hint coin** is a second chance for suspicious rollouts (loops, a very unlikely or a non-finite token). Rollouts
it alone keeps are marked `base_coin=False`: they feed per-request checks and weighted estimates only.

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
_PROMPT_BUCKETS = (256, 1024, 4096, 16384)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The sampler's decision. `rollout` carries its inclusion probability when kept, else None."""

    rollout: Rollout | None
    base: bool
    hinted: bool


class TwoCoinSampler:
    """Splits `tokens_per_minute` evenly over the strata seen in the previous minute (what one leaves, others get)."""

    def __init__(self, config: SamplerConfig) -> None:
        self.config = config
        self._minute: int | None = None
        self._tokens: dict[Stratum, int] = defaultdict(int)  # offered in the running minute
        self._prompts: set[str] = set()  # groups offered in the running minute: a prompt is forwarded once
        self._probability: dict[Stratum, float] = {}
        self._default = 1.0  # a stratum never seen: what an even share would allow

    def draw(self, rollout: Rollout, *, now: float) -> Draw:
        """Flip both coins for one rollout; `now` is UTC seconds."""
        self._roll_minute(now)
        stratum = stratum_of(rollout)
        group = group_of(rollout)
        self._tokens[stratum] += rollout.n_tokens + (0 if group in self._prompts else rollout.prompt_tokens_P.size)
        self._prompts.add(group)
        p_base = self._probability.get(stratum, self._default)
        base = _coin(self.config.seed, "base", group) < p_base
        hinted = suspicious(rollout)
        p_hint = self.config.hint_probability if hinted else 0.0
        hint = _coin(self.config.seed, "hint", rollout.request_id) < p_hint
        if not (base or hint):
            return Draw(rollout=None, base=False, hinted=hinted)
        inclusion = p_base + (1.0 - p_base) * p_hint
        return Draw(rollout=replace(rollout, inclusion_probability=inclusion, base_coin=base), base=base, hinted=hinted)

    def _roll_minute(self, now: float) -> None:
        minute = int(now // 60)
        if self._minute is None:
            self._minute = minute
        if minute == self._minute:
            return
        gap = minute - self._minute
        offered = dict(self._tokens) if gap == 1 else {}
        self._probability, self._default = base_probabilities(offered, self.config)
        self._tokens.clear()
        self._prompts.clear()
        self._minute = minute


def base_probabilities(offered: dict[Stratum, int], config: SamplerConfig) -> tuple[dict[Stratum, float], float]:
    """Base-coin probability per stratum from the tokens it offered last minute, and that of an unseen stratum.

    Water-filling: strata below their even share are kept whole, the rest share what remains evenly.
    """
    left, remaining = float(config.tokens_per_minute), dict(offered)
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


def suspicious(rollout: Rollout) -> bool:
    """Cheap hints that a rollout deserves a second chance: loops, a non-finite report, or a very unlikely token."""
    tokens_T, logprobs_T = rollout.completion_tokens_T, rollout.engine_logprobs_T[rollout.sampled_mask_T]
    looping = tokens_T.size >= 16 and np.unique(tokens_T).size < tokens_T.size / 4
    unlikely = logprobs_T.size > 0 and bool(np.nanmin(np.nan_to_num(logprobs_T, nan=0.0)) < -9.0)
    return bool(looping or unlikely or not np.isfinite(logprobs_T).all())


def _coin(seed: int, name: str, key: str) -> float:
    digest = hashlib.blake2b(f"{seed}:{name}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
