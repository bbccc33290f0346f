"""Teacher forcing over HTTP: which logprobs does an engine give to tokens it did not sample?

vLLM answers `prompt_logprobs` in /v1/completions, V0 and V1 alike: raw ones, whatever --logprobs-mode says. Where an engine
leaves them out, OpenAI's own `echo` with `logprobs` is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from collector.records import Rollout
from collector.sources.proxy.exchange import logprob
from klaxon.preflight.client import Client


def force(client: Client, rollouts: Sequence[Rollout], *, concurrency: int, heard: Callable[[], None] = lambda: None) -> list[np.ndarray | str]:
    """float64 [T] nats of each rollout's completion tokens under this engine (NaN = not told), or why there is none."""
    asked = [{"model": client.model, "prompt": [*one.prompt_tokens_P.tolist(), *one.completion_tokens_T.tolist()], "max_tokens": 1, "temperature": 0.0} for one in rollouts]
    answers = client.post_all("/v1/completions", [body | {"prompt_logprobs": 1} for body in asked], concurrency=concurrency, heard=heard)
    found = [read_prompt_logprobs(answer, one) for answer, one in zip(answers, rollouts, strict=True)]
    missing = [i for i, row in enumerate(found) if isinstance(row, str)]
    if missing:
        bodies = [asked[i] | {"echo": True, "logprobs": 1, "return_tokens_as_token_ids": True} for i in missing]
        echoed = client.post_all("/v1/completions", bodies, concurrency=concurrency)
        for i, answer in zip(missing, echoed, strict=True):
            row = read_echo(answer, rollouts[i])
            found[i] = row if isinstance(row, np.ndarray) else found[i]
    return found


def read_prompt_logprobs(answer: Mapping[str, Any] | str, rollout: Rollout) -> np.ndarray | str:
    """vLLM's layout: one {token id: {"logprob"}} a prompt token, None for the first."""
    if isinstance(answer, str):
        return answer
    rows = _choice(answer).get("prompt_logprobs")
    start, ids = rollout.prompt_tokens_P.size, rollout.completion_tokens_T.tolist()
    if not isinstance(rows, list) or len(rows) != start + len(ids):
        return "the engine gives no prompt_logprobs"
    values = [row.get(str(token)) if isinstance(row, Mapping) else None for row, token in zip(rows[start:], ids, strict=True)]
    return _array([entry.get("logprob") if isinstance(entry, Mapping) else None for entry in values])


def read_echo(answer: Mapping[str, Any] | str, rollout: Rollout) -> np.ndarray | str:
    """OpenAI's layout: token_logprobs of prompt and completion in one list."""
    if isinstance(answer, str):
        return answer
    table = _choice(answer).get("logprobs")
    values = table.get("token_logprobs") if isinstance(table, Mapping) else None
    start, n = rollout.prompt_tokens_P.size, rollout.n_tokens
    if not isinstance(values, list) or len(values) < start + n:
        return "the engine does not echo logprobs"
    return _array(values[start:start + n])


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}


def _array(values: Sequence[Any]) -> np.ndarray | str:
    row = np.array([np.nan if (value := logprob(one)) is None else value for one in values], dtype=np.float64)
    return row if np.isfinite(row).any() else "none of the forced logprobs is finite"
