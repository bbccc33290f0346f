"""The registry of dialects, and what becomes of an exchange: rollouts in the public schema, or a counted reason why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from collector.sources.proxy import llamacpp, openai, sglang, tgi, vllm
from collector.sources.proxy.exchange import Exchange, Generation, Token

TOP_MAX = 32  # nobody downstream reads more ranks than these


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one family of routes is read. `keys`: the request has one of these; () = any request."""

    parse: Callable[[Exchange], list[Generation]]
    routes: tuple[str, ...]
    keys: tuple[str, ...] = ()


DIALECTS: dict[str, Dialect] = {
    "openai": Dialect(parse=openai.parse, routes=("/v1/completions", "/v1/chat/completions", "/chat/completions")),
    "vllm": Dialect(parse=vllm.parse, routes=("/inference/v1/generate",)),
    "sglang": Dialect(parse=sglang.parse, routes=("/generate",), keys=("text", "input_ids")),
    "tgi": Dialect(parse=tgi.parse, routes=("/generate", "/generate_stream", "/"), keys=("inputs",)),
    "llamacpp": Dialect(parse=llamacpp.parse, routes=("/completion", "/completions"), keys=("prompt",)),
}
"""Name → dialect; "openai" is what every engine speaks, the others are engines' own routes."""

UNUSABLE: dict[str, str] = {
    "no_logprobs": "the client asked for no logprobs: there is nothing to compare",
    "no_token_ids": "the engine told token texts but no ids: ask for ids (docs/proxy.md says how), or name --tokenizer",
    "no_prompt_ids": "the prompt's ids are unknown: send the prompt as ids, ask the engine for them, or name --tokenizer",
    "length_mismatch": "there are not as many logprobs as token ids in the answer",
    "echo": "with echo the logprobs of prompt and completion are mixed",
    "not_sampled": "best_of and beam search pick a winner: no plain sample of the policy",
    "too_large": "the body is larger than the proxy copies",
    "encoding": "the body is compressed in a way the proxy cannot read (it reads gzip and deflate)",
    "unreadable": "the body is not what this route is documented to answer",
}
"""Why a generation gives no rollout, by the name it is counted under (`unusable_<name>`)."""


class Ids(Protocol):
    """A way back from exact text to ids (`retokenise.TokenizerIds`)."""

    def of_token(self, raw: bytes) -> int | None:
        """The one id that spells these bytes; None when there is none or more than one."""

    def of_prompt(self, text: str, count: int) -> list[int] | None:
        """The one encoding of `text` that has `count` tokens; None when there is none or more than one."""


@dataclass(slots=True, kw_only=True)
class Findings:
    """What came out of one exchange."""

    rollouts: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # "rollouts", "aborted", "unusable_<reason>"


def watched(path: str) -> bool:
    """Does some dialect read answers of this route?"""
    return any(path in dialect.routes for dialect in DIALECTS.values())


def choose(path: str, asked: Mapping[str, Any], *, only: str = "auto") -> str | None:
    """The dialect of a request; None when nobody reads it.

    Args:
        only: an engine's dialect to hold to on engines' own routes ("auto" = by the request); OpenAI's are always read.
    """
    for name, dialect in DIALECTS.items():
        allowed = only in ("auto", name) or name == "openai"
        if allowed and path in dialect.routes and (not dialect.keys or any(key in asked for key in dialect.keys)):
            return name
    return None


def read(name: str, exchange: Exchange, *, fallback_id: str, tokenizer: Ids | None = None) -> Findings:
    """Every generation of an exchange as a rollout object or as a count.

    Args:
        fallback_id: the request id where the engine gives none.
    """
    findings = Findings()
    generations = DIALECTS[name].parse(exchange)
    if not generations:
        findings.counts["unusable_unreadable" if exchange.whole else "aborted"] += 1
    for generation in generations:
        rollout = rollout_json(generation, fallback_id=fallback_id, tokenizer=tokenizer)
        if isinstance(rollout, str):
            findings.counts[rollout if rollout == "aborted" else f"unusable_{rollout}"] += 1
        else:
            findings.counts["rollouts"] += 1
            findings.rollouts.append(rollout)
    return findings


def rollout_json(generation: Generation, *, fallback_id: str, tokenizer: Ids | None = None) -> dict[str, Any] | str:
    """One rollout object (schema 1), or the reason why there is none: "aborted" or a name in UNUSABLE."""
    if generation.finish_reason in (None, "abort"):
        return "aborted"
    if generation.refusal:
        return generation.refusal
    if not any(token.logprob is not None for token in generation.tokens):
        return "no_logprobs"
    if generation.token_ids and len(generation.token_ids) != len(generation.tokens):
        return "length_mismatch"
    token_ids = generation.token_ids or [_id(token, tokenizer) for token in generation.tokens]
    if any(token_id is None for token_id in token_ids):
        return "no_token_ids"
    prompt = generation.prompt_ids or _prompt(generation, tokenizer)
    if not prompt:
        return "no_prompt_ids"
    mapped = not generation.prompt_ids or (not generation.token_ids and any(t.id is None for t in generation.tokens))
    tops = [_top(token, tokenizer) for token in generation.tokens]
    name = generation.request_id or (f"{fallback_id}-{generation.index}" if generation.index else fallback_id)
    known = {"weight_versions": generation.versions, "cached_prompt_tokens": generation.cached,
             "dp_rank": generation.dp_rank, "logprobs_mode": generation.logprobs_mode,
             "top_logprobs": tops if any(tops) else None, "labels": {"ids": "retokenised"} if mapped else None}
    return {"schema": 1, "request_id": name, "prompt_token_ids": prompt, "token_ids": token_ids,
            "logprobs": [token.logprob for token in generation.tokens], "engine_sampling": generation.sampling,
            "finish_reason": generation.finish_reason,
            **{key: value for key, value in known.items() if value not in (None, [])}}


def _id(token: Token, tokenizer: Ids | None) -> int | None:
    if token.id is not None or token.raw is None or tokenizer is None:
        return token.id
    return tokenizer.of_token(token.raw)


def _prompt(generation: Generation, tokenizer: Ids | None) -> list[int] | None:
    if tokenizer is None or generation.prompt_text is None or generation.prompt_count is None:
        return None
    return tokenizer.of_prompt(generation.prompt_text, generation.prompt_count)


def _top(token: Token, tokenizer: Ids | None) -> list[list[Any]] | None:
    """[[id, logprob], …]; None unless every one of them has an id."""
    row = []
    for name, value in token.top[:TOP_MAX]:
        token_id = tokenizer.of_token(name) if isinstance(name, bytes) and tokenizer is not None else name
        if not isinstance(token_id, int):
            return None
        row.append([token_id, value])
    return row or None
