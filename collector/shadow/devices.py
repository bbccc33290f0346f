"""Where the scorer computes: one device, several by layer (a model too big for one) or by replica (more tokens a second)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from collector.config import ShadowConfig
from collector.errors import ConfigError, Unavailable


def pick_device(name: str) -> torch.device:
    """The torch device of a config value ("auto", "cpu", "cuda:1", …).

    Raises:
        ConfigError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"shadow.device: {name!r} is no device; write auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"shadow.device: {name!r} is asked for, but torch sees no CUDA device; write auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"shadow.device: {name!r} is asked for, but torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def pick_devices(config: ShadowConfig) -> tuple[torch.device, ...]:
    """`shadow.devices`, or the one `shadow.device`.

    Raises:
        ConfigError: one of them does not exist here.
    """
    return tuple(pick_device(name) for name in config.devices or [config.device])


def sized(config: ShadowConfig) -> ShadowConfig:
    """The config with the sizes it leaves open: on a CPU what fits its caches and 256 MiB, on a GPU what keeps it busy.

    Raises:
        ConfigError: a device does not exist here.
    """
    on_gpu = pick_devices(config)[0].type == "cuda"
    return config.model_copy(update={"logits_mb": config.logits_mb or (512 if on_gpu else 16),
                                     "forward_tokens": config.forward_tokens or (8192 if on_gpu else 512)})


def replicas(config: ShadowConfig) -> int:
    """How many whole models score beside one another."""
    return max(1, len(config.devices)) if config.split == "replicas" else 1


def place(model: Any, devices: tuple[torch.device, ...]) -> torch.device:
    """Put a model on its devices, equal numbers of layers on each, and return where its hidden states come out.

    The embedding is on the first device, the norm and the head on the last; a tied head is copied there.

    Raises:
        Unavailable: its layers cannot be found.
    """
    if len(devices) == 1:
        model.to(devices[0])
        return devices[0]
    body = model.base_model
    layers = getattr(body, "layers", None) or getattr(body, "h", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) < len(devices):
        raise Unavailable(f"{type(model).__name__} cannot be split over {len(devices)} devices by layer: use split = \"replicas\"")
    model.to(devices[0])
    for index, layer in enumerate(layers):
        _move(layer, devices[index * len(devices) // len(layers)])
    for name, module in body.named_children():
        if "norm" in name or name == "ln_f":
            _move(module, devices[-1])
    head = model.get_output_embeddings()  # transformers' own forward, which every load is checked against, must still run
    _move(head, devices[0] if head.weight is model.get_input_embeddings().weight else devices[-1])
    return devices[-1]


def _move(module: nn.Module, device: torch.device) -> None:
    """A module on a device, to which its inputs follow."""
    module.to(device)

    def follow(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), (args, kwargs))

    module.register_forward_pre_hook(follow, with_kwargs=True)
