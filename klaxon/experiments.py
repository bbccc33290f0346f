"""Experiments on the live engine after an alarm: marked requests of one token, nothing in the engine changes. Only what
[diagnosis] experiments allows; each once an incident.

caching    The next token after recent prompts, as the engine serves them (out of its prefix cache where it has them), and under a cache_salt nobody
           has used, so that they are computed anew. The same weights make the same keys and values: a difference above the floor is a stale cache.
batch      The same prompts computed anew one after the other, and all at once.

Compared are the logprobs of the tokens both answers list, |Δ| averaged over a prompt's; a control asks the first way twice. An experiment is
decisive where the mean over prompts is above `limit_nats` and above the control by 3 standard errors.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from collector.records import Rollout
from klaxon.canary import EXPERIMENT
from klaxon.preflight.client import Client

MOST_PROMPTS = 12
TOP = 5
DECISIVE_Z = 3.0
AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What an experiment saw. `difference_nats` and `control_nats`: mean |Δ logprob| over `prompts`; NaN without two answers to compare."""

    name: str
    prompts: int
    difference_nats: float
    control_nats: float
    decisive: bool
    text: str


def recent_prompts(rollouts: Sequence[Rollout]) -> list[list[int]]:
    """Different prompts of the newest rollouts, those with a prefix-cache hit first; at most MOST_PROMPTS."""
    newest = sorted(reversed(rollouts), key=lambda one: not one.cached_prompt_tokens)
    return list(dict.fromkeys(tuple(one.prompt_tokens_P.tolist()) for one in newest if one.prompt_tokens_P.size))[:MOST_PROMPTS]  # type: ignore[arg-type]


def run(name: str, url: str, prompts: Sequence[Sequence[int]], *, limit_nats: float) -> Finding:
    """One experiment of EXPERIMENTS.

    Raises:
        InputError: `url` is no address.
        Unavailable: no engine answers there.
    """
    client = Client(url, mark=EXPERIMENT)
    first, second, said, meaning = EXPERIMENTS[name]
    answers = [way(client, prompts) for way in (first, second, second)]
    changed, control = _apart(answers[0], answers[1]), _apart(answers[1], answers[2])
    both = np.isfinite(changed) & np.isfinite(control)
    n = int(both.sum())
    if n < 2:
        return Finding(name=name, prompts=n, difference_nats=math.nan, control_nats=math.nan, decisive=False,
                       text=f"experiment {name}: the engine gave comparable logprobs for {n} of {len(prompts)} prompts; nothing can be said")
    more = changed[both] - control[both]
    difference, error = float(changed[both].mean()), float(more.std(ddof=1) / math.sqrt(n))
    decisive = difference > limit_nats and float(more.mean()) > DECISIVE_Z * error
    text = (f"experiment {name}: next token of {n} recent prompts, {said}: mean |Δ logprob| {difference:.4f} ± {error:.4f} nats, {float(control[both].mean()):.4f} when asked twice"
            f" (above {limit_nats:.4f} counts): {meaning if decisive else 'no difference that counts'}")
    return Finding(name=name, prompts=n, difference_nats=difference, control_nats=float(control[both].mean()), decisive=decisive, text=text)


Way = Callable[[Client, Sequence[Sequence[int]]], list[Mapping[str, float]]]


def _served(client: Client, prompts: Sequence[Sequence[int]]) -> list[Mapping[str, float]]:
    return _ask(client, prompts, salted=False, at_once=1)


def _computed(client: Client, prompts: Sequence[Sequence[int]]) -> list[Mapping[str, float]]:
    return _ask(client, prompts, salted=True, at_once=1)


def _together(client: Client, prompts: Sequence[Sequence[int]]) -> list[Mapping[str, float]]:
    return _ask(client, prompts, salted=True, at_once=AT_ONCE)


EXPERIMENTS: dict[str, tuple[Way, Way, str, str]] = {
    "caching": (_served, _computed, "from the prefix cache against computed anew (cache_salt)", "the cache holds keys and values of other weights"),
    "batch": (_together, _computed, "all at once against one after the other", "the engine's numbers depend on what else is in its batch"),
}
"""Name → the two ways of asking, what differs between them, what a difference means."""


def _ask(client: Client, prompts: Sequence[Sequence[int]], *, salted: bool, at_once: int) -> list[Mapping[str, float]]:
    """Token → logprob of the next token's top, a prompt; empty where there is no answer."""
    body = {"model": client.model, "max_tokens": 1, "temperature": 1.0, "logprobs": TOP, "return_tokens_as_token_ids": True}
    bodies = [body | {"prompt": list(prompt)} | ({"cache_salt": f"klaxon-{uuid.uuid4().hex}"} if salted else {}) for prompt in prompts]
    return [_top(answer) for answer in client.post_all("/v1/completions", bodies, concurrency=at_once)]


def _top(answer: Mapping[str, Any] | str) -> Mapping[str, float]:
    try:
        top = answer["choices"][0]["logprobs"]["top_logprobs"][0]  # type: ignore[index]
        return {str(token): float(value) for token, value in top.items() if math.isfinite(value)}
    except (LookupError, TypeError, ValueError, AttributeError):
        return {}


def _apart(ones: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Mean |Δ logprob| of the tokens both list, a prompt; NaN without any."""
    pairs = [[abs(one[token] - other[token]) for token in one.keys() & other.keys()] for one, other in zip(ones, others, strict=True)]
    return np.array([np.mean(pair) if pair else np.nan for pair in pairs])
