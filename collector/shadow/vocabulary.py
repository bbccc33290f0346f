"""How many rows of the head the trainer's softmax runs over, and checkpoints that hold more.

Megatron pads the vocabulary to a multiple of its tensor parallelism and some converters write those rows; engines pad inside and
cut again. config.json's vocab_size is what a trainer on transformers sees; `shadow.vocab_size` says otherwise where a trainer
does keep the padded rows in its softmax.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from collector.config import ShadowConfig
from collector.errors import Unavailable

_TABLES = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight", "embed_out.weight")


def vocabulary(folder: Path, model: Any, config: ShadowConfig) -> int:
    """V of a loaded model.

    Raises:
        Unavailable: `shadow.vocab_size` asks for more rows than the head has.
    """
    rows = int(model.get_output_embeddings().weight.shape[0])
    if config.vocab_size > rows:
        raise Unavailable(f"{folder}: its head has {rows} rows, shadow.vocab_size = {config.vocab_size}: is it the trainer's model?")
    return config.vocab_size or min(rows, _declared(_config(folder)))


def padded_config(folder: Path) -> Any:
    """The folder's config with vocab_size raised to the rows its tables really have, where those are more.

    Raises:
        Unavailable: the embedding and the head have different numbers of rows, or config.json is not understood.
    """
    config, rows = _config(folder), _stored_rows(folder)
    if len(set(rows.values())) > 1:
        text = ", ".join(f"{name} {count}" for name, count in sorted(rows.items()))
        raise Unavailable(f"{folder}: its tables have different numbers of rows ({text}): padded by a converter? Write them alike")
    found = next(iter(rows.values()), 0)
    if found > _declared(config):
        config.get_text_config().vocab_size = found
    return config


def _config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise Unavailable(f"{folder} cannot be loaded as a causal language model: {error}") from error


def _declared(config: Any) -> int:
    return int(config.get_text_config().vocab_size)


def _stored_rows(folder: Path) -> dict[str, int]:
    """Table name → rows, from the headers of the safetensors files."""
    found = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():
                    if name.endswith(_TABLES):
                        found[name] = int(tensors.get_slice(name).get_shape()[0])
    except (OSError, SafetensorError) as error:
        raise Unavailable(f"{folder}: cannot be read ({error})") from None
    return found
