"""Passes as a tree of what they have in common: every token of a prefix that several passes share runs once.

A system prompt, a group's prompt, an earlier turn: whatever begins alike under the same weights is one node. A node's tokens
run through one version's weights, on the KV of the nodes above it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from collector.shadow.attention import KV
from collector.shadow.plan import Pass
from collector.shadow.prompt_kv import WORTH_KEEPING_TOKENS, Known, PromptKV, part

WORTH_SHARING_TOKENS = 16  # one more segment costs about this many tokens through the body (measured on a CPU)


@dataclass(slots=True, eq=False)
class Node:
    """Inputs [start, start + tokens.size) of every pass below it. kv: of its own tokens (a whole cache for models that cannot pack)."""

    tokens: np.ndarray  # int32
    start: int
    version: str
    step: int  # which step of its passes: versions before it ran before it
    above: Node | None
    below: list[Node] = field(default_factory=list)
    answers: list[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=list)  # pass, rows of the node, completion tokens
    keeps: tuple[np.ndarray, tuple] | None = None  # the prompt that ends here and its digests, to be remembered
    kv: KV | Any | None = None
    done: bool = False
    over: bool = False  # everything below is done too

    def path(self) -> list[Node]:
        """From the root to this node."""
        found: list[Node] = []
        node: Node | None = self
        while node is not None:
            found.append(node)
            node = node.above
        return found[::-1]


@dataclass(slots=True)
class _Row:
    place: int
    item: Pass
    key: np.ndarray  # int64: token and version of every input
    known: Known
    cuts: tuple[int, ...]  # nodes end here: another version, known KV, a prompt to remember


def grow(passes: Sequence[Pass], digests: Sequence[tuple[tuple[int, str], ...]], kept: PromptKV, limit: int) -> list[Node]:
    """Every node, each after the one above it, a node at most `limit` tokens. digests: of each pass's prompt, as PromptKV takes them."""
    codes: dict[str, int] = {}
    rows = [_row(place, item, own, kept, codes) for place, (item, own) in enumerate(zip(passes, digests, strict=True))]
    rows.sort(key=lambda row: row.key.astype(">i8").tobytes())  # big-endian bytes sort as the numbers do
    nodes: list[Node] = []
    waiting: list[tuple[list[_Row], int, Node | None]] = [(rows, 0, None)]
    while waiting:
        group, at, above = waiting.pop()
        children = []
        for same in _split(group, at):
            node = _node(same, at, _end(same, at, limit), above)
            children.append((same, node.start + node.tokens.size, node))
            nodes.append(node)
            if above is not None:
                above.below.append(node)
        waiting.extend(reversed(children))
    _remember(nodes, rows, digests)
    return _depth_first(nodes)


def _row(place: int, item: Pass, digests: tuple, kept: PromptKV, codes: dict[str, int]) -> _Row:
    n_prompt, end = item.rollout.prompt_tokens_P.size, item.steps[-1].end
    key = item.inputs.astype(np.int64)
    for step in item.steps:
        key[step.start:step.end] |= codes.setdefault(step.version, len(codes)) << 32
    known = kept.take(item.rollout.prompt_tokens_P, digests)
    worth = n_prompt - known.tokens >= WORTH_KEEPING_TOKENS and kept.keeps
    cuts = {step.end for step in item.steps} | {known.tokens} | ({n_prompt} if worth else set())
    return _Row(place, item, key, known, tuple(sorted(cut for cut in cuts if 0 < cut <= end)))


def _split(rows: list[_Row], at: int) -> Iterator[list[_Row]]:
    """Sorted rows, equal before `at`, as groups that go on alike; those that end here drop out."""
    rows = [row for row in rows if row.key.size > at]
    while rows:
        count = next((i for i, row in enumerate(rows) if row.key[at] != rows[0].key[at]), len(rows))
        same, rows = rows[:count], rows[count:]
        if count > 1 and (_alike(same, at) - at) * (count - 1) < WORTH_SHARING_TOKENS:
            yield from ([row] for row in same)
        else:
            yield same


def _alike(rows: list[_Row], at: int) -> int:
    """Up to where sorted rows are equal: up to where the first and the last are."""
    first, last = rows[0].key, rows[-1].key
    size = min(first.size, last.size)
    same = first[at:size] == last[at:size]
    return size if same.all() else at + int(np.argmin(same))


def _end(rows: list[_Row], at: int, limit: int) -> int:
    cuts = [cut for row in rows for cut in row.cuts if cut > at]
    return min(_alike(rows, at), at + limit, *cuts[:1], *cuts)


def _node(rows: list[_Row], start: int, end: int, above: Node | None) -> Node:
    first = rows[0]
    index = next(i for i, step in enumerate(first.item.steps) if step.end > start)
    node = Node(first.item.inputs[start:end], start, first.item.steps[index].version, index, above)
    for row in rows:
        position = row.item.wanted + row.item.rollout.prompt_tokens_P.size - 1
        here = (position >= start) & (position < end)
        if here.any():
            node.answers.append((row.place, position[here] - start, row.item.wanted[here]))
    source = next((row.known for row in rows if row.known.tokens >= end), None)
    if source is not None and not node.answers:
        node.kv, node.done = part(source.kv, start, end), True
    return node


def _remember(nodes: list[Node], rows: list[_Row], digests: Sequence[tuple]) -> None:
    """Mark the nodes at which a prompt worth remembering ends, and those above them."""
    ends: dict[tuple[int, int], _Row] = {}
    for row in rows:
        n_prompt = row.item.rollout.prompt_tokens_P.size
        if n_prompt in row.cuts and n_prompt - row.known.tokens >= WORTH_KEEPING_TOKENS:
            ends[row.place, n_prompt] = row
    by_place: dict[int, list[Node]] = {}
    for node in nodes:
        for place, _, _ in node.answers:
            by_place.setdefault(place, []).append(node)
    for (place, end), row in ends.items():
        leaf = max(by_place.get(place, []), key=lambda node: node.start, default=None)
        for node in leaf.path() if leaf is not None else ():
            if node.start + node.tokens.size == end and node.keeps is None:
                node.keeps = row.item.rollout.prompt_tokens_P, digests[place]


def _depth_first(nodes: list[Node]) -> list[Node]:
    """Roots first, each node's children right after it; stable."""
    order, waiting = [], [node for node in reversed(nodes) if node.above is None]
    while waiting:
        node = waiting.pop()
        order.append(node)
        waiting.extend(reversed(node.below))
    return order
