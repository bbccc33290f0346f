"""Run a tree of passes through the body, in packs: many segments of any length behind one another, no padding."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from collector.config import ShadowConfig
from collector.shadow.attention import Pack, Segment
from collector.shadow.model import ShadowModel
from collector.shadow.plan import Pass
from collector.shadow.prompt_kv import PromptKV
from collector.shadow.tree import Node, grow
from collector.weights.shelf import WeightShelf


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """Hidden states that answer tokens: row n answers token index_N[n] of pass pass_of_N[n] of the forest."""

    version: str
    hidden_NH: Tensor
    pass_of_N: np.ndarray
    index_N: np.ndarray
    body_tokens: int  # tokens that went through the body for this


def forests_of(passes: Iterable[Pass]) -> list[tuple[Pass, ...]]:
    """Passes that run together, in an order that touches each version's weights as rarely as possible.

    Passes under one version are one forest. Those that go from version to version hold KV until all of a version's steps are
    done, so there each prompt is a forest of its own.
    """
    found: dict[tuple, list[Pass]] = defaultdict(list)
    for item in passes:
        prompt = item.rollout.prompt_tokens_P.tobytes() if len(item.versions) > 1 else b""
        found[item.versions, prompt].append(item)
    return [tuple(found[key]) for key in sorted(found)]


def run_forest(passes: Sequence[Pass], shelf: WeightShelf[ShadowModel], config: ShadowConfig, kept: PromptKV,
               replica: int = 0) -> Iterator[Hidden]:
    """Run the body and yield the hidden states that answer the wanted tokens."""
    digests = [_digests(item, shelf) for item in passes]
    nodes = grow(passes, digests, kept, config.forward_tokens)
    if taken := sum(node.tokens.size for node in nodes if node.done):
        kept.counts["tokens_taken"] += taken
    for step in sorted({node.step for node in nodes}):
        todo = [node for node in nodes if node.step == step and not node.done and _wanted(node)]
        for version in sorted({node.version for node in todo}):
            mine = [node for node in todo if node.version == version]
            while mine:
                model = shelf.get(version).replica(replica)
                size = _how_many(mine, config.forward_tokens) if model.packs else 1
                pack, mine = mine[:size], mine[size:]
                hidden_NH = _run(model, pack)
                _settle(pack, kept if model.packs else None)
                yield _answers(version, pack, hidden_NH)


def _digests(item: Pass, shelf: WeightShelf[ShadowModel]) -> tuple[tuple[int, str], ...]:
    """(end, digest of the weights) of the steps that compute the prompt."""
    found, at, n_prompt = [], 0, item.rollout.prompt_tokens_P.size
    for step in item.steps:
        if at < n_prompt:
            at, known = min(step.end, n_prompt), shelf.know(step.version)
            found.append((at, known.digest if known is not None else step.version))
    return tuple(found)


def _wanted(node: Node) -> bool:
    return bool(node.answers or node.keeps or any(_wanted(below) for below in node.below))


def _how_many(nodes: list[Node], limit: int) -> int:
    """How many of the next nodes fit one forward pass; one always does."""
    ends = np.cumsum([node.tokens.size for node in nodes])
    return max(1, int(np.searchsorted(ends, limit, side="right")))


def _run(model: ShadowModel, nodes: list[Node]) -> Tensor:
    """Hidden states [N, H] of the nodes' tokens; sets their KV where somebody below, or a prompt to remember, needs it."""
    if not model.packs:
        (node,) = nodes
        cache = model.new_cache() if node.above is None else node.above.kv
        if isinstance(cache, dict):
            raise RuntimeError("the versions before and after an update are not of one architecture: one packs, one does not")
        if node.above is not None and any(not below.done and below is not node for below in node.above.below):
            cache = copy.deepcopy(cache)
        node.kv = cache
        return model.one_row(node.tokens, cache)
    ends = np.cumsum([0, *(node.tokens.size for node in nodes)]).tolist()
    rows = {id(node): (start, end) for node, start, end in zip(nodes, ends, ends[1:], strict=False)}
    segments = tuple(Segment(*rows[id(node)], tuple(rows.get(id(above)) or above.kv for above in node.path()[:-1])) for node in nodes)
    needed = {id(one) for node in nodes if node.keeps or any(id(below) not in rows for below in node.below) for one in node.path()}
    stored = [node for node in nodes if id(node) in needed]
    pack = Pack(segments, keep=tuple(rows[id(node)] for node in stored))
    positions = np.concatenate([np.arange(node.start, node.start + node.tokens.size) for node in nodes])
    hidden_NH = model.packed(torch.from_numpy(np.concatenate([node.tokens for node in nodes]).astype(np.int64)),
                             torch.from_numpy(positions), pack)
    for node, kv in zip(stored, pack.kept, strict=True):
        node.kv = kv
    return hidden_NH


def _settle(nodes: list[Node], kept: PromptKV | None) -> None:
    """Remember prompts that are now whole, and let go of KV nobody needs any more."""
    for node in nodes:
        node.done = True
        if node.keeps is not None and kept is not None:
            kept.keep(*node.keeps, [one.kv for one in node.path()])
    for node in nodes:
        one: Node | None = node
        while one is not None and one.done and all(below.over for below in one.below):
            one.kv, one.over, one = None, True, one.above


def _answers(version: str, nodes: list[Node], hidden_NH: Tensor) -> Hidden:
    """The rows that answer wanted tokens."""
    where, place, index, at = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for node in nodes:
        for of, rows, wanted in node.answers:
            where.append(at + rows)
            place.append(np.full(rows.size, of))
            index.append(wanted)
        at += node.tokens.size
    rows_N = torch.from_numpy(np.concatenate(where)).to(hidden_NH.device)
    return Hidden(version=version, hidden_NH=hidden_NH[rows_N], pass_of_N=np.concatenate(place), index_N=np.concatenate(index),
                  body_tokens=at)
