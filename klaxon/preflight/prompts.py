"""What the probes ask: harmless text, in groups that each bring out another kind of fault.

The prompts of a preflight are the same every time, but for the `fresh` ones: a second preflight, after a weight update,
then meets whatever the engine's prefix cache kept of the first one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

Group = Literal["short", "long", "fixed", "fresh", "reference"]

SHORT = (
    "The capital of France is", "Water boils at", "Q: What is 17 + 25?\nA:", "Once upon a time there was a small",
    "The three primary colours are", "def fibonacci(n):\n", "Dear Sir or Madam,\n\nI am writing to", "1, 2, 4, 8, 16,",
)
"""Used unless [canary] prompts are configured."""

SENTENCES = (
    "The lighthouse keeper writes down the weather every morning.", "A train leaves the station at nine and arrives at noon.",
    "Bees carry pollen from one flower to the next.", "The library opens at ten and closes at six.",
    "Rain fell on the hills while the valley stayed dry.", "A carpenter measures twice and cuts once.",
    "The recipe asks for two eggs, flour and a little salt.", "Stars look still, but each of them moves.",
    "The old bridge was built of stone from the quarry.", "Children played chess in the shade of the oak.",
    "A map of the coast hangs above the desk.", "The baker sells warm bread before sunrise.",
)
QUESTIONS = ("Summary:", "The next sentence is:", "In other words,", "Therefore")
FIXED = FRESH = 4
MAX_SHARED_BLOCKS = 2
LONG_TOKENS = 512

Ids = Callable[[str, bool], list[int]]
"""(text, is it the beginning of a prompt?) → ids; a beginning gets the tokenizer's special tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One request to be sampled."""

    name: str
    group: Group
    prompt: tuple[int, ...]
    max_tokens: int
    greedy: bool = False
    seed: int | None = None  # only for short prompts: vLLM on CPU dies of a seed where prefill is chunked


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Every probe of a preflight, by group."""

    short: tuple[Probe, ...]
    long: tuple[Probe, ...]
    fixed: tuple[Probe, ...]  # long enough for the prefix cache; the same from preflight to preflight
    fresh: tuple[Probe, ...]  # as long; never sent before
    reference: Probe  # greedy; sent alone and beside others


def prompts(ids: Ids, *, own: Sequence[str | list[int]] = (), max_tokens: int, max_model_len: int | None, block_size: int | None) -> Prompts:
    """The probes, all as token ids.

    Args:
        ids: see Ids.
        own: prompts of the run ([canary] prompts); they take the place of the short ones.
        max_tokens: tokens sampled per probe.
        max_model_len: tokens the engine takes at most; None = not told.
        block_size: tokens of a block of its prefix cache; None = not told, 128 is assumed.
    """
    room = max(16, (max_model_len or 2048) - max_tokens - 1)
    texts = [list(one) if isinstance(one, list) else ids(one, True) for one in (own or SHORT)]
    short = tuple(Probe(name=f"short-{i}", group="short", prompt=tuple(one[:room]), max_tokens=max_tokens) for i, one in enumerate(texts))
    shared = min(room, MAX_SHARED_BLOCKS * (block_size or 128) + 8)
    nonce = secrets.token_hex(4)
    fixed = [_filled(ids, i, shared, "") for i in range(FIXED)]
    fresh = [_filled(ids, i + FIXED, shared, f"Note {nonce}-{i}. ") for i in range(FRESH)]
    long = [_filled(ids, 3 * i, min(room, LONG_TOKENS), "Read this. ") for i in range(2)]
    return Prompts(
        short=short, long=_probes("long", long, max_tokens), fixed=_probes("fixed", fixed, max_tokens), fresh=_probes("fresh", fresh, max_tokens),
        reference=Probe(name="reference", group="reference", prompt=tuple(ids(SHORT[3], True)[:room]), max_tokens=max_tokens, greedy=True))


def _probes(group: Group, rows: Sequence[list[int]], max_tokens: int) -> tuple[Probe, ...]:
    return tuple(Probe(name=f"{group}-{i}", group=group, prompt=tuple(row), max_tokens=max_tokens) for i, row in enumerate(rows))


def _filled(ids: Ids, first: int, tokens: int, opening: str) -> list[int]:
    """At most `tokens` ids: sentences from `first` on, in turn, so that two prompts differ from their first block on."""
    end = ids(f" {QUESTIONS[first % len(QUESTIONS)]}", False)
    body = ids(opening + SENTENCES[first % len(SENTENCES)], True)
    for at in count(first + 1):
        if len(body) + len(end) >= tokens:
            break
        body += ids(f" {SENTENCES[at % len(SENTENCES)]}", False)
    return (body[:max(1, tokens - len(end))] + end)[:tokens]
