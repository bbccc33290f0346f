"""SGLang's own /generate: `return_logprob` gives meta_info.output_token_logprobs, rows of [logprob, id, text].

Streams are cumulative by default (every event repeats the rows so far) and incremental with
--incremental-streaming-output; meta_info.completion_tokens always counts from the start and tells the two apart.
Logprobs are after penalties and temperature but before top-p and top-k (raw with SGLANG_RETURN_ORIGINAL_LOGPROB): the
answer does not say which, so neither does the rollout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collector.sources.proxy.exchange import (
    Exchange, Generation, Token, ids, logprob, many, of_prompt, ranked, sampling, versions,
)


def parse(exchange: Exchange) -> list[Generation]:
    """One generation a prompt and sample."""
    found: dict[int, Generation] = {}
    counted: dict[int, int] = {}
    for position, document in enumerate(exchange.documents):
        meta = document.get("meta_info")
        if not isinstance(meta, Mapping):
            continue
        index = document.get("index", 0 if exchange.streamed else position)
        generation = found.setdefault(index, Generation(index=index))
        counted[index] = meta.get("completion_tokens", 0)
        _hear(generation, document, meta, streamed=exchange.streamed)
        _ask(generation, exchange.asked, meta)
    for index, generation in found.items():
        if generation.tokens and len(generation.tokens) != counted[index]:
            generation.refusal = "length_mismatch"
    return [found[index] for index in sorted(found)]


def _hear(generation: Generation, document: Mapping[str, Any], meta: Mapping[str, Any], *, streamed: bool) -> None:
    rows = meta.get("output_token_logprobs") or []
    tops = meta.get("output_top_logprobs") or [None] * len(rows)
    tokens = [Token(id=row[1], logprob=logprob(row[0]), top=ranked((each[1], logprob(each[0])) for each in top or []))
              for row, top in zip(rows, tops)]
    cumulative = not streamed or len(rows) == meta.get("completion_tokens")
    generation.tokens = tokens if cumulative else generation.tokens + tokens
    reason = meta.get("finish_reason")
    generation.finish_reason = reason.get("type") if isinstance(reason, Mapping) else reason
    generation.request_id = str(meta["id"]) if meta.get("id") else None
    generation.versions = versions(meta, len(generation.tokens))
    generation.cached = meta.get("cached_tokens") if type(meta.get("cached_tokens")) is int else None
    generation.dp_rank = meta.get("dp_rank") if type(meta.get("dp_rank")) is int else None
    generation.prompt_ids = ids(document.get("prompt_token_ids")) or generation.prompt_ids


def _ask(generation: Generation, asked: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """The prompt: told in the answer, in its logprobs (logprob_start_len = 0), or sent as ids by the client."""
    count = meta.get("prompt_tokens")
    generation.prompt_count = count if type(count) is int else None
    params = asked.get("sampling_params") or {}
    n = many(params if isinstance(params, Mapping) else params[0])
    rows = meta.get("input_token_logprobs") or []
    scored = [row[1] for row in rows] if len(rows) == count else None
    sent = ids(of_prompt(asked.get("input_ids"), generation.index, n))
    if generation.prompt_ids is None:
        generation.prompt_ids = ids(scored) or (sent if sent and len(sent) == (count or len(sent)) else None)
    text = of_prompt(asked.get("text"), generation.index, n)
    generation.prompt_text = text if isinstance(text, str) else None
    own = params if isinstance(params, Mapping) else params[min(generation.index // n, len(params) - 1)]
    generation.sampling = sampling(own)
