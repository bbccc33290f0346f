"""LoRA adapter folders as PEFT writes them: what adapter_config.json asks for, and whether Klaxon can merge it.

Only what is understood exactly is accepted: W + scale · B·A on linear layers. DoRA, extra trained modules, trained biases or
embeddings, and initialisations that change the base itself are refused by name.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from collector.errors import Unavailable

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_REFUSED = {
    "use_dora": "DoRA scales every row by a trained magnitude",
    "modules_to_save": "it carries whole trained modules besides",
    "layer_replication": "it repeats layers of the base",
    "trainable_token_indices": "it trains single embeddings",
    "lora_bias": "its B has a bias",
    "alora_invocation_tokens": "it acts on a part of the tokens only",
    "use_qalora": "QALoRA pools the inputs",
    "target_parameters": "it adapts bare parameters, not linear layers",
}
_BASE_CHANGED = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A readable LoRA: how each pair is scaled."""

    folder: Path
    r: int
    alpha: float
    rank_stabilised: bool  # use_rslora: alpha / √r instead of alpha / r
    transposed: bool  # fan_in_fan_out: the base stores its weights [in, out]
    ranks: dict[str, int] = field(default_factory=dict)  # PEFT's rank_pattern, keys are regular expressions
    alphas: dict[str, float] = field(default_factory=dict)

    def scale(self, module: str) -> float:
        """What B·A of this module is multiplied by."""
        r, alpha = _pattern(self.ranks, module, self.r), _pattern(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(r) if self.rank_stabilised else r)


def is_adapter(folder: Path) -> bool:
    """Does the folder hold an adapter and no whole model?"""
    return (folder / CONFIG).is_file() and not any(file.name != TENSORS for file in folder.glob("*.safetensors"))


def read_adapter(folder: str | Path) -> Adapter:
    """The adapter's settings.

    Raises:
        Unavailable: not there, damaged, or of a kind Klaxon does not merge; the text says which.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unavailable(f"{folder}: no {CONFIG} yet") from None
    except (OSError, ValueError) as error:
        raise Unavailable(f"{folder / CONFIG}: half-written or damaged: {error}") from None
    if not isinstance(config, dict):
        raise Unavailable(f"{folder / CONFIG}: is not a JSON object")
    if why := _why_not(config):
        raise Unavailable(f"{folder}: this adapter cannot be merged: {why}; publish merged weights instead")
    try:
        return Adapter(folder=folder, r=int(config["r"]), alpha=float(config["lora_alpha"]), rank_stabilised=bool(config.get("use_rslora")),
                       transposed=bool(config.get("fan_in_fan_out")), ranks={k: int(v) for k, v in (config.get("rank_pattern") or {}).items()},
                       alphas={k: float(v) for k, v in (config.get("alpha_pattern") or {}).items()})
    except (KeyError, TypeError, ValueError) as error:
        raise Unavailable(f"{folder / CONFIG}: r and lora_alpha cannot be read ({type(error).__name__}: {error})") from None


def _why_not(config: dict[str, Any]) -> str | None:
    if config.get("peft_type") != "LORA":
        return f"peft_type is {config.get('peft_type')!r}, only LORA is known"
    for key, why in _REFUSED.items():
        if config.get(key):
            return f"{key} is set ({why})"
    if config.get("bias", "none") != "none":
        return f"bias is {config['bias']!r} (it trains biases of the base)"
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_BASE_CHANGED):
        return f"init_lora_weights is {start!r} (it changes the base weights, which are not in this folder)"
    return None


def _pattern(patterns: dict[str, Any], module: str, default: Any) -> Any:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)
