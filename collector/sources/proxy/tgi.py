"""TGI (text-generation-inference): /generate, /generate_stream and its compatibility route /.

`details: true` gives details.tokens ({"id", "text", "logprob"}), `decoder_input_details: true` the prompt's ids in
details.prefill (plain answers only); streams tell one token an event. Logprobs are those after every sampler.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collector.sources.proxy.exchange import Exchange, Generation, Token, ids, logprob, ranked, sampling


def parse(exchange: Exchange) -> list[Generation]:
    """One generation an answer; with best_of one a sequence drawn, not only the winner."""
    found = [_streamed(exchange.documents)] if exchange.streamed else _plain(exchange.documents)
    parameters = exchange.asked.get("parameters") or {}
    counted = exchange.headers.get("x-prompt-tokens", "")
    for index, generation in enumerate(found):
        generation.index = index
        generation.sampling = sampling(parameters)
        if generation.prompt_count is None and counted.isdigit():
            generation.prompt_count = int(counted)
        text = exchange.asked.get("inputs")
        generation.prompt_text = text if isinstance(text, str) and not parameters.get("truncate") else None
    return found


def _plain(documents: list[dict[str, Any]]) -> list[Generation]:
    found = []
    for document in documents:
        if "generated_text" not in document:
            continue
        details = document.get("details")
        if not isinstance(details, Mapping):
            found.append(Generation(finish_reason="unknown"))
            continue
        for sequence in [details, *(details.get("best_of_sequences") or [])]:
            tops = sequence.get("top_tokens") or [[]] * len(sequence.get("tokens") or [])
            found.append(Generation(
                tokens=[_token(token, top) for token, top in zip(sequence.get("tokens") or [], tops)],
                prompt_ids=ids([row.get("id") for row in sequence.get("prefill") or []]),
                finish_reason=sequence.get("finish_reason")))
    return found


def _streamed(documents: list[dict[str, Any]]) -> Generation:
    generation = Generation()
    for document in documents:
        if isinstance(document.get("token"), Mapping):
            generation.tokens.append(_token(document["token"], document.get("top_tokens") or []))
        details = document.get("details")
        if isinstance(details, Mapping):
            generation.finish_reason = details.get("finish_reason")
            generation.prompt_count = details.get("input_length")
    return generation


def _token(token: Mapping[str, Any], top: list[Mapping[str, Any]]) -> Token:
    return Token(id=token.get("id"), logprob=logprob(token.get("logprob")),
                 top=ranked((row.get("id"), logprob(row.get("logprob"))) for row in top))
