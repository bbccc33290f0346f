"""An engine that forgot the adapter: tokens really sampled from the base model, labelled with the adapter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from collector.config import ShadowConfig
from collector.records import Rollout, Sampling, WeightSpan
from collector.shadow.model import model_shelf
from collector.shadow.scorer import ShadowScorer
from collector.weights.checkpoint import inspect
from diagnosis.compete import diagnose
from diagnosis.config import DiagnosisConfig
from diagnosis.prompts import Marks

ROLLOUTS, TOKENS = 14, 40


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random model of 64 tokens, and a LoRA on its q_proj and v_proj."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    base, adapter = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("adapter")
    shape = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                        initializer_range=0.2)
    model = LlamaForCausalLM(shape)
    model.save_pretrained(base)
    pairs = {}
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            pairs[f"base_model.model.{name}.lora_A.weight"] = torch.randn(4, module.in_features) * 0.1
            pairs[f"base_model.model.{name}.lora_B.weight"] = torch.randn(module.out_features, 4) * 0.1
    save_file(pairs, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none", "task_type": "CAUSAL_LM"}))
    return base, adapter


def generated(folder: Path, *, adapter: Path | None, seed: int) -> list[Rollout]:
    """Rollouts sampled token by token from the folder's model, with the adapter merged where one is given."""
    import torch
    from transformers import AutoModelForCausalLM

    from collector.shadow.lora import LoraMerge

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if adapter is not None:
        LoraMerge(adapter).into(model)
    torch.manual_seed(seed)
    prompts = torch.randint(0, 64, (ROLLOUTS, 6))
    ids, logprobs = prompts, []
    with torch.inference_mode():
        for _ in range(TOKENS):
            rows = model(input_ids=ids).logits[:, -1].log_softmax(-1)
            new = torch.multinomial(rows.exp(), 1)
            ids, logprobs = torch.cat([ids, new], 1), [*logprobs, rows.gather(1, new)]
    values = torch.cat(logprobs, 1).numpy()
    return [Rollout(
        request_id=f"r{i}", prompt_tokens_P=prompts[i].numpy().astype(np.int32), completion_tokens_T=ids[i, 6:].numpy().astype(np.int32),
        engine_logprobs_T=values[i], sampled_mask_T=np.ones(TOKENS, dtype=bool), sampling=Sampling(temperature=1.0), engine_dtype="float32",
        weight_versions=(WeightSpan(start=0, end=TOKENS, version="a"),)) for i in range(ROLLOUTS)]


@pytest.mark.parametrize(("applied", "verdict"), [(False, "lora_not_applied"), (True, "healthy")])
def test_a_forgotten_adapter_is_named_and_an_applied_one_is_healthy(folders: tuple[Path, Path], applied: bool, verdict: str) -> None:
    base, adapter = folders
    config = ShadowConfig(body_dtype="float32")
    known = inspect(adapter, version="a", base=str(base))
    scorer = ShadowScorer(config, model_shelf(config, [known]))
    rollouts = generated(base, adapter=adapter if applied else None, seed=3)
    found = diagnose(rollouts, scorer, versions=["a"], config=DiagnosisConfig(), marks=Marks())
    assert (found.verdict, found.confident) == (verdict, True)
    assert scorer.shelf.versions() == ["a"]
    if not applied:
        assert "lora-modules" in found.fix and any("14 of 14 rollouts" in text for text in found.causes[0].evidence)
