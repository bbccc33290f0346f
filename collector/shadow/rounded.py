"""bfloat16 linear layers on CPUs without bfloat16 units (docs/numerics.md)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from collector.config import ShadowConfig


class RoundedLinear(nn.Module):
    """A bfloat16 linear layer on float32 kernels: inputs and weights are bfloat16 values, the sum is float32, the
    output is rounded to bfloat16 once. Exactly the roundings of a bfloat16 matmul; only the order of the sum differs.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(linear.weight.detach().float(), requires_grad=False)
        bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.float(), self.weight, self.bias).to(x.dtype)


def wants_rounding(config: ShadowConfig) -> bool:
    """Are bfloat16 matmuls on this CPU to run on float32 kernels?"""
    if config.bf16_on_cpu != "auto":
        return config.bf16_on_cpu == "rounded"
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def round_linears(body: nn.Module) -> None:
    """Replace every linear layer of the body."""
    for module in list(body.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, RoundedLinear(child))
