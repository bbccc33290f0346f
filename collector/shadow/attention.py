"""Causal attention over a pack: segments of many rollouts behind one another in one row, none of them padded.

A segment attends to its own rows and to the KV of what comes before it: rows of the same pack (a prompt that runs once for its
whole group) or KV computed earlier. transformers runs the rest of the layer; this is registered as one more of its attention
implementations. On CUDA all segments are one variable-length flash-attention call, elsewhere one SDPA call each.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "klaxon_packed"
_MASK_ENTRIES = 1 << 22  # a mask never has more entries: 4 MiB of booleans, 16 MiB once a CPU kernel widens it
_UNKNOWN = ("position_bias", "head_mask", "indices", "block_table")  # what other attentions take and this one does not apply

KV = dict[int, tuple[Tensor, Tensor]]
"""Layer index → keys and values [1, kv heads, tokens, head size]."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [start, end) of the pack, and what lies before them in order: (start, end) of the pack, or KV."""

    start: int
    end: int
    before: tuple[tuple[int, int] | KV, ...] = ()


@dataclass(slots=True)
class Pack:
    """One forward pass. `keep`: rows whose KV is wanted afterwards, found in `kept` under the same index."""

    segments: tuple[Segment, ...]
    keep: tuple[tuple[int, int], ...] = ()
    kept: list[KV] = field(default_factory=list)
    layers: set[int] = field(default_factory=set)  # which layers called the attention

    def __post_init__(self) -> None:
        self.kept = [{} for _ in self.keep]


_running = threading.local()


@contextmanager
def running(pack: Pack) -> Iterator[Pack]:
    """The pack whose segments the attention of this thread sees."""
    _running.pack = pack
    try:
        yield pack
    finally:
        _running.pack = None


def packed_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, *,
                     scaling: float | None = None, sliding_window: int | None = None, softcap: float | None = None,
                     s_aux: Tensor | None = None, **other: Any) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, heads, N, D], key and value [1, kv heads, N, D] → [1, N, heads, D].

    Raises:
        NotImplementedError: the layer asks for something that is not known here.
    """
    pack: Pack | None = getattr(_running, "pack", None)
    if pack is None or query.shape[0] != 1 or any(other.get(name) is not None for name in _UNKNOWN):
        raise NotImplementedError(f"{type(module).__name__} attends in a way that cannot be packed")
    layer = module.layer_idx
    pack.layers.add(layer)
    for (start, end), kept in zip(pack.keep, pack.kept, strict=True):
        kept[layer] = (key[:, :, start:end].clone(), value[:, :, start:end].clone())
    if query.is_cuda and query.dtype.itemsize == 2 and softcap is None and s_aux is None and key.shape[-1] == value.shape[-1] <= 256:
        return _varlen(pack, layer, query, key, value, scaling, sliding_window), None
    out_NHD = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
    for segment in pack.segments:
        k, v = _with_prefix(segment, layer, key, value)
        _attend(query[:, :, segment.start:segment.end], k, v, out_NHD[segment.start:segment.end], scaling=scaling,
                window=sliding_window, softcap=softcap, sinks=s_aux)
    return out_NHD[None], None


AttentionInterface.register(NAME, packed_attention)


def _with_prefix(segment: Segment, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of everything the segment's rows may look at."""
    own = key[:, :, segment.start:segment.end], value[:, :, segment.start:segment.end]
    if not segment.before:
        return own
    parts = [(key[:, :, part[0]:part[1]], value[:, :, part[0]:part[1]]) if isinstance(part, tuple) else part[layer]
             for part in segment.before]
    keys, values = zip(*parts, own, strict=True)
    return torch.cat(keys, dim=2), torch.cat(values, dim=2)


def _attend(query: Tensor, key: Tensor, value: Tensor, out_NHD: Tensor, *, scaling: float | None, window: int | None,
            softcap: float | None, sinks: Tensor | None) -> None:
    """One segment; its last row sees the last key. In blocks of rows, so that no mask grows large."""
    n, total = query.shape[2], key.shape[2]
    block = max(1, min(n, _MASK_ENTRIES // total))
    for at in range(0, n, block):
        to = min(at + block, n)
        last = total - n + to  # keys [0, last) are visible to the block's last row
        first = max(0, total - n + at + 1 - window) if window else 0
        q, k, v = query[:, :, at:to], key[:, :, first:last], value[:, :, first:last]
        rows, ahead = to - at, last - first - (to - at)
        cut = window is not None and ahead + rows > window
        if softcap is not None or sinks is not None:
            got = _written_out(q, k, v, _mask(rows, ahead, window if cut else None, q.device), scaling, softcap, sinks)
        elif ahead == 0 and not cut:
            got = scaled_dot_product_attention(q, k, v, is_causal=rows > 1, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
        else:
            mask = None if rows == 1 else _mask(rows, ahead, window if cut else None, q.device)
            got = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
        out_NHD[at:to] = got[0].transpose(0, 1)


def _mask(rows: int, ahead: int, window: int | None, device: torch.device) -> Tensor:
    """bool [rows, ahead + rows]: row i sees keys up to ahead + i, the last `window` of them."""
    seen = torch.ones(rows, ahead + rows, dtype=torch.bool, device=device).tril(ahead)
    return seen if window is None else seen.triu(ahead - window + 1)


def _written_out(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scaling: float | None, softcap: float | None,
                 sinks: Tensor | None) -> Tensor:
    """Attention with capped scores (Gemma 2) or a learned sink (gpt-oss), as transformers' eager code has it."""
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    scores = (q @ k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    wide = torch.float64 if scores.dtype is torch.float64 else torch.float32
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=wide).to(q.dtype) @ v
    sink = sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(1, -1, q.shape[2], 1)
    return torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1, dtype=wide)[..., :-1].to(q.dtype) @ v


def _varlen(pack: Pack, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """All segments in one flash-attention call: causal, aligned to each segment's last key."""
    from torch.nn.attention.varlen import varlen_attn

    pairs = [_with_prefix(segment, layer, key, value) for segment in pack.segments]
    n_query, n_key = [s.end - s.start for s in pack.segments], [k.shape[2] for k, _ in pairs]
    ends_q, ends_k = (torch.tensor([0, *sizes], device=query.device).cumsum(0).to(torch.int32) for sizes in (n_query, n_key))
    keys, values = (torch.cat(side, dim=2)[0].transpose(0, 1).contiguous() for side in zip(*pairs, strict=True))
    out_NHD = varlen_attn(query[0].transpose(0, 1).contiguous(), keys, values, ends_q, ends_k, max(n_query), max(n_key),
                          scale=scaling, window_size=(window - 1 if window else -1, 0), enable_gqa=query.shape[1] != key.shape[1])
    return out_NHD[None]
