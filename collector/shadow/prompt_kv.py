"""KV of prompts already computed, for prompts that start alike: a shared system prompt runs once a weight version.

The same idea as an engine's prefix cache, without its mistake: an entry is known by its tokens AND by the digest of the
weights behind every one of them, so KV of other weights is never taken for one's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from collector.shadow.attention import KV

WORTH_KEEPING_TOKENS = 64  # an entry must hold at least this many tokens no other entry holds
WORTH_TAKING_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Known:
    """KV of the first `tokens` tokens of a prompt; the tensors may hold more."""

    tokens: int = 0
    kv: KV = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Entry:
    tokens_P: np.ndarray
    weights_P: np.ndarray  # code of the digest behind each position
    kv: KV
    size_bytes: int


class PromptKV:
    """The most recently used prompts, up to `limit_bytes`; 0 keeps none. `counts`: tokens_taken, kept, dropped."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: list[_Entry] = []  # least recently used first
        self._codes: dict[str, int] = {}
        self.counts: Counter[str] = Counter()

    @property
    def keeps(self) -> bool:
        """Does it keep anything at all?"""
        return self._limit_bytes > 0

    def take(self, tokens_P: np.ndarray, digests: Sequence[tuple[int, str]]) -> Known:
        """KV for the start of a prompt, all but its last token at most.

        `digests`: (end, weight digest) of the steps that compute the prompt, in order.
        """
        entry, common = self._longest(tokens_P, self._weights(digests, tokens_P.size))
        common = min(common, tokens_P.size - 1)
        if entry is None or common < WORTH_TAKING_TOKENS:
            return Known()
        self._entries.append(self._entries.pop(next(i for i, one in enumerate(self._entries) if one is entry)))
        return Known(common, entry.kv)

    def keep(self, tokens_P: np.ndarray, digests: Sequence[tuple[int, str]], parts: Sequence[KV]) -> None:
        """Remember the KV of a whole prompt, given in parts, unless it is nearly known already."""
        weights_P = self._weights(digests, tokens_P.size)
        known = self._longest(tokens_P, weights_P)[1]
        size = sum(tensor.numel() * tensor.element_size() for kv in parts for pair in kv.values() for tensor in pair)
        if tokens_P.size - known < WORTH_KEEPING_TOKENS or size > self._limit_bytes:
            return
        while self._entries and sum(entry.size_bytes for entry in self._entries) + size > self._limit_bytes:
            self._entries.pop(0)
            self.counts["dropped"] += 1
        self._entries.append(_Entry(tokens_P.copy(), weights_P, join(parts), size))
        self.counts["kept"] += 1

    def _weights(self, digests: Sequence[tuple[int, str]], size: int) -> np.ndarray:
        out_P, start = np.zeros(size, dtype=np.int64), 0
        for end, digest in digests:
            out_P[start:end] = self._codes.setdefault(digest, len(self._codes))
            start = end
        return out_P

    def _longest(self, tokens_P: np.ndarray, weights_P: np.ndarray) -> tuple[_Entry | None, int]:
        best, longest = None, 0
        for entry in self._entries:
            size = min(tokens_P.size, entry.tokens_P.size)
            same = (tokens_P[:size] == entry.tokens_P[:size]) & (weights_P[:size] == entry.weights_P[:size])
            common = size if same.all() else int(np.argmin(same))
            if common > longest:
                best, longest = entry, common
        return best, longest


def part(kv: KV, start: int, end: int) -> KV:
    """The KV of tokens [start, end); shares memory."""
    return {layer: (key[:, :, start:end], value[:, :, start:end]) for layer, (key, value) in kv.items()}


def join(parts: Sequence[KV]) -> KV:
    """Parts behind one another; new memory where there are several."""
    if len(parts) == 1:
        return parts[0]
    return {layer: tuple(torch.cat(side, dim=2) for side in zip(*(kv[layer] for kv in parts), strict=True)) for layer in parts[0]}
