"""What vLLM's objects say, as the public rollout JSON (schema 1). Only public names of vLLM's records are read."""

from __future__ import annotations

import math
from typing import Any

TOP_MAX = 32  # `logprobs=-1` reports the whole vocabulary; nobody downstream reads more than the first ranks
WHOLE_VOCABULARY = 1 << 17
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def sampling_json(params: Any) -> dict[str, float]:
    """The engine-resolved sampling parameters."""
    found = {name: getattr(params, name, None) for name in SAMPLING}
    return {name: value for name, value in found.items() if isinstance(value, (int, float)) and math.isfinite(value)}


def logprobs_json(token_ids: list[int], logprobs: Any) -> tuple[list[float | None], list[list[list[Any]] | None]]:
    """Sampled and top logprobs of each token, as reported: a position without an entry for its token is null.

    `logprobs` is vLLM's list of {token id: Logprob(logprob, rank, …)}, one a position; the top ones are sorted by rank,
    as the engine gave them.
    """
    sampled: list[float | None] = []
    top: list[list[list[Any]] | None] = []
    positions = list(logprobs) if logprobs is not None else []
    for index, token in enumerate(token_ids):
        entry = positions[index] if index < len(positions) else None
        if not entry:
            sampled.append(None)
            top.append(None)
            continue
        chosen = entry.get(token)
        sampled.append(_number(chosen.logprob) if chosen is not None else None)
        ranked = sorted((item for item in entry.items() if len(entry) <= TOP_MAX or _rank(item) <= TOP_MAX), key=_rank)
        top.append([[int(id_), _number(item.logprob)] for id_, item in ranked])
    return sampled, top


def _rank(item: tuple[int, Any]) -> int:
    return item[1].rank if item[1].rank is not None else 1 << 30


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
        "top_logprobs": top, "engine_sampling": sampling_json(params), "finish_reason": finish_reason, "labels": labels,
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


def _number(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
