"""The language-model head applied by hand, because its precision is the question. docs/numerics.md has the measurements.

Products of two bfloat16 numbers are exact in float32, so 16-bit matmuls with float32 sums and output are the float32 head of 16-bit
hidden states and weights. A float32 head is split into three bfloat16 parts (8 + 8 + 8 of its 24 bits): as many such matmuls.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_PARTS = 3  # of 8 significant bits each


class Head:
    """N = tokens, H = hidden size, V = vocabulary the trainer's softmax runs over."""

    def __init__(self, weight_VH: Tensor, bias_V: Tensor | None, config: Any, *, dtype: torch.dtype, split: bool = False) -> None:
        """`weight_VH` as stored; `config` is the text model's; `dtype` the trainer's head; `split`: multiply float32 heads in
        bfloat16 parts (the way of CUDA, where float32 matmuls are slow)."""
        self.dtype, self._config = dtype, config
        self.split = split and dtype is torch.float32 and weight_VH.dtype is torch.float32
        self.weight = parts(weight_VH) if self.split else (stored(weight_VH, dtype),)
        self.bias_V = bias_V

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.weight[0].shape[0])

    @property
    def device(self) -> torch.device:
        """Where it multiplies."""
        return self.weight[0].device

    def refill(self, weight_VH: Tensor, bias_V: Tensor | None) -> None:
        """Take over another version's weights in place."""
        new = parts(weight_VH.float()) if self.split else (stored(weight_VH, self.dtype),)
        for mine, other in zip(self.weight, new, strict=True):
            mine.copy_(other)
        if self.bias_V is not None and bias_V is not None:
            self.bias_V.copy_(bias_V)

    @torch.inference_mode()
    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V], float32 (float64 for a float64 head), as the trainer's head computes them."""
        wide = torch.float64 if self.dtype is torch.float64 else torch.float32
        if self.dtype in (torch.bfloat16, torch.float16):  # rounded inputs, float32 sums, rounded output
            hidden_NH = hidden_NH.to(self.dtype)
        logits_NV = self._matmul(hidden_NH, wide)
        if self.bias_V is not None:
            logits_NV += self.bias_V.to(wide)
        return self._after(logits_NV.to(self.dtype).to(wide))

    def _matmul(self, hidden_NH: Tensor, wide: torch.dtype) -> Tensor:
        weight_VH = self.weight[0]
        if self.split:
            return split_matmul(hidden_NH, self.weight)
        if hidden_NH.is_cuda and weight_VH.dtype.itemsize == 2 and hidden_NH.dtype == weight_VH.dtype:
            return exact_matmul(hidden_NH, weight_VH)
        if hidden_NH.is_cuda and weight_VH.dtype is torch.bfloat16 and wide is torch.float32:  # a float32 body
            return split_matmul(hidden_NH, (weight_VH,))
        return functional.linear(hidden_NH.to(wide), weight_VH.to(wide))

    def _after(self, logits_NV: Tensor) -> Tensor:
        """Soft cap or scale, in place."""
        if (cap := getattr(self._config, "final_logit_softcapping", None)) is not None:  # Gemma
            return logits_NV.div_(cap).tanh_().mul_(cap)
        if (scale := getattr(self._config, "logit_scale", None)) is not None:  # Cohere
            return logits_NV.mul_(scale)
        if (divisor := getattr(self._config, "logits_scaling", None)) is not None:  # Granite
            return logits_NV.div_(divisor)
        return logits_NV


def stored(weight_VH: Tensor, dtype: torch.dtype) -> Tensor:
    """The head matrix as the matmul wants it: 16-bit on CUDA where that is exact, widened once on a CPU."""
    if dtype in (torch.bfloat16, torch.float16):
        weight_VH = weight_VH.to(dtype)
    if weight_VH.is_cuda and weight_VH.dtype.itemsize == 2:
        return weight_VH
    return weight_VH.to(torch.float64 if dtype is torch.float64 else torch.float32)


def parts(values: Tensor) -> tuple[Tensor, ...]:
    """bfloat16 tensors that add up to float32 `values`, the largest first; what is left is below 2⁻²⁴ of the value."""
    found, rest = [], values.float()
    for _ in range(_PARTS):
        found.append(rest.bfloat16())
        rest = rest - found[-1].float()
    return tuple(found)


def exact_matmul(hidden_NH: Tensor, weight_VH: Tensor) -> Tensor:
    """hidden · Wᵀ of 16-bit numbers with float32 sums and output: tensor cores on CUDA, widened numbers elsewhere."""
    if hidden_NH.is_cuda:
        return torch.mm(hidden_NH, weight_VH.t(), out_dtype=torch.float32)
    return functional.linear(hidden_NH.float(), weight_VH.float())


def split_matmul(hidden_NH: Tensor, weight_parts: tuple[Tensor, ...]) -> Tensor:
    """hidden · Wᵀ in bfloat16 parts, the smallest products first; products below 2⁻²⁴ of the largest are left out."""
    hidden_parts = (hidden_NH,) if hidden_NH.dtype is torch.bfloat16 else parts(hidden_NH)
    pairs = [(i, j) for i in range(len(hidden_parts)) for j in range(len(weight_parts)) if i + j < _PARTS]
    total_NV: Tensor | None = None
    for i, j in sorted(pairs, key=sum, reverse=True):
        product_NV = exact_matmul(hidden_parts[i], weight_parts[j])
        total_NV = product_NV if total_NV is None else total_NV.add_(product_NV)
    if total_NV is None:
        raise ValueError("a head without weights")
    return total_NV
