"""bfloat16 autocast, also on CPUs without bfloat16 units.

There PyTorch's bfloat16 matmuls are ten to thirty times slower than float32 ones. So the same roundings are made by
hand: inputs and weights are rounded to bfloat16, the product is summed in float32, the output is rounded to bfloat16.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Round(torch.autograd.Function):
    """Round to bfloat16 values (kept as float32); the gradient is rounded the same way, as autocast's casts do."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.bfloat16().float()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad.bfloat16().float()


class RoundedLinear(nn.Module):
    """A linear layer with autocast's roundings on float32 kernels. Shares the master weight of the layer it replaces."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return _Round.apply(functional.linear(_Round.apply(x), _Round.apply(self.weight), self.bias))


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matmuls are fast here."""
    return device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def round_linears(body: nn.Module) -> None:
    """Replace every linear layer of the body by its hand-rounded twin."""
    for module in list(body.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, RoundedLinear(child))


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bfloat16 autocast where the hardware has it; otherwise nothing, the layers round by themselves."""
    return torch.autocast(device.type, torch.bfloat16) if has_bfloat16(device) else contextlib.nullcontext()
