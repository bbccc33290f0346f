"""The scorer on other architectures, vocabularies and devices, each against a plain float64 forward."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_collector_shadow import SIZES, V, close, make_model, reference, rollout, scorer
from transformers import (Gemma2Config, GptOssConfig, LlamaConfig, MistralConfig, MixtralConfig, Qwen2Config,
                          Qwen3MoeConfig)

from collector.config import ShadowConfig
from collector.errors import ConfigError, Unavailable
from collector.shadow.devices import pick_devices
from collector.shadow.head import Head, parts
from collector.shadow.model import ShadowModel
from collector.shadow.verify import can_pack
from klaxon.demo.model import DEFAULT_FOLDER, prepare_model

CONFIGS = {
    "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "untied": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "biased": Qwen2Config(**SIZES),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "qwen3-moe": Qwen3MoeConfig(**SIZES, moe_intermediate_size=24, num_experts=6, num_experts_per_tok=2),
    "sliding": MistralConfig(**SIZES, sliding_window=8),
    "gemma-2": Gemma2Config(**SIZES, final_logit_softcapping=2.0, attn_logit_softcapping=1.5, sliding_window=8, query_pre_attn_scalar=8),
    "sinks": GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
}


def mixed():
    shared = list(range(3, 40))
    return [rollout(1, tokens=25), rollout(2, prompt=1, tokens=1), *(rollout(10 + i, prompt=shared, tokens=n) for i, n in enumerate((1, 12, 30)))]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_packs_and_equals_float64(name: str, tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", 1, config=CONFIGS[name])
    score = scorer({"1": path}, forward_tokens=50)
    assert score.shelf.get("1").packs
    for got, item in zip(score.score(mixed()), mixed(), strict=True):
        close(got.views["expected"], reference(path, item), atol=3e-5)
    assert score.counts["body_tokens"] == 9 + 24 + 1 + 37 + 11 + 29, "no padding, and the group's prompt once"


def test_layers_that_cannot_be_packed_run_one_rollout_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.shadow.model.can_pack", lambda _: False)
    path = make_model(tmp_path / "model", 1)
    score = scorer({"1": path}, forward_tokens=20)
    assert not score.shelf.get("1").packs
    for got, item in zip(score.score(mixed()), mixed(), strict=True):
        close(got.views["expected"], reference(path, item))


def test_an_attention_that_differs_from_transformers_is_noticed_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.shadow.attention._mask", lambda rows, ahead, window, device: torch.ones(rows, ahead + rows, dtype=torch.bool))
    path = make_model(tmp_path / "model", 1)
    assert not ShadowModel.load(path, ShadowConfig(body_dtype="float32")).packs


@pytest.mark.engine
def test_the_demos_model_packs_in_bfloat16_whatever_an_update_does_to_it() -> None:
    model = ShadowModel.load(prepare_model(Path(__file__).parent.parent / DEFAULT_FOLDER, say=print), ShadowConfig(body_dtype="bfloat16"))
    found = []
    for seed in range(4):
        torch.manual_seed(seed)
        for parameter in model._model.parameters():
            parameter.data += parameter.data * torch.randn_like(parameter.data) * 0.003
        found.append(can_pack(model))
    assert found == [True] * 4


def test_a_version_that_packs_before_one_that_does_not_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([True, False])
    monkeypatch.setattr("collector.shadow.model.can_pack", lambda _: next(answers))
    score = scorer({"1": make_model(tmp_path / "1", 1), "2": make_model(tmp_path / "2", 2)})
    score.shelf.get("1"), score.shelf.get("2")
    item = rollout(1, tokens=6, spans=[(0, 6, "2")], cached_prompt_tokens=6)
    (got,) = score.score([item], prefix_version="1")
    (plain,) = score.score([item])
    assert not got.scored_mask_T.any() and plain.scored_mask_T.all()
    assert "one packs, one does not" in score.refusals[-1].text


def padded(tmp_path: Path, rows: int) -> tuple[Path, Path]:
    """A model, and the same with `rows` more rows of large numbers in its tables, as converters leave them."""
    plain = make_model(tmp_path / "plain", 1, config=LlamaConfig(**SIZES, tie_word_embeddings=False))
    tensors = load_file(plain / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.full((rows, tensors[name].shape[1]), 0.5)])
    folder = tmp_path / "padded"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((plain / "config.json").read_text())
    return plain, folder


def test_rows_padded_beyond_the_vocabulary_stay_out_of_the_softmax(tmp_path: Path) -> None:
    plain, folder = padded(tmp_path, 7)
    item = rollout(1)
    score = scorer({"1": folder})
    close(score.score([item])[0].views["expected"], reference(plain, item))
    score.score([rollout(2, prompt=[1, V])])
    assert score.refusals[-1].kind == "token_out_of_range" and f"ends at {V - 1}" in score.refusals[-1].text


def test_a_trainer_that_keeps_the_padded_rows_says_so(tmp_path: Path) -> None:
    plain, folder = padded(tmp_path, 7)
    config = json.loads((plain / "config.json").read_text()) | {"vocab_size": V + 7}
    (folder / "config.json").write_text(json.dumps(config))
    item = rollout(1)
    whole = reference(folder, item)
    assert np.abs(whole - reference(plain, item)).max() > 0.01, "the padded rows must matter for this to mean anything"
    close(scorer({"1": folder}).score([item])[0].views["expected"], whole)
    close(scorer({"1": folder}, vocab_size=V).score([item])[0].views["expected"], reference(plain, item))
    (folder / "config.json").write_text((plain / "config.json").read_text())
    close(scorer({"1": folder}, vocab_size=V + 7).score([item])[0].views["expected"], whole)


def test_a_vocabulary_the_checkpoint_does_not_have_is_refused(tmp_path: Path) -> None:
    plain, folder = padded(tmp_path, 7)
    with pytest.raises(Unavailable, match=r"its head has 97 rows, shadow.vocab_size = 128"):
        ShadowModel.load(plain, ShadowConfig(body_dtype="float32", vocab_size=128))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:V].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Unavailable, match="different numbers of rows"):
        ShadowModel.load(folder, ShadowConfig(body_dtype="float32"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_float32_head_in_bfloat16_parts_is_exact(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    weight_VH, hidden_NH = torch.randn(2000, 256) * 0.3, torch.randn(16, 256).to(dtype)
    assert (sum(part.double() for part in parts(weight_VH)) - weight_VH.double()).abs().max() < 2**-22
    head = Head(weight_VH, None, LlamaConfig(), dtype=torch.float32, split=True)
    assert [part.dtype for part in head.weight] == [torch.bfloat16] * 3
    want = torch.log_softmax(hidden_NH.double() @ weight_VH.double().T, -1)
    assert (torch.log_softmax(head.logits(hidden_NH), -1).double() - want).abs().max() < 1e-5
    head.refill(weight_VH / 2, None)
    assert (head.logits(hidden_NH).double() - hidden_NH.double() @ (weight_VH / 2).double().T).abs().max() < 1e-5


@pytest.mark.parametrize("split", ["layers", "replicas"])
@pytest.mark.parametrize("tied", [True, False])
def test_several_devices_score_as_one(tmp_path: Path, split: str, tied: bool) -> None:
    paths = {name: make_model(tmp_path / name, int(name), config=LlamaConfig(**SIZES, tie_word_embeddings=tied)) for name in ("1", "2")}
    score = scorer(paths, devices=["cpu", "cpu"], split=split, versions_held=1)
    assert len(score.prompts) == (2 if split == "replicas" else 1)
    for version in ("1", "2"):
        for got, item in zip(score.score(mixed(), version=version), mixed(), strict=True):
            close(got.views["expected"], reference(paths[version], item))
    assert score.counts["tokens_scored"] == 2 * sum(item.n_tokens for item in mixed())


def test_devices_that_do_not_exist_are_named() -> None:
    with pytest.raises(ConfigError, match="'warp:1' is no device"):
        pick_devices(ShadowConfig(devices=["cpu", "warp:1"]))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees no CUDA device"):
            pick_devices(ShadowConfig(devices=["cuda:0", "cuda:1"]))


def test_more_devices_than_layers_are_refused(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", 1)
    with pytest.raises(Unavailable, match='use split = "replicas"'):
        ShadowModel.load(path, ShadowConfig(body_dtype="float32", devices=["cpu"] * 3))


def test_a_bfloat16_mixture_of_experts_stays_near_float64(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", 1, config=CONFIGS["mixtral"], dtype=torch.bfloat16)
    item = rollout(1, tokens=30)
    (got,) = scorer({"1": path}, body_dtype="bfloat16").score([item])
    gap = np.abs(got.views["expected"] - reference(path, item))
    assert got.scored_mask_T.all() and np.median(gap) < 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_packed_forward_on_cuda_equals_float64(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", 1)
    for got, item in zip(scorer({"1": path}, device="cuda").score(mixed()), mixed(), strict=True):
        close(got.views["expected"], reference(path, item), atol=1e-4)
