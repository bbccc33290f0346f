"""The shadow scorer against a plain full forward in float64, for every way a rollout can be put together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Gemma2Config, LlamaConfig

from collector.config import ShadowConfig
from collector.errors import Unavailable
from collector.records import Rollout, Sampling, WeightSpan
from collector.shadow.head import Head
from collector.shadow.model import RoundedLinear, ShadowModel, model_shelf
from collector.shadow.scorer import ShadowScorer
from collector.shadow.views import VIEWS, temperature_views
from collector.weights.checkpoint import inspect

V, T07 = 97, Sampling(temperature=0.7)
SIZES = dict(vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.15, head_dim=8)


def make_model(folder: Path, seed: int, *, config=None, dtype=torch.float32) -> Path:
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config or LlamaConfig(**SIZES)).to(dtype).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three weight versions of one tiny model."""
    root = tmp_path_factory.mktemp("weights")
    return {name: make_model(root / name, seed) for seed, name in enumerate(("1", "2", "3"))}


def scorer(models: dict[str, Path], **config) -> ShadowScorer:
    one = ShadowConfig(**{"body_dtype": "float32", "chunk_tokens": 5, **config})
    return ShadowScorer(one, model_shelf(one, [inspect(path, version=name) for name, path in models.items()]))


def rollout(seed: int, *, prompt=9, tokens=12, spans=None, sampling=T07, **fields) -> Rollout:
    """`prompt` is a length or the token ids themselves."""
    rng = np.random.default_rng(seed)
    prompt_P = rng.integers(0, V, prompt) if isinstance(prompt, int) else np.array(prompt)
    values = dict(request_id=f"r{seed}", prompt_tokens_P=prompt_P.astype(np.int32),
                  completion_tokens_T=rng.integers(0, V, tokens).astype(np.int32),
                  engine_logprobs_T=np.full(tokens, -1.0, np.float32), sampled_mask_T=np.ones(tokens, bool), sampling=sampling,
                  weight_versions=tuple(WeightSpan(start=s, end=e, version=v) for s, e, v in spans or [(0, tokens, "1")]))
    return Rollout(**(values | fields))


def load64(path: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager").eval()


@torch.no_grad()
def reference(path: Path, item: Rollout, temperature: float = 0.7) -> np.ndarray:
    """One rollout, one full forward, all logits, float64."""
    ids = torch.tensor(np.concatenate([item.prompt_tokens_P, item.completion_tokens_T]), dtype=torch.int64)[None]
    return answers(load64(path)(ids).logits[0], item, temperature)


@torch.no_grad()
def relay(steps: list[tuple[int, Path]], item: Rollout) -> np.ndarray:
    """Inputs up to each position by each version, the KV handed on; float64."""
    ids = torch.tensor(np.concatenate([item.prompt_tokens_P, item.completion_tokens_T]), dtype=torch.int64)[None]
    cache, logits, start = DynamicCache(), [], 0
    for end, path in steps:
        logits.append(load64(path)(ids[:, start:end], past_key_values=cache, use_cache=True).logits[0])
        start = end
    return answers(torch.cat(logits), item, 0.7)


def answers(logits: torch.Tensor, item: Rollout, temperature: float) -> np.ndarray:
    first = item.prompt_tokens_P.size - 1
    rows = torch.log_softmax(logits[first : first + item.n_tokens] / temperature, -1)
    return rows.gather(-1, torch.tensor(item.completion_tokens_T, dtype=torch.int64)[:, None])[:, 0].numpy()


def close(got: np.ndarray, want: np.ndarray, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(got, want, atol=atol, rtol=0)


def test_rollouts_of_any_shape_equal_a_plain_full_forward(models) -> None:
    """Alone, in groups on a shared prompt, one token long, different lengths: all in one call, in order."""
    shared = list(range(3, 20))
    items = [rollout(1), rollout(2, prompt=1, tokens=1), rollout(3, tokens=40), rollout(4, prompt=30, tokens=3),
             *(rollout(10 + i, prompt=shared, tokens=n) for i, n in enumerate((1, 2, 12, 13, 60, 14)))]
    score = scorer(models)
    for got, item in zip(score.score(items), items, strict=True):
        assert got.request_id == item.request_id and got.version == "1" and got.scored_mask_T.all()
        close(got.views["expected"], reference(models["1"], item))
        close(got.views["raw"], reference(models["1"], item, 1.0))
    assert score.counts["tokens_scored"] == sum(item.n_tokens for item in items)


@pytest.mark.parametrize("limit", [16, 33])
def test_long_rollouts_are_fed_in_pieces_without_a_trace(models, limit: int) -> None:
    shared = list(range(40))
    items = [rollout(1, prompt=50, tokens=90), rollout(2, prompt=3, tokens=120),
             *(rollout(3 + i, prompt=shared, tokens=70 + i) for i in range(3))]
    for got, item in zip(scorer(models, forward_tokens=limit).score(items), items, strict=True):
        close(got.views["expected"], reference(models["1"], item))


def test_a_groups_prompt_runs_once(models) -> None:
    score = scorer(models)
    score.score([rollout(i, prompt=list(range(50)), tokens=8) for i in range(6)])
    assert score.counts["body_tokens"] == 50 + 6 * 7


def test_a_float64_shadow_reproduces_the_reference_to_the_last_float32_digit(models) -> None:
    item = rollout(5, tokens=30)
    (got,) = scorer(models, body_dtype="float64", head_dtype="float64").score([item])
    close(got.views["expected"], reference(models["1"], item), atol=1e-6)


def test_a_forced_version_and_todays_weights_give_the_staleness(models) -> None:
    item = rollout(6)
    (got,) = scorer(models).score([item], version="3")
    close(got.views["expected"], reference(models["3"], item))
    assert got.version == "3"


def test_kv_reset_scores_each_span_fresh_under_its_own_version(models) -> None:
    item = rollout(7, tokens=15, spans=[(0, 6, "1"), (6, 7, "2"), (7, 15, "3")])
    (got,) = scorer(models).score([item])
    want = np.concatenate([reference(models[v], item)[s:e] for s, e, v in ((0, 6, "1"), (6, 7, "2"), (7, 15, "3"))])
    close(got.views["expected"], want)
    assert got.version is None


@pytest.mark.parametrize("held", [1, 3])
def test_kv_keep_continues_new_weights_on_old_kv(models, held: int) -> None:
    """Token 6 is the first of version 2: the input that answers it, token 5, already runs on version 2."""
    item = rollout(8, prompt=9, tokens=15, spans=[(0, 6, "1"), (6, 15, "2")])
    (got,) = scorer(models, kv_on_update="keep", versions_held=held).score([item])
    want = relay([(9 + 5, models["1"]), (9 + 15, models["2"])], item)
    close(got.views["expected"], want)
    assert np.abs(want - reference(models["2"], item))[6:].max() > 0.01, "keep and reset must differ for this to mean anything"


@pytest.mark.parametrize("held", [1, 3])
def test_a_stale_prefix_cache_is_replayed_exactly(models, held: int) -> None:
    shared = list(range(30))
    items = [rollout(i, prompt=shared, tokens=8 + i, spans=[(0, 8 + i, "3")], cached_prompt_tokens=16) for i in range(3)]
    items.append(rollout(9, prompt=shared[::-1], tokens=5, spans=[(0, 5, "3")], cached_prompt_tokens=0))
    items.append(rollout(10, prompt=4, tokens=5, spans=[(0, 5, "3")], cached_prompt_tokens=4))
    scores = scorer(models, versions_held=held).score(items, prefix_version="1")
    for got, item in zip(scores[:3], items[:3], strict=True):
        close(got.views["expected"], relay([(16, models["1"]), (30 + item.n_tokens, models["3"])], item))
    close(scores[3].views["expected"], reference(models["3"], items[3]))
    close(scores[4].views["expected"], relay([(3, models["1"]), (9, models["3"])], items[4]))


def test_an_unknown_cache_hit_is_refused_for_the_stale_replay(models) -> None:
    score = scorer(models)
    (got,) = score.score([rollout(1)], prefix_version="2")
    assert not got.scored_mask_T.any() and score.refusals[-1].kind == "cached_prompt_tokens_unknown"


def test_only_sampled_tokens_are_scored(models) -> None:
    mask = np.array([True] * 4 + [False] * 5 + [True] * 3)
    item = rollout(2, sampled_mask_T=mask)
    (got,) = scorer(models).score([item])
    assert (got.scored_mask_T == mask).all() and np.isnan(got.views["expected"][~mask]).all()
    close(got.views["expected"][mask], reference(models["1"], item)[mask])


def test_one_bad_rollout_is_refused_with_its_reason_and_the_rest_is_scored(models) -> None:
    good = rollout(1, engine_logprobs_T=np.full(12, np.nan, np.float32))
    bad = {
        "token_out_of_range": rollout(2, prompt=[1, 2, V]), "completion_empty": rollout(3, tokens=0),
        "prompt_empty": rollout(4, prompt=[]), "temperature_unknown": rollout(5, sampling=Sampling()),
        "version_unknown": rollout(6, weight_versions=()), "version_unavailable": rollout(7, spans=[(0, 12, "99")]),
        "length_mismatch": rollout(8, sampled_mask_T=np.ones(3, bool)), "too_long": rollout(9, prompt=100),
        "mode_unknown": rollout(10, expected_logprobs_mode="unknown"),
    }
    score = scorer(models, max_rollout_tokens=60)
    scores = score.score([*bad.values(), good])
    close(scores[-1].views["expected"], reference(models["1"], good))
    assert {refusal.kind for refusal in score.refusals} == set(bad)
    for kind, got in zip(bad, scores[:-1], strict=True):
        assert not got.scored_mask_T.any() and np.isnan(got.views["expected"]).all(), kind
    assert score.counts["rollouts_refused"] == len(bad) and score.counts["tokens_version_unavailable"] == 12
    (text,) = [r.text for r in score.refusals if r.kind == "token_out_of_range"]
    assert text == "prompt token 2 has id 97, but the model's vocabulary ends at 96: another tokenizer or model?"


def test_tokens_of_a_version_that_cannot_be_loaded_are_masked_and_counted(models) -> None:
    item = rollout(3, spans=[(0, 5, "1"), (5, 8, "gone")])
    score = scorer(models)
    (got,) = score.score([item])
    assert got.scored_mask_T.tolist() == [True] * 5 + [False] * 7
    close(got.views["expected"][:5], reference(models["1"], item)[:5])
    assert (score.counts["tokens_version_unavailable"], score.counts["tokens_version_unknown"]) == (3, 4)


def test_a_raw_trainer_needs_no_temperature(models) -> None:
    item = rollout(4, sampling=Sampling(), expected_logprobs_mode="raw_logprobs")
    (got,) = scorer(models).score([item])
    close(got.views["expected"], reference(models["1"], item, 1.0))


def test_a_failing_batch_is_retried_one_rollout_at_a_time(models, monkeypatch: pytest.MonkeyPatch) -> None:
    """An out-of-memory of the whole batch, and one rollout that always fails."""
    whole = ShadowModel.packed

    def packed(self, tokens_N, positions_N, pack):
        if len(pack.segments) > 1 or 77 in tokens_N:
            raise RuntimeError("out of memory")
        return whole(self, tokens_N, positions_N, pack)

    items = [rollout(1, prompt=[5, 6]), rollout(2, prompt=[6, 7]), rollout(3, prompt=[77, 1])]
    score = scorer(models)
    score.shelf.get("1")
    monkeypatch.setattr(ShadowModel, "packed", packed)
    scores = score.score(items)
    close(scores[1].views["expected"], reference(models["1"], items[1]))
    assert [s.scored_mask_T.all() for s in scores] == [True, True, False]
    assert score.counts["tokens_forward_failed"] == 12 and score.refusals[-1].text.endswith("out of memory")


def test_views_share_one_pass_and_entropy_is_that_of_the_expected_view(models) -> None:
    item = rollout(5)
    score = scorer(models)
    (got,) = score.score([item], views={**VIEWS, **temperature_views()})
    assert score.counts["body_tokens"] == 9 + 11
    assert (got.views["temperature:0.7"] == got.views["expected"]).all()
    assert got.entropy_T.min() > 0 and got.entropy_T.max() <= np.log(V)


def test_versions_are_swapped_in_place_and_stay_right(models) -> None:
    item = rollout(6)
    score = scorer(models, versions_held=1)
    for version in ("1", "2", "3", "1"):
        (got,) = score.score([item], version=version)
        close(got.views["expected"], reference(models[version], item))
    assert score.shelf.counts["loads"] == 4 and score.shelf.counts["evictions"] == 3


def test_a_soft_capped_head_is_applied(tmp_path: Path) -> None:
    config = Gemma2Config(**SIZES, final_logit_softcapping=2.0, attn_logit_softcapping=None, sliding_window=8,
                          query_pre_attn_scalar=8)
    path = make_model(tmp_path / "gemma", 1, config=config)
    items = [rollout(1, tokens=20), *(rollout(2 + i, prompt=list(range(12)), tokens=9 + i) for i in range(3))]
    for got, item in zip(scorer({"1": path}).score(items), items, strict=True):
        close(got.views["expected"], reference(path, item))


def test_a_head_klaxon_does_not_know_is_refused_at_load(models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Head, "_after", lambda self, logits: logits * 0.5)
    with pytest.raises(Unavailable, match="does something Klaxon does not know"):
        ShadowModel.load(models["1"], ShadowConfig(body_dtype="float32"))


def test_missing_tensors_are_refused_not_invented(models, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(models["1"] / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    (tmp_path / "config.json").write_text((models["1"] / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Unavailable, match=r"lacks 1 tensors, e.g. model.layers.1.mlp.up_proj.weight"):
        ShadowModel.load(tmp_path, ShadowConfig(body_dtype="float32"))


def test_a_float32_head_keeps_its_digits_over_a_bfloat16_body(models) -> None:
    model = ShadowModel.load(models["1"], ShadowConfig(body_dtype="bfloat16"))
    hidden = model.hidden(torch.arange(20)[None])[0]
    want = hidden.double() @ load64(models["1"]).lm_head.weight.T
    assert hidden.dtype is torch.bfloat16
    close(model.logits(hidden).numpy(), want.detach().numpy())


def test_a_rounded_linear_makes_the_roundings_of_a_bfloat16_matmul(models) -> None:
    """Not bit-faithful (the sum's order differs), but never further off than one bfloat16 step, and rarely that."""
    torch.manual_seed(3)
    linear, x = torch.nn.Linear(576, 256).bfloat16(), torch.randn(64, 576).bfloat16()
    with torch.no_grad():
        native, rounded = linear(x), RoundedLinear(linear)(x)
        exact = torch.nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double())
    assert rounded.dtype is torch.bfloat16
    assert (rounded.double() - exact).abs().le(exact.abs() * 2**-8 + 1e-6).all(), "one rounding, half a step"
    assert (native != rounded).float().mean() < 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_16_bit_head_on_cuda_is_exact(tmp_path: Path) -> None:
    path = make_model(tmp_path, 1, dtype=torch.bfloat16)
    model = ShadowModel.load(path, ShadowConfig(body_dtype="bfloat16", device="cuda"))
    hidden = model.hidden(torch.arange(20)[None])[0]
    want = hidden.double().cpu() @ load64(path).lm_head.weight.T
    close(model.logits(hidden).cpu().numpy(), want.detach().numpy())
