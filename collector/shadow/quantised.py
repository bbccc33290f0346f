"""The shadow as a quantised engine would compute: weights, inputs of linear layers or the KV cache rounded to few bits.

Emulated, not run: values are rounded as the engine's format rounds them and multiplied in float32, so a CPU without fp8 kernels can do it. The loaded
weights stay as they are: each layer is rounded when it runs, which costs memory for one layer and about one more pass of time. What is left to the
kernels (order of sums, calibrated scales, AWQ and GPTQ's choices) is not emulated: the direction of the error agrees with the engine's, its size in part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface

from collector.shadow.attention import packed_attention
from collector.shadow.model import ShadowModel
from collector.shadow.scorer import ShadowScorer

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
BLOCK = 128
NAME = "klaxon_packed_fp8_kv"

Rounding = Callable[[Tensor], Tensor]
"""float32 values [..., K] → the same after quantisation; K = what a matmul sums over."""


def fp8(values: Tensor, largest: Tensor) -> Tensor:
    """Rounded to e4m3 with the scale that maps `largest` to 448."""
    scale = (largest / E4M3_MAX).clamp(min=1e-12)
    return (values / scale).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3).to(values.dtype) * scale


def integers(values: Tensor, largest: Tensor, bits: int = 8) -> Tensor:
    """Rounded to symmetric integers of so many bits."""
    top = 2 ** (bits - 1) - 1
    scale = (largest / top).clamp(min=1e-12)
    return (values / scale).round().clamp(-top - 1, top) * scale


def per_tensor(values: Tensor) -> Tensor:
    """Largest magnitude of all."""
    return values.abs().amax()


def per_row(values: Tensor) -> Tensor:
    """Largest magnitude along the last axis: an output channel of a weight, a token of an input."""
    return values.abs().amax(-1, keepdim=True)


def fp8_blocks(values: Tensor) -> Tensor:
    """Weights [O, K] in blocks of 128 × 128, each with a scale of its own."""
    rows, columns = values.shape
    tiled = pad(values, (0, -columns % BLOCK, 0, -rows % BLOCK))
    tiles = tiled.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))  # [blocks, 128, blocks, 128]
    return fp8(tiles, tiles.abs().amax((1, 3), keepdim=True)).flatten(2).flatten(0, 1)[:rows, :columns]


def fp8_groups(values: Tensor) -> Tensor:
    """Inputs [..., K] in groups of 128."""
    columns = values.shape[-1]
    groups = pad(values, (0, -columns % BLOCK)).unflatten(-1, (-1, BLOCK))
    return fp8(groups, per_row(groups)).flatten(-2)[..., :columns]


def int4_groups(values: Tensor) -> Tensor:
    """Weights [O, K] in groups of 128 with 16 levels from the smallest to the largest (round to nearest; AWQ and GPTQ choose better)."""
    columns = values.shape[-1]
    groups = pad(values, (0, -columns % BLOCK)).unflatten(-1, (-1, BLOCK))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((high - low) / 15).clamp(min=1e-12)
    zero = (-low / step).round()
    return (((groups / step).round() + zero).clamp(0, 15) - zero).mul(step).flatten(-2)[..., :columns]


@dataclass(frozen=True, slots=True)
class Scheme:
    """What is rounded; None = left as it is."""

    weights: Rounding | None = None
    inputs: Rounding | None = None
    kv: bool = False
    head: bool = False  # hidden states and logits as a bfloat16 head has them


SCHEMES: dict[str, Scheme] = {
    "fp8": Scheme(lambda w: fp8(w, per_tensor(w)), lambda x: fp8(x, per_row(x))),
    "fp8 in blocks of 128": Scheme(fp8_blocks, fp8_groups),
    "fp8 weights only": Scheme(lambda w: fp8(w, per_row(w))),
    "fp8 KV cache": Scheme(kv=True),
    "int8": Scheme(lambda w: integers(w, per_row(w)), lambda x: integers(x, per_row(x))),
    "int8 with one scale a layer": Scheme(lambda w: integers(w, per_tensor(w)), lambda x: integers(x, per_row(x))),
    "int8 weights only": Scheme(lambda w: integers(w, per_row(w))),
    "int4 weights in groups of 128": Scheme(int4_groups),
}
"""Candidates, name → scheme: vLLM's online fp8, DeepSeek's blocks, W8A16, fp8 keys and values with scale 1, W8A8, AWQ/GPTQ-like."""


BF16_HEAD = "bf16 head"

CONTROL = "control"
"""Weights rounded to 16 bits: no engine does that. In a bfloat16 body it is the same model with other rounding errors."""

_ALL = SCHEMES | {CONTROL: Scheme(lambda w: integers(w, per_row(w), bits=16)), BF16_HEAD: Scheme(head=True)}


class _Rounding(TorchFunctionMode):
    """Every linear layer that runs inside is rounded, routers (`experts` outputs) excepted: engines leave those alone."""

    def __init__(self, scheme: Scheme, experts: int) -> None:
        super().__init__()
        self.scheme, self.experts = scheme, experts

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is not linear or args[1].shape[0] == self.experts:
            return func(*args, **(kwargs or {}))
        x, weight, *bias = args
        bias = bias[0] if bias else (kwargs or {}).get("bias")
        w32, x32 = weight.float(), x.float()
        w32 = w32 if self.scheme.weights is None else self.scheme.weights(w32)
        x32 = x32 if self.scheme.inputs is None else self.scheme.inputs(x32)
        return linear(x32, w32, None if bias is None else bias.float()).to(x.dtype)


def _fp8_kv_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **other: Any) -> tuple[Tensor, None]:
    def rounded(values: Tensor) -> Tensor:
        return values.clamp(-E4M3_MAX, E4M3_MAX).to(E4M3).to(values.dtype)
    return packed_attention(module, query, rounded(key), rounded(value), attention_mask, **other)


AttentionInterface.register(NAME, _fp8_kv_attention)


class _Quantised:
    """A ShadowModel whose body runs under a scheme; everything else is the model's."""

    def __init__(self, model: ShadowModel, scheme: Scheme) -> None:
        self._model, self._scheme = model, scheme

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def replica(self, index: int) -> _Quantised:
        return _Quantised(self._model.replica(index), self._scheme)

    def packed(self, *args: Any) -> Tensor:
        with self._running():
            return self._model.packed(*args)

    def one_row(self, *args: Any) -> Tensor:
        with self._running():
            return self._model.one_row(*args)

    def logits(self, hidden_NH: Tensor) -> Tensor:
        if not self._scheme.head:
            return self._model.logits(hidden_NH)
        return self._model.logits(hidden_NH.bfloat16().to(hidden_NH.dtype)).bfloat16().float()

    @contextmanager
    def _running(self) -> Iterator[None]:
        if self._scheme.kv:
            with self._model.attending(NAME):
                yield
            return
        with _Rounding(self._scheme, self._model.experts):
            yield


class _Shelf:
    """The scorer's own shelf, its models under a scheme."""

    def __init__(self, shelf: Any, scheme: Scheme) -> None:
        self._shelf, self._scheme = shelf, scheme

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shelf, name)

    def get(self, version: str) -> _Quantised:
        return _Quantised(self._shelf.get(version), self._scheme)


def quantised(scorer: ShadowScorer, scheme: str) -> ShadowScorer:
    """A scorer beside `scorer`, on the same loaded weights, under one of SCHEMES, BF16_HEAD or CONTROL. It keeps its own prompts' KV.

    A model whose layers cannot be packed keeps its KV cache as it is: "fp8 KV cache" then raises where it scores.

    Raises:
        KeyError: no such scheme.
    """
    return ShadowScorer(scorer.config, _Shelf(scorer.shelf, _ALL[scheme]))  # type: ignore[arg-type]
