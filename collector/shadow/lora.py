"""Merge a LoRA adapter onto its base: W + scale · B·A, in float32, rounded to the weight's dtype once.

A trainer that keeps the adapter apart computes x·Wᵀ + scale · (x·Aᵀ)·Bᵀ; merging rounds W once more, which in bfloat16 is noise
of the size of the floor, not a bias. Engines differ in the same way (merged or punica kernels).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from collector.errors import Unavailable
from collector.weights.adapter import TENSORS, Adapter, read_adapter

_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")


class LoraMerge:
    """The pairs of one adapter folder."""

    def __init__(self, folder: str | Path) -> None:
        """Read every pair.

        Raises:
            Unavailable: unreadable, a tensor that is no part of a pair, or a pair that is not complete.
        """
        self.adapter: Adapter = read_adapter(folder)
        self._pairs: dict[str, dict[str, Tensor]] = {}
        try:
            with safe_open(Path(folder) / TENSORS, framework="pt") as tensors:
                for name in tensors.keys():
                    found = _KEY.fullmatch(name)
                    if found is None:
                        raise Unavailable(f"{folder}: {name} is no LoRA of a linear layer: this adapter cannot be merged")
                    self._pairs.setdefault(found["module"], {})[found["side"]] = tensors.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise Unavailable(f"{Path(folder) / TENSORS}: cannot be read ({error})") from None
        lone = [name for name, pair in self._pairs.items() if len(pair) != 2]
        if lone or not self._pairs:
            raise Unavailable(f"{folder}: {f'{lone[0]} has only one of lora_A and lora_B' if lone else 'it holds no tensor'}")

    def into(self, model: Any) -> None:
        """Add every pair to the model's weights; new tensors, the loaded file stays as it is.

        Raises:
            Unavailable: the base has no such layer, another shape, or the layer shares its weight with the embedding.
        """
        owners: dict[int, int] = {}
        for _, parameter in model.named_parameters(remove_duplicate=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        for name in self._pairs:
            try:
                module = model.get_submodule(name)
            except AttributeError:
                raise Unavailable(f"{self.adapter.folder}: the base has no layer {name}: is [weights] base the right model?") from None
            weight = getattr(module, "weight", None)
            if weight is None or owners.get(id(weight), 0) > 1:
                raise Unavailable(f"{self.adapter.folder}: {name} shares its weight with another layer: merging would change both")
            weight.data = self.merged(name, weight.data)

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """`weight` of module `name` with its pair added; itself where the adapter leaves it alone.

        Raises:
            Unavailable: of another shape.
        """
        pair = self._pairs.get(name)
        if pair is None:
            return weight
        a, b = pair["A"].to(weight.device, torch.float32), pair["B"].to(weight.device, torch.float32)
        fits = a.ndim == 2 and b.ndim == 2 and a.shape[0] == b.shape[1]
        delta = self.adapter.scale(name) * (b @ a) if fits else b
        delta = delta.T if self.adapter.transposed else delta
        if not fits or delta.shape != weight.shape:
            raise Unavailable(f"{self.adapter.folder}: {name} is {list(weight.shape)} in the base, lora_B·lora_A is {list(b.shape)} × {list(a.shape)}: "
                              "is [weights] base the right model?")
        return (weight.float() + delta).to(weight.dtype) if weight.dtype.itemsize < 8 else weight + delta.to(weight.dtype)
