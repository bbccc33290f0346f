"""vLLM's token-in token-out route /inference/v1/generate (--enable-scale-out): ids both ways, weight-version spans."""

from __future__ import annotations

from collector.sources.proxy.exchange import Exchange, Generation, ids, sampling, versions
from collector.sources.proxy.tokens import read_entry


def parse(exchange: Exchange) -> list[Generation]:
    """One generation a choice."""
    found: dict[int, Generation] = {}
    for document in exchange.documents:
        name = document.get("request_id") or document.get("id")
        for choice in document.get("choices") or []:
            index = choice.get("index") or 0
            generation = found.setdefault(index, Generation(index=index))
            generation.request_id = f"{name}-{index}" if name and index else name
            generation.tokens += [read_entry(entry) for entry in (choice.get("logprobs") or {}).get("content") or []]
            generation.token_ids = (generation.token_ids or []) + (choice.get("token_ids") or [])
            generation.finish_reason = choice.get("finish_reason") or generation.finish_reason
            generation.versions = versions(choice, len(generation.tokens)) or generation.versions
    for generation in found.values():
        generation.prompt_ids = ids(exchange.asked.get("token_ids"))
        generation.sampling = sampling(exchange.asked.get("sampling_params"))
    return [found[index] for index in sorted(found)]
