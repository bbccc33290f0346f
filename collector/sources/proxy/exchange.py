"""What a dialect reads (an Exchange) and what it makes of it (Generations of Tokens).

Pure data. None means that the engine did not say; nothing is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MINUS_INFINITY = -9999.0
"""JSON has no −inf. vLLM writes −9999, llama.cpp the lowest float: at or below this a logprob is not finite."""

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and its answer, both read."""

    asked: dict[str, Any]  # the request's JSON body
    documents: list[dict[str, Any]]  # the answer's JSON objects: one a generation or, streamed, one an event
    streamed: bool = False
    whole: bool = True  # False = the answer broke off: the client or the engine went away
    headers: Mapping[str, str] = field(default_factory=dict)  # of the answer, names in lower case


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One sampled token as reported."""

    id: int | None = None
    raw: bytes | None = None  # its exact bytes, where the engine told them: the only way back to an id it left out
    logprob: float | None = None  # nats; None = absent or not finite
    top: list[tuple[int | bytes | None, float | None]] = field(default_factory=list)  # most likely tokens, by id or bytes


@dataclass(slots=True, kw_only=True)
class Generation:
    """One completion as the engine's answer tells it."""

    index: int = 0
    request_id: str | None = None
    prompt_ids: list[int] | None = None
    prompt_text: str | None = None  # only where this text alone is the whole prompt
    prompt_count: int | None = None  # prompt tokens as the engine counted them
    token_ids: list[int] | None = None  # ids reported apart from the logprobs
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str | None = None  # None = it never finished
    versions: list[list[Any]] = field(default_factory=list)  # [start, end, version]
    cached: int | None = None
    dp_rank: int | None = None
    logprobs_mode: str | None = None  # only where the answer's own layout says which
    sampling: dict[str, float] = field(default_factory=dict)  # what the engine was asked or resolved: evidence
    refusal: str | None = None  # why it cannot be used, where the dialect itself knows


def number(value: Any) -> float | None:
    """A finite number, else None (true and false are no numbers)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def logprob(value: Any) -> float | None:
    """A reported logprob; None for null and for every spelling of −inf."""
    found = number(value)
    return found if found is not None and found > MINUS_INFINITY else None


def ids(values: Any) -> list[int] | None:
    """A non-empty list of token ids, else None."""
    if isinstance(values, list) and values and all(type(value) is int for value in values):
        return values
    return None


def of_prompt(values: Any, index: int, choices_a_prompt: int) -> Any:
    """One prompt out of a request that may hold many: choice `index` belongs to prompt index // n."""
    if isinstance(values, list) and values and isinstance(values[0], (list, str)):
        at = index // max(1, choices_a_prompt)
        return values[at] if at < len(values) else None
    return values


def many(asked: Mapping[str, Any]) -> int:
    """`n`: how many choices each prompt was asked for."""
    n = asked.get("n")
    return n if type(n) is int and n > 0 else 1


def sampling(*sources: Any, **names: str) -> dict[str, float]:
    """Sampling parameters by Klaxon's names; later sources win.

    Args:
        names: how this engine spells one of them, e.g. repetition_penalty="repeat_penalty".
    """
    found = {}
    for source in sources:
        for name in SAMPLING:
            value = number(source.get(names.get(name, name))) if isinstance(source, Mapping) else None
            if value is not None:
                found[name] = value
    return found


def versions(meta: Mapping[str, Any], n_tokens: int) -> list[list[Any]]:
    """Weight-version spans as SGLang and vLLM write them; "default" means that nobody ever set one."""
    rows = meta.get("weight_versions")
    if isinstance(rows, list):
        spans = [[row.get("start"), row.get("end"), row.get("version")] for row in rows if isinstance(row, Mapping)]
    else:
        spans = [[0, n_tokens, meta.get("weight_version")]]
    return [[start, end, str(version)] for start, end, version in spans
            if version not in (None, "default") and type(start) is int and type(end) is int and start < end]


def ranked(pairs: Iterable[tuple[int | bytes | None, float | None]]) -> list[tuple[int | bytes | None, float | None]]:
    """Most likely first; engines often put the sampled token first instead."""
    return sorted(pairs, key=lambda pair: -math.inf if pair[1] is None else pair[1], reverse=True)
