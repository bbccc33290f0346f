"""Small random models and engines that generate with them token by token, for tests of the diagnosis. None of Klaxon's code computes a logprob here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from collector.config import ShadowConfig
from collector.records import Rollout, Sampling, WeightSpan
from collector.shadow.model import model_shelf
from collector.shadow.scorer import ShadowScorer
from collector.weights.checkpoint import inspect

VOCABULARY, PROMPT, TOKENS, ROLLOUTS = 64, 6, 40, 14
SHAPE: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
                         "num_key_value_heads": 2, "initializer_range": 0.15}


def write_dense(folder: Path) -> Path:
    """A random Llama."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)
    return folder


def write_experts(folder: Path) -> Path:
    """A random Mixtral of 8 experts, 2 a token."""
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=8, num_experts_per_tok=2)).save_pretrained(folder)
    return folder


def write_update(source: Path, folder: Path, *, size: float, seed: int = 1) -> Path:
    """The same model after every weight matrix moved by `size` of its spread."""
    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * parameter.std() * size)
    model.save_pretrained(folder)
    return folder


def prompts(count: int, *, seed: int = 3) -> torch.Tensor:
    """Random ids [count, PROMPT]."""
    return torch.randint(0, VOCABULARY, (count, PROMPT), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def generate(model: nn.Module, ids_P: torch.Tensor, *, seed: int, then: nn.Module | None = None, cut: int = TOKENS, keep: bool = False,
             tokens: int = TOKENS) -> tuple[list[int], list[float]]:
    """One completion sampled at T = 1 and its logprobs. From token `cut` on by `then`, on the KV so far (`keep`) or on KV of its own."""
    generator = torch.Generator().manual_seed(seed)
    cache, feed, ids, logprobs = DynamicCache(), ids_P[None], ids_P.tolist(), []
    for t in range(tokens):
        if t == cut and not keep:
            cache, feed = DynamicCache(), torch.tensor([ids])
        out = (then if then is not None and t >= cut else model)(input_ids=feed, past_key_values=cache, use_cache=True)
        row_V = out.logits[0, -1].float().log_softmax(-1)
        token = int(torch.multinomial(row_V.exp(), 1, generator=generator))
        ids, feed = [*ids, token], torch.tensor([[token]])
        logprobs.append(float(row_V[token]))
    return ids[len(ids) - tokens:], logprobs


def rollout(name: str, ids_P: torch.Tensor, made: tuple[Sequence[int], Sequence[float]], *, spans: Sequence[tuple[int, int, str]] = (),
            version: str = "1") -> Rollout:
    """A rollout as a float32 engine reports it; `spans` in place of the one version."""
    tokens, logprobs = made
    said = spans or [(0, len(tokens), version)]
    return Rollout(
        request_id=name, prompt_tokens_P=ids_P.numpy().astype(np.int32), completion_tokens_T=np.array(tokens, dtype=np.int32),
        engine_logprobs_T=np.array(logprobs, dtype=np.float32), sampled_mask_T=np.ones(len(tokens), dtype=bool), sampling=Sampling(temperature=1.0),
        engine_dtype="float32", weight_versions=tuple(WeightSpan(start=a, end=b, version=v) for a, b, v in said))


def scorer_of(*folders: Path, **settings: Any) -> ShadowScorer:
    """A float32 shadow; the folders are versions "1", "2", …"""
    config = ShadowConfig(**{"body_dtype": "float32", **settings})
    return ShadowScorer(config, model_shelf(config, [inspect(folder, version=str(i)) for i, folder in enumerate(folders, start=1)]))
