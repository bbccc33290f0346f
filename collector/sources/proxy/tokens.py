"""One token as engines write it inside `logprobs.content` (OpenAI chat) or `completion_probabilities` (llama.cpp)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from collector.sources.proxy.exchange import Token, logprob, number, ranked

_REPLACEMENT = "\ufffd".encode()  # an engine could not show these bytes: what they were is lost
_AS_ID = "token_id:"  # vLLM's return_tokens_as_token_ids


def read_entry(entry: Mapping[str, Any]) -> Token:
    """{"token", "logprob", "bytes"?, "id"?, "top_logprobs"?}; llama.cpp after its samplers: "prob" and "top_probs"."""
    token_id, raw = named(entry)
    rows = entry.get("top_logprobs") or entry.get("top_probs") or []
    top = ranked((_one(*named(row)), _value(row)) for row in rows if isinstance(row, Mapping))
    return Token(id=token_id, raw=raw, logprob=_value(entry), top=top)


def after_samplers(entry: Mapping[str, Any]) -> bool:
    """Does this entry tell probabilities of the distribution that was really sampled (llama.cpp, post_sampling_probs)?"""
    return "prob" in entry and "logprob" not in entry


def named(entry: Mapping[str, Any]) -> tuple[int | None, bytes | None]:
    """(id, exact bytes) of a token, as far as its entry tells."""
    for field in ("id", "token_id"):
        if type(entry.get(field)) is int:
            return entry[field], None
    token_id, raw = from_text(entry.get("token"))
    spelled = entry.get("bytes")
    if token_id is None and isinstance(spelled, list) and spelled:
        try:
            exact = bytes(spelled)
        except (TypeError, ValueError):
            exact = b""
        raw = exact if exact and _REPLACEMENT not in exact else raw
    return token_id, raw


def from_text(text: Any) -> tuple[int | None, bytes | None]:
    """(id, exact bytes) of a token named by a string; "token_id:7" is an id."""
    if not isinstance(text, str) or not text:
        return None, None
    if text.startswith(_AS_ID) and text[len(_AS_ID):].isdigit():
        return int(text[len(_AS_ID):]), None
    raw = text.encode("utf-8", errors="surrogatepass")
    return None, raw if _REPLACEMENT not in raw else None


def _one(token_id: int | None, raw: bytes | None) -> int | bytes | None:
    return token_id if token_id is not None else raw


def _value(entry: Mapping[str, Any]) -> float | None:
    if after_samplers(entry):
        probability = number(entry["prob"])
        return math.log(probability) if probability is not None and probability > 0 else None
    return logprob(entry.get("logprob"))
