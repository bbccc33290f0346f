"""Group passes into batches that waste little, and run them through the body.

Two shapes: rows of different prompts under one version run whole, padded on the right; rows that share a prompt (a
GRPO group), hand KV from version to version, or are longer than one forward pass, continue from the prompt's KV. What
prompts have in common (a system prompt) is computed once a weight version and kept (prompt_kv.py).
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from collector.config import ShadowConfig
from collector.shadow.model import ShadowModel
from collector.shadow.plan import Pass, Step
from collector.shadow.prompt_kv import PromptKV, fork
from collector.weights.shelf import WeightShelf

FORWARD_COST_TOKENS = 32  # what starting one more forward pass costs, in tokens through the body (measured on a CPU)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Passes that run together. shared_prompt: one prompt, one KV, repeated for every row."""

    passes: tuple[Pass, ...]
    shared_prompt: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """Hidden states that answer tokens: row n answers token index_N[n] of pass pass_of_N[n] of the batch."""

    version: str
    hidden_NH: Tensor
    pass_of_N: np.ndarray
    index_N: np.ndarray
    body_tokens: int  # tokens that went through the body for this, padding included
    padding_tokens: int  # of those, padding


def batches_of(passes: Iterable[Pass], shelf: WeightShelf[ShadowModel], config: ShadowConfig, kept: PromptKV) -> Iterator[Batch]:
    """Batches in an order that touches each version's weights as rarely as possible."""
    groups: dict[tuple, list[Pass]] = defaultdict(list)
    for item in passes:
        groups[item.versions, _prompt_key(item)].append(item)
    starts = _starts_in_common([group[0] for group in groups.values()])
    alone: dict[tuple[str, ...], list[Pass]] = defaultdict(list)
    shared: dict[tuple[str, ...], list[list[Pass]]] = defaultdict(list)
    for (versions, _), group in groups.items():
        prompt_P = group[0].rollout.prompt_tokens_P
        known = max(starts[id(group[0])], kept.common(prompt_P, _digests(group[0], shelf)))
        saved = (len(group) - 1) * prompt_P.size + known
        fits = max(item.steps[-1].end for item in group) <= config.forward_tokens
        if len(versions) == 1 and fits and saved < 2 * FORWARD_COST_TOKENS:
            alone[versions].extend(group)
        else:
            shared[versions].append(group)
    for versions in sorted({*alone, *shared}):
        for members in _by_length(alone[versions], config.forward_tokens):
            yield Batch(passes=members, shared_prompt=False)
        for group in shared[versions]:
            yield Batch(passes=tuple(group), shared_prompt=True)


def run_batch(batch: Batch, shelf: WeightShelf[ShadowModel], config: ShadowConfig, kept: PromptKV) -> Iterator[Hidden]:
    """Run the body and yield the hidden states that answer the wanted tokens."""
    return _run_shared(batch, shelf, config, kept) if batch.shared_prompt else _run_whole(batch, shelf)


def _prompt_key(item: Pass) -> tuple:
    """Passes with this in common may share the prompt's KV."""
    n_prompt = item.rollout.prompt_tokens_P.size
    return item.rollout.prompt_tokens_P.tobytes(), tuple((min(s.end, n_prompt), s.version) for s in item.steps)


def _starts_in_common(firsts: Sequence[Pass]) -> dict[int, int]:
    """id of a pass → how many prompt tokens it has in common with another pass of the same versions."""
    found = {id(item): 0 for item in firsts}
    ordered = sorted(firsts, key=lambda item: (item.versions, item.rollout.prompt_tokens_P.tolist()))
    for left, right in itertools.pairwise(ordered):
        if left.versions != right.versions:
            continue
        size = min(left.rollout.prompt_tokens_P.size, right.rollout.prompt_tokens_P.size)
        same = left.rollout.prompt_tokens_P[:size] == right.rollout.prompt_tokens_P[:size]
        common = size if same.all() else int(np.argmin(same))
        found[id(left)], found[id(right)] = max(found[id(left)], common), max(found[id(right)], common)
    return found


def _digests(item: Pass, shelf: WeightShelf[ShadowModel]) -> list[tuple[int, str]]:
    """(end, digest of the weights) of the steps that compute the prompt."""
    found, at, n_prompt = [], 0, item.rollout.prompt_tokens_P.size
    for step in item.steps:
        if at < n_prompt:
            at, known = min(step.end, n_prompt), shelf.know(step.version)
            found.append((at, known.digest if known is not None else step.version))
    return found


def _one_version_after_prompt(item: Pass) -> bool:
    return all(step.end <= item.rollout.prompt_tokens_P.size for step in item.steps[:-1])


def _by_length(passes: Iterable[Pass], limit_tokens: int) -> list[tuple[Pass, ...]]:
    """Split into batches, longest row first, so that padding and the cost of starting batches are least (by dynamic
    programming). A batch of several rows stays within limit_tokens.
    """
    rows = sorted(passes, key=lambda item: -item.steps[-1].end)
    best, split = [0.0] + [math.inf] * len(rows), [0] * (len(rows) + 1)
    for start, item in enumerate(rows):
        longest = item.steps[-1].end
        for end in range(start + 1, len(rows) + 1):
            tokens = (end - start) * longest
            if end > start + 1 and tokens > limit_tokens:
                break
            if best[start] + tokens + FORWARD_COST_TOKENS < best[end]:
                best[end], split[end] = best[start] + tokens + FORWARD_COST_TOKENS, start
    batches, end = [], len(rows)
    while end:
        batches.append(tuple(rows[split[end]:end]))
        end = split[end]
    return batches[::-1]


def _padded(rows: list[np.ndarray], width: int | None = None) -> Tensor:
    """Token rows as int64 [B, L], padded on the right with zeros to the longest row or to `width`."""
    out_BL = np.zeros((len(rows), width or max(row.size for row in rows)), dtype=np.int64)
    for index, row in enumerate(rows):
        out_BL[index, : row.size] = row
    return torch.from_numpy(out_BL)


def _run_whole(batch: Batch, shelf: WeightShelf[ShadowModel]) -> Iterator[Hidden]:
    (version,) = batch.passes[0].versions
    tokens_BL = _padded([item.inputs for item in batch.passes])
    hidden_BLH = shelf.get(version).hidden(tokens_BL)
    yield _answers(batch.passes, range(len(batch.passes)), version, hidden_BLH, at=0)


def _run_shared(batch: Batch, shelf: WeightShelf[ShadowModel], config: ShadowConfig, kept: PromptKV) -> Iterator[Hidden]:
    first, everyone = batch.passes[0], range(len(batch.passes))
    prompt_P, digests = first.rollout.prompt_tokens_P, _digests(first, shelf)
    n_prompt = prompt_P.size
    cache, known = kept.take(prompt_P, digests)
    if cache is None:
        cache = shelf.get(first.versions[0]).new_cache()
    for step in first.steps:
        piece = Step(start=max(step.start, known), end=min(step.end, n_prompt), version=step.version)
        for at, hidden_1LH in _feed(shelf, piece, [first.inputs], cache, config.forward_tokens):
            yield _answers(batch.passes, everyone, step.version, hidden_1LH, at=at)
    kept.keep(prompt_P, digests, cache)
    limit = config.forward_tokens if _one_version_after_prompt(first) else 0
    places = {id(item): place for place, item in enumerate(batch.passes)}
    buckets = _by_length(batch.passes, limit)
    for members in buckets:
        own = fork(cache) if len(buckets) > 1 else cache
        if len(members) > 1:
            own.batch_repeat_interleave(len(members))
        rows, piece_tokens = [item.inputs for item in members], max(1, config.forward_tokens // len(members))
        for step in members[0].steps:  # the longest row; the others are padded to it
            piece = Step(start=max(step.start, n_prompt), end=step.end, version=step.version)
            for at, hidden_BLH in _feed(shelf, piece, rows, own, piece_tokens):
                yield _answers(members, [places[id(item)] for item in members], step.version, hidden_BLH, at=at)


def _feed(shelf: WeightShelf[ShadowModel], step: Step, rows: list[np.ndarray], cache: DynamicCache,
          piece_tokens: int) -> Iterator[tuple[int, Tensor]]:
    """Inputs [step.start, step.end) of the rows, piece by piece: (position of the piece, hidden [B, L, H])."""
    for at in range(step.start, step.end, piece_tokens):
        width = min(at + piece_tokens, step.end) - at
        yield at, shelf.get(step.version).hidden(_padded([row[at:at + width] for row in rows], width), cache)


def _answers(passes: Sequence[Pass], places: Sequence[int], version: str, hidden_BLH: Tensor, *, at: int) -> Hidden:
    """The wanted tokens that inputs [at, at + L) answer. One row for many passes is their common prompt.

    Input position j answers completion token j + 1 − P.
    """
    n_rows, length, _ = hidden_BLH.shape
    row_of, place_of, where, index = [], [], [], []
    for b, (item, place) in enumerate(zip(passes, places, strict=True)):
        position = item.wanted + item.rollout.prompt_tokens_P.size - 1 - at
        here = (position >= 0) & (position < min(length, item.steps[-1].end - at))
        row_of.append(np.full(int(here.sum()), b if n_rows > 1 else 0))
        place_of.append(np.full(int(here.sum()), place))
        where.append(position[here])
        index.append(item.wanted[here])
    used = sum(max(0, min(length, item.steps[-1].end - at)) for item in passes) if n_rows > 1 else length
    return Hidden(
        version=version, hidden_NH=hidden_BLH[np.concatenate(row_of), np.concatenate(where)],
        pass_of_N=np.concatenate(place_of), index_N=np.concatenate(index),
        body_tokens=n_rows * length, padding_tokens=n_rows * length - used)
