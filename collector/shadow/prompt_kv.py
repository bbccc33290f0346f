"""KV of prompts already computed, for prompts that start alike: a shared system prompt runs once a weight version.

The same idea as an engine's prefix cache, without its mistake: an entry is known by its tokens AND by the digest of the
weights behind every one of them, so KV of other weights is never taken for one's own.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

WORTH_KEEPING_TOKENS = 64  # an entry must hold at least this many tokens no other entry holds
WORTH_TAKING_TOKENS = 16


@dataclass(frozen=True, slots=True)
class _Entry:
    tokens_P: np.ndarray
    weights_P: np.ndarray  # code of the digest behind each position
    cache: DynamicCache
    size_bytes: int


class PromptKV:
    """The most recently used prompts, up to `limit_bytes`; 0 keeps none. `counts`: tokens_taken, kept, dropped."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: list[_Entry] = []  # least recently used first
        self._codes: dict[str, int] = {}
        self.counts: Counter[str] = Counter()

    def take(self, tokens_P: np.ndarray, digests: Sequence[tuple[int, str]]) -> tuple[DynamicCache | None, int]:
        """KV for the start of a prompt and how many tokens it covers, all but the last one at most; (None, 0) when none.

        `digests`: (end, weight digest) of the steps that compute the prompt, in order.
        """
        entry, common = self._longest(tokens_P, self._weights(digests, tokens_P.size))
        common = min(common, tokens_P.size - 1)
        if entry is None or common < WORTH_TAKING_TOKENS:
            return None, 0
        self._entries.append(self._entries.pop(next(i for i, one in enumerate(self._entries) if one is entry)))
        self.counts["tokens_taken"] += common
        taken = fork(entry.cache)
        if common < entry.tokens_P.size:
            taken.crop(common - entry.tokens_P.size)
        return taken, common

    def common(self, tokens_P: np.ndarray, digests: Sequence[tuple[int, str]]) -> int:
        """How many tokens `take` would cover."""
        _, common = self._longest(tokens_P, self._weights(digests, tokens_P.size))
        return common if common >= WORTH_TAKING_TOKENS else 0

    def keep(self, tokens_P: np.ndarray, digests: Sequence[tuple[int, str]], cache: DynamicCache) -> None:
        """Remember the KV of a whole prompt, unless it is nearly known already or cannot be cut to a shorter one."""
        weights_P = self._weights(digests, tokens_P.size)
        known = self._longest(tokens_P, weights_P)[1]
        if tokens_P.size - known < WORTH_KEEPING_TOKENS or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return
        size = sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))
        if size > self._limit_bytes:
            return
        self._entries.append(_Entry(tokens_P.copy(), weights_P, fork(cache), size))
        self.counts["kept"] += 1
        while sum(entry.size_bytes for entry in self._entries) > self._limit_bytes:
            self._entries.pop(0)
            self.counts["dropped"] += 1

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


def fork(cache: DynamicCache) -> DynamicCache:
    """A cache that can grow and be cut on its own. Tensors are shared: a dynamic layer replaces them, never writes into them."""
    own = copy.copy(cache)
    own.layers = [copy.copy(layer) if type(layer) is DynamicLayer else copy.deepcopy(layer) for layer in cache.layers]
    return own
