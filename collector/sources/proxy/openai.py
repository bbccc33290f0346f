"""/v1/completions and /v1/chat/completions, as vLLM, SGLang, TGI, llama.cpp, TensorRT-LLM and MLC LLM answer them.

Logprobs are OpenAI's; token ids are each engine's own extension:

    vLLM           return_token_ids: choice.token_ids, prompt_token_ids (in the choice, or in the document for chat);
                   return_tokens_as_token_ids: tokens named "token_id:7"
    SGLang         completions: as vLLM; chat: choice.response_token_ids, sglext.input_ids and output_ids; weight versions
                   in `metadata`
    llama.cpp      "id" in every entry of logprobs.content; prompt ids never
    TensorRT-LLM   completions: choice.token_ids with detokenize = false, prompt_token_ids = [[…], …]
    TGI, MLC LLM   none

A prompt that the client itself sent as ids is known too, as long as the engine counted as many prompt tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collector.sources.proxy.exchange import (
    Exchange, Generation, Token, ids, logprob, many, number, of_prompt, ranked, sampling, versions,
)
from collector.sources.proxy.tokens import after_samplers, from_text, read_entry


def parse(exchange: Exchange) -> list[Generation]:
    """One generation a choice."""
    found: dict[int, Generation] = {}
    for document in exchange.documents:
        for choice in document.get("choices") or []:
            index = choice.get("index") or 0
            _hear(found.setdefault(index, Generation(index=index)), choice)
    for document in exchange.documents:
        _hear_document(found, document, many(exchange.asked))
    usage = next((doc["usage"] for doc in reversed(exchange.documents) if isinstance(doc.get("usage"), Mapping)), {})
    for generation in found.values():
        generation.refusal = _refusal(exchange.asked)
        generation.sampling = sampling(exchange.asked, repetition_penalty=_penalty(exchange.asked))
    _ask(found, exchange.asked, usage)
    return [found[index] for index in sorted(found)]


def _hear(generation: Generation, choice: Mapping[str, Any]) -> None:
    """One choice, or one piece of a streamed choice."""
    logprobs = choice.get("logprobs") or {}
    if isinstance(logprobs.get("content"), list):
        entries = logprobs["content"]
        generation.tokens += [read_entry(entry) for entry in entries]
        if any("id" in entry for entry in entries):  # llama.cpp's layout, and its two meanings
            generation.logprobs_mode = "processed_logprobs" if any(map(after_samplers, entries)) else "raw_logprobs"
    elif "token_logprobs" in logprobs:
        generation.tokens += _columns(logprobs)
    for field in ("token_ids", "response_token_ids"):
        if found := ids(choice.get(field)):
            generation.token_ids = (generation.token_ids or []) + found
    generation.prompt_ids = ids(choice.get("prompt_token_ids")) or generation.prompt_ids
    generation.finish_reason = choice.get("finish_reason") or generation.finish_reason


def _columns(logprobs: Mapping[str, Any]) -> list[Token]:
    """The layout of /v1/completions: one list a field."""
    values = logprobs.get("token_logprobs") or []
    texts = logprobs.get("tokens") or [None] * len(values)
    tops = logprobs.get("top_logprobs") or [None] * len(values)
    tokens = []
    for value, text, top in zip(values, texts, tops):
        token_id, raw = from_text(text)
        row = ((_either(name), logprob(each)) for name, each in (top or {}).items())
        tokens.append(Token(id=token_id, raw=raw, logprob=logprob(value), top=ranked(row)))
    return tokens


def _hear_document(found: dict[int, Generation], document: Mapping[str, Any], n: int) -> None:
    """What engines say once for all choices."""
    extra = document.get("sglext") or {}
    prompts = document.get("prompt_token_ids") or extra.get("input_ids")
    outputs = extra.get("output_ids") or []
    name = document.get("id")
    for index, generation in found.items():
        generation.prompt_ids = generation.prompt_ids or ids(of_prompt(prompts, index, n))
        if index < len(outputs) and not generation.token_ids:
            generation.token_ids = ids(outputs[index])
        if name and generation.request_id is None:
            generation.request_id = str(name) if len(found) == 1 else f"{name}-{index}"
        if isinstance(document.get("metadata"), Mapping) and len(found) == 1:  # SGLang tells the first choice's only
            generation.versions = versions(document["metadata"], len(generation.tokens)) or generation.versions


def _ask(found: dict[int, Generation], asked: Mapping[str, Any], usage: Mapping[str, Any]) -> None:
    """Prompts as the client sent them, and how many tokens the engine counted in them."""
    sent = next((asked[field] for field in ("prompt_token_ids", "input_ids", "prompt") if asked.get(field)), None)
    several = isinstance(sent, list) and bool(sent) and isinstance(sent[0], (list, str))
    counted = usage.get("prompt_tokens")
    lengths = [len(one) for one in sent if isinstance(one, list)] if several else [len(sent)] if ids(sent) else []
    as_many = type(counted) is not int or counted == sum(lengths)
    details = usage.get("prompt_tokens_details") or {}
    for index, generation in found.items():
        own = of_prompt(sent, index, many(asked))
        if generation.prompt_ids is None and as_many:
            generation.prompt_ids = ids(own)
        if not several:
            generation.prompt_count = counted if type(counted) is int else None
        generation.prompt_text = own if isinstance(own, str) else None
        if len(found) == 1 and number(details.get("cached_tokens")) is not None:
            generation.cached = int(details["cached_tokens"])


def _refusal(asked: Mapping[str, Any]) -> str | None:
    """Answers that are no plain samples of the policy."""
    if asked.get("echo") and "prompt" in asked:
        return "echo"
    best_of = asked.get("best_of")
    if asked.get("use_beam_search") or (type(best_of) is int and best_of > many(asked)):
        return "not_sampled"
    return None


def _penalty(asked: Mapping[str, Any]) -> str:
    return "repeat_penalty" if "repeat_penalty" in asked else "repetition_penalty"


def _either(name: str) -> int | bytes | None:
    token_id, raw = from_text(name)
    return token_id if token_id is not None else raw
