"""What vLLM's objects say, as the public rollout JSON (schema 1). Only public names of vLLM's records are read."""

from __future__ import annotations

import math
from itertools import chain, repeat
from typing import Any

_INFINITY = math.inf
TOP_MAX = 32  # `logprobs=-1` reports the whole vocabulary; nobody downstream reads more than the first ranks
WHOLE_VOCABULARY = 1 << 17
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")

MASKS = ("min_tokens", "logit_bias", "allowed_token_ids", "bad_words", "structured_outputs", "guided_decoding", "thinking_token_budget")
"""Parameters that change the distribution beyond SAMPLING; a trainer that recomputes logprobs does not know them."""


def sampling_json(params: Any) -> dict[str, float]:
    """The engine-resolved sampling parameters."""
    found = {name: getattr(params, name, None) for name in SAMPLING}
    return {name: value for name, value in found.items() if isinstance(value, (int, float)) and math.isfinite(value)}


def masks_label(params: Any) -> dict[str, str]:
    """{"masks": "min_tokens"} when the request bends the distribution in a way the trainer cannot see; else {}."""
    used = [name for name in MASKS if getattr(params, name, None)]
    return {"masks": ",".join(used)} if used else {}


def logprobs_json(token_ids: list[int], logprobs: Any) -> tuple[list[float | None], list[list[list[Any]] | None]]:
    """Sampled and top logprobs of each token, as reported: a position without an entry for its token is null.

    `logprobs` is vLLM's list of {token id: Logprob(logprob, rank, …)}, one a position; the top ones are sorted by rank,
    as the engine gave them.
    """
    sampled: list[float | None] = []
    top: list[list[list[Any]] | None] = []
    for token, entry in zip(token_ids, chain(logprobs or (), repeat(None))):
        chosen = entry.get(token) if entry else None
        sampled.append(float(chosen.logprob) if chosen is not None else None)
        top.append(_ranked(entry) if entry else None)
    if not all(map(_finite, sampled)):
        sampled = [value if _finite(value) else None for value in sampled]
    return sampled, top


def _ranked(entry: dict[int, Any]) -> list[list[Any]]:
    """[[token id, logprob], …] by rank. vLLM puts the sampled token first, the others by rank."""
    if len(entry) == 1:
        (token, only), = entry.items()
        return [[token, float(only.logprob) if _finite(only.logprob) else None]]
    items = list(entry.items()) if len(entry) <= TOP_MAX else [item for item in entry.items() if _rank(item) <= TOP_MAX]
    items.sort(key=_rank)
    return [[token, float(found.logprob) if _finite(found.logprob) else None] for token, found in items]


def _finite(value: float | None) -> bool:
    return value is not None and -_INFINITY < value < _INFINITY


def _rank(item: tuple[int, Any]) -> int:
    rank = item[1].rank
    return rank if rank is not None else 1 << 30


def spans_json(starts: list[tuple[str, int]], n_tokens: int) -> list[list[Any]]:
    """[[start, end, version], …] out of vLLM's (version, first token) pairs; "default" means unknown and is left out."""
    ends = [start for _, start in starts[1:]] + [n_tokens]  # one too many when vLLM reported no version at all
    return [[start, end, str(version)] for (version, start), end in zip(starts, ends)
            if str(version) != "default" and end > start]


def message(*, request_id: str, prompt: list[int], tokens: list[int], logprobs: Any, params: Any, finish_reason: str | None,
            cached: int | None, starts: list[tuple[str, int]], engine: str, config: dict[str, Any],
            labels: dict[str, str], finished_at: float, dp_rank: int | None) -> dict[str, Any]:
    """One `rollout` message for the daemon."""
    sampled, top = logprobs_json(tokens, logprobs)
    out: dict[str, Any] = {
        "kind": "rollout", "schema": 1, "source": "plugin", "engine": engine, "request_id": request_id,
        "finished_at": finished_at, "prompt_token_ids": prompt, "token_ids": tokens, "logprobs": sampled,
        "top_logprobs": top, "engine_sampling": sampling_json(params), "finish_reason": finish_reason,
        "labels": labels | masks_label(params),
        "aborted": finish_reason == "abort",
    }
    if spans := spans_json(starts, len(tokens)):
        out["weight_versions"] = spans
    if dp_rank is not None:
        out["dp_rank"] = dp_rank
    if cached is not None:
        out["cached_prompt_tokens"] = cached
    if (mode := config.get("logprobs_mode")) in ("raw_logprobs", "processed_logprobs"):
        out["logprobs_mode"] = mode
    if config.get("dtype"):
        out["engine_dtype"] = config["dtype"]
    return out
