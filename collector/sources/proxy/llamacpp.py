"""llama.cpp's own /completion: `n_probs: 1` or more gives completion_probabilities with "id" and "logprob".

Those logprobs are a plain softmax of the logits (raw); with `post_sampling_probs` they are probabilities ("prob") after
every sampler. Prompt ids are never told: send the prompt as ids, or name the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collector.sources.proxy.exchange import Exchange, Generation, ids, of_prompt, sampling
from collector.sources.proxy.tokens import after_samplers, read_entry


def parse(exchange: Exchange) -> list[Generation]:
    """One generation a prompt."""
    found: dict[int, Generation] = {}
    for document in exchange.documents:
        if "content" not in document and "completion_probabilities" not in document:
            continue
        index = document.get("index") or 0
        generation = found.setdefault(index, Generation(index=index, sampling=_sampling(exchange.asked)))
        entries = document.get("completion_probabilities") or []
        generation.tokens += [read_entry(entry) for entry in entries]
        if entries:
            generation.logprobs_mode = "processed_logprobs" if any(map(after_samplers, entries)) else "raw_logprobs"
        if document.get("stop") is True:
            _finish(generation, document)
    for index, generation in found.items():
        prompt = of_prompt(exchange.asked.get("prompt"), index, 1)
        sent = ids(prompt)
        if sent and generation.prompt_count in (None, len(sent)):
            generation.prompt_ids = sent
        generation.prompt_text = prompt if isinstance(prompt, str) else None
    return [found[index] for index in sorted(found)]


def _finish(generation: Generation, document: Mapping[str, Any]) -> None:
    """The last document of a generation: why it stopped, what the sampler resolved, what the cache saved."""
    generation.finish_reason = document.get("stop_type") or "unknown"
    count = document.get("tokens_evaluated")
    generation.prompt_count = count if type(count) is int else None
    generation.sampling |= _sampling(document.get("generation_settings"))
    computed = (document.get("timings") or {}).get("prompt_n")
    if type(count) is int and type(computed) is int and 0 <= computed <= count and not document.get("truncated"):
        generation.cached = count - computed


def _sampling(settings: Any) -> dict[str, float]:
    return sampling(settings, repetition_penalty="repeat_penalty")
