"""Experiments on the live engine after an alarm: marked requests of a few tokens, nothing in the engine changes. Only what
[diagnosis] experiments allows; each once an incident.

caching    The next token after recent prompts, as the engine serves them (out of its prefix cache where it has them), and under a cache_salt nobody
           has used, so that they are computed anew. The same weights make the same keys and values: a difference above the floor is a stale cache.
batch      The same prompts computed anew one after the other, and all at once.
self_score A few tokens after each prompt, sampled at T = 1 without truncation or penalties, and the same tokens sent back as a prompt, computed anew in
           one pass (prompt_logprobs). Decode and prefill of one engine agree to the floor; where they do not, kept keys and values or decode
           kernels are at fault, not the weights. prompt_logprobs has faults of its own (vllm#42019, #51594): evidence, never a verdict.

Compared are the logprobs of the tokens both answers list, |Δ| averaged over a prompt's; a control asks the second way twice. An experiment is
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
    asked = EXPERIMENTS[name]
    answers = asked.answers(client, prompts)
    changed, control = _apart(answers[0], answers[1]), _apart(answers[1], answers[2])
    both = np.isfinite(changed) & np.isfinite(control)
    n = int(both.sum())
    if n < 2:
        return Finding(name=name, prompts=n, difference_nats=math.nan, control_nats=math.nan, decisive=False,
                       text=f"experiment {name}: the engine gave comparable logprobs for {n} of {len(prompts)} prompts; nothing can be said")
    more = changed[both] - control[both]
    difference, error = float(changed[both].mean()), float(more.std(ddof=1) / math.sqrt(n))
    decisive = difference > limit_nats and float(more.mean()) > DECISIVE_Z * error
    text = (f"experiment {name}: {asked.what} of {n} recent prompts, {asked.said}: mean |Δ logprob| {difference:.4f} ± {error:.4f} nats, {float(control[both].mean()):.4f} when asked twice"
            f" (above {limit_nats:.4f} counts): {asked.meaning if decisive else 'no difference that counts'}")
    return Finding(name=name, prompts=n, difference_nats=difference, control_nats=float(control[both].mean()), decisive=decisive, text=text)


Answers = list[Mapping[str, float]]
"""Token, or place in the completion → logprob, one a prompt; empty where there is no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One experiment. `answers`: the first way, the second, and the second once more."""

    answers: Callable[[Client, Sequence[Sequence[int]]], tuple[Answers, Answers, Answers]]
    what: str
    said: str
    meaning: str
    confirms: str = ""  # the cause a decisive finding makes sure


def _served_and_computed(client: Client, prompts: Sequence[Sequence[int]]) -> tuple[Answers, Answers, Answers]:
    served = _ask(client, prompts, salted=False, at_once=1)
    return served, _ask(client, prompts, salted=True, at_once=1), _ask(client, prompts, salted=True, at_once=1)


def _together_and_alone(client: Client, prompts: Sequence[Sequence[int]]) -> tuple[Answers, Answers, Answers]:
    together = _ask(client, prompts, salted=True, at_once=AT_ONCE)
    return together, _ask(client, prompts, salted=True, at_once=1), _ask(client, prompts, salted=True, at_once=1)


def _decoded_and_forced(client: Client, prompts: Sequence[Sequence[int]]) -> tuple[Answers, Answers, Answers]:
    body = {"model": client.model, "max_tokens": DECODED, "logprobs": 0, "return_token_ids": True, "ignore_eos": True} | PLAIN
    told = client.post_all("/v1/completions", [body | {"prompt": list(prompt)} for prompt in prompts], concurrency=1)
    decoded = [_completion(answer) for answer in told]
    whole = [[*prompt, *ids] for prompt, (ids, _) in zip(prompts, decoded, strict=True)]
    forced = {"model": client.model, "max_tokens": 1, "prompt_logprobs": 0} | PLAIN
    ways = []
    for _ in range(2):
        answers = client.post_all("/v1/completions", [forced | {"prompt": ids} | _salt() for ids in whole], concurrency=1)
        ways.append([_forced(answer, ids, len(prompt)) for answer, ids, prompt in zip(answers, whole, prompts, strict=True)])
    return [places for _, places in decoded], ways[0], ways[1]


DECODED = 16
PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}

EXPERIMENTS: dict[str, Asked] = {
    "caching": Asked(answers=_served_and_computed, what="next token", said="from the prefix cache against computed anew (cache_salt)",
                     meaning="the cache holds keys and values of other weights", confirms="stale_prefix_cache"),
    "batch": Asked(answers=_together_and_alone, what="next token", said="all at once against one after the other",
                   meaning="the engine's numbers depend on what else is in its batch", confirms="batch_variance"),
    "self_score": Asked(answers=_decoded_and_forced, what=f"{DECODED} tokens", said="decoded against sent back and computed in one pass (prompt_logprobs)",
                        meaning="the engine's decode and prefill disagree: kept or quantised keys and values, or decode kernels, not the weights"),
}


def _completion(answer: Mapping[str, Any] | str) -> tuple[list[int], Mapping[str, float]]:
    """(token ids, place → logprob) of what was sampled; ([], {}) where there is no answer."""
    try:
        choice = answer["choices"][0]  # type: ignore[index]
        ids, values = [int(one) for one in choice["token_ids"]], choice["logprobs"]["token_logprobs"]
        return ids, {str(place): float(value) for place, value in enumerate(values[:len(ids)]) if math.isfinite(value)}
    except (LookupError, TypeError, ValueError, AttributeError):
        return [], {}


def _forced(answer: Mapping[str, Any] | str, ids: Sequence[int], start: int) -> Mapping[str, float]:
    """Place → logprob of ids[start:], from the prompt's logprobs."""
    try:
        told = answer["choices"][0]["prompt_logprobs"]  # type: ignore[index]
        found = {str(place - start): float(told[place][str(ids[place])]["logprob"]) for place in range(start, len(ids))}
        return {place: value for place, value in found.items() if math.isfinite(value)}
    except (LookupError, TypeError, ValueError, AttributeError):
        return {}


def _salt() -> dict[str, str]:
    return {"cache_salt": f"klaxon-{uuid.uuid4().hex}"}


def _ask(client: Client, prompts: Sequence[Sequence[int]], *, salted: bool, at_once: int) -> Answers:
    """The next token's top."""
    body = {"model": client.model, "max_tokens": 1, "temperature": 1.0, "logprobs": TOP, "return_tokens_as_token_ids": True}
    bodies = [body | {"prompt": list(prompt)} | (_salt() if salted else {}) for prompt in prompts]
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
