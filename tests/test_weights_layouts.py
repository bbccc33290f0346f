"""Every layout a trainer may use: which folder is which version, when it is believed, and what is refused with which command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from transformers import AutoModelForCausalLM, LlamaConfig

from collector.config import ShadowConfig, WeightsConfig
from collector.errors import Unavailable
from collector.shadow.model import ShadowModel, load_version
from collector.weights.checkpoint import inspect
from collector.weights.follower import WeightFollower
from collector.weights.layouts import LAYOUTS, look

ROOT = Path(__file__).parent.parent
TINY = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 8, "initializer_range": 0.15}


def write(folder: Path, *, marker: str | None = None, value: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_file({"w": np.full((8, 8), value, np.float32)}, folder / "model.safetensors")
    if marker:
        (folder / marker).touch()
    return folder


def believed(tmp_path: Path, layout: str, **changes) -> list[str]:
    return [version.version for version in WeightFollower(WeightsConfig(dir=str(tmp_path), layout=layout, **changes)).poll(0.0)]


@pytest.mark.parametrize(("layout", "name", "marker", "label"), [
    ("auto", "step_41", "STABLE", "41"), ("auto", "checkpoint-500", "COMPLETE", "500"), ("auto", "weight_v000123", "COMPLETE", "123"),
    ("auto", "my-run", "COMPLETE", "my-run"), ("auto", "0", "COMPLETE", "0"), ("auto", "step_000", "COMPLETE", "0"),
    ("marker", "step_41", "COMPLETE", "step_41"), ("prime-rl", "step_41", "STABLE", "41"), ("hf-checkpoint", "checkpoint-500", "trainer_state.json", "500"),
    ("slime", "weight_v000123", "COMPLETE", "123"), ("areal", "weight_update_v7", "COMPLETE", "7"),
])
def test_a_marked_folder_is_believed_under_its_label(tmp_path, layout, name, marker, label):
    write(tmp_path / name, marker=marker)
    (tmp_path / "logs").mkdir()
    assert believed(tmp_path, layout) == [label]


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("auto", "marker", "lora")])
def test_folders_of_another_name_are_no_versions(tmp_path, layout):
    write(tmp_path / "best", marker=LAYOUTS[layout].markers[0])
    assert believed(tmp_path, layout) == []


def test_a_prime_rl_broadcast_is_never_believed_before_stable(tmp_path):
    folder = write(tmp_path / "step_3")
    follow = WeightFollower(WeightsConfig(dir=str(tmp_path), layout="prime-rl", settle_seconds=0))
    assert follow.poll(0.0) == () and follow.poll(1e6) == () and follow.pending[str(folder)].endswith("no STABLE file yet")
    (folder / "STABLE").touch()
    assert [version.version for version in follow.poll(1e6)] == ["3"]


def test_the_configs_own_marker_and_regex_replace_the_layouts(tmp_path):
    write(tmp_path / "step_3", marker="DONE")
    assert believed(tmp_path, "prime-rl", marker="DONE", version_regex="(step_.+)") == ["step_3"]


def shards(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    names = {f"w{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    for tensor, file in names.items():
        save_file({tensor: np.ones((4, 4), np.float32)}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "trainer_state.json").write_text("{}")
    return folder


def test_a_checkpoint_in_shards_needs_all_of_them_at_their_full_size(tmp_path):
    folder = shards(tmp_path / "checkpoint-10")
    second = folder / "model-00002-of-00002.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    follow = WeightFollower(WeightsConfig(dir=str(tmp_path), layout="hf-checkpoint"))
    assert follow.poll(0.0) == () and f"{second}: half-written: {len(whole) - 1} bytes" in follow.pending[str(folder)]
    second.unlink()
    assert follow.poll(1.0) == () and "1 of 2 shards are missing" in follow.pending[str(folder)]
    second.write_bytes(whole)
    assert [version.version for version in follow.poll(2.0)] == ["10"]


@pytest.mark.parametrize(("files", "command"), [
    ((".metadata", "__0_0.distcp"), "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} {folder}-whole.pt"),
    (("pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp"), "accelerate merge-weights {folder}/pytorch_model_fsdp_0 {folder}-whole"),
    (("model/__0_0.distcp",), "dcp_to_torch {folder}/model {folder}-whole.pt"),
    (("zero_to_fp32.py", "latest"), "python {folder}/zero_to_fp32.py {folder} {folder}-whole --safe_serialization"),
    (("model_world_size_8_rank_0.pt",), "verl.model_merger merge --backend fsdp --local_dir {folder}"),
    (("common.pt", "__0_0.distcp"), "convert_torch_dist_to_hf.py --input-dir {folder}"),
])
def test_a_sharded_checkpoint_is_refused_with_the_command_that_makes_it_whole(tmp_path, files, command):
    folder = tmp_path / "checkpoint-10"
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    with pytest.raises(Unavailable, match="a sharded checkpoint") as refused:
        inspect(folder)
    assert command.format(folder=folder) in str(refused.value)


def model(folder: Path, seed: int = 0, **changes) -> Path:
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(LlamaConfig(**TINY | changes)).save_pretrained(folder)
    return folder


def adapter(folder: Path, *, r: int = 4, targets: tuple[str, ...] = ("self_attn.q_proj", "mlp.down_proj"), head: bool = False, **config) -> Path:
    """A LoRA as PEFT writes it, with both halves non-zero."""
    generator, shapes = torch.Generator().manual_seed(1), {"self_attn.q_proj": (32, 32), "mlp.down_proj": (32, 48)}
    modules = {f"model.layers.{layer}.{name}": shapes[name] for layer in range(2) for name in targets} | ({"lm_head": (97, 32)} if head else {})
    tensors = {}
    for name, (out, inner) in modules.items():
        rank = next((value for key, value in config.get("rank_pattern", {}).items() if name.endswith(key)), r)
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, inner, generator=generator)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    folder.mkdir(parents=True)
    save_tensors(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": r, "lora_alpha": 8, "bias": "none", **config}))
    return folder


def reference(base: Path, folder: Path, scales: dict[str, float], default: float) -> torch.nn.Module:
    """The base in float64 with every pair added by hand."""
    from safetensors.torch import load_file

    merged, tensors = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64), load_file(folder / "adapter_model.safetensors")
    for key in [key for key in tensors if "lora_A" in key]:
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        scale = next((value for ending, value in scales.items() if name.endswith(ending)), default)
        merged.get_submodule(name).weight.data += scale * tensors[key.replace("lora_A", "lora_B")].double() @ tensors[key].double()
    return merged.eval()


@pytest.mark.parametrize(("config", "scales", "default"), [
    ({}, {}, 2.0), ({"use_rslora": True}, {}, 4.0), ({"head": True}, {}, 2.0),
    ({"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 2}}, {"down_proj": 4.0, "q_proj": 0.5}, 2.0),
])
def test_a_merged_adapter_gives_the_logits_of_a_float64_reference(tmp_path, config, scales, default):
    base, folder = model(tmp_path / "base"), adapter(tmp_path / "step_1", **config)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        wanted = reference(base, folder, scales, default)(tokens).logits[0]
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)(tokens).logits[0]
    settings = ShadowConfig(body_dtype="float32", device="cpu")
    version = look(folder, version="1", config=WeightsConfig(base=str(base)))
    shadow = load_version(version, None, settings)
    got = shadow.logits(shadow.hidden(tokens)[0]).double()
    assert (got - wanted).abs().max() < 1e-3 < 0.1 < (plain - wanted).abs().max()
    other = ShadowModel.load(str(base), settings)
    assert load_version(version, other, settings) is other, "an evicted model is refilled, adapters too"
    assert torch.equal(other.logits(other.hidden(tokens)[0]), shadow.logits(shadow.hidden(tokens)[0]))


def test_the_merge_in_bfloat16_rounds_once_and_leaves_the_base_alone(tmp_path):
    base, folder = model(tmp_path / "base"), adapter(tmp_path / "a")
    before = (base / "model.safetensors").read_bytes()
    shadow = ShadowModel.load(folder, ShadowConfig(body_dtype="bfloat16", device="cpu", bf16_on_cpu="native"), base=str(base))
    wanted = reference(base, folder, {}, 2.0)
    for name, weight in shadow._model.named_parameters():
        exact = wanted.get_parameter(name).data
        assert (weight.double() - exact).abs().max() <= 2**-7 * exact.abs().max()
    assert (base / "model.safetensors").read_bytes() == before


def test_peft_itself_agrees(tmp_path):
    peft = pytest.importorskip("peft")
    base, folder = model(tmp_path / "base"), adapter(tmp_path / "a", target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder).merge_and_unload()
    ours = ShadowModel.load(folder, ShadowConfig(body_dtype="float32", device="cpu"), base=str(base))._model
    for name, weight in ours.named_parameters():
        assert torch.allclose(weight, theirs.get_parameter(name), atol=1e-5)


def test_the_follower_takes_adapters_and_says_what_is_missing(tmp_path):
    base, folder = model(tmp_path / "base"), adapter(tmp_path / "runs/step_4")
    (folder / "STABLE").touch()
    lost = WeightFollower(WeightsConfig(dir=str(tmp_path / "runs")))
    assert lost.poll(0.0) == () and "is a LoRA adapter: set [weights] base" in lost.pending[str(folder)]
    for layout in ("auto", "lora", "prime-rl"):
        (found,) = WeightFollower(WeightsConfig(dir=str(tmp_path / "runs"), layout=layout, base=str(base))).poll(0.0)
        assert (found.version, found.base) == ("4", str(base))
    adapter(tmp_path / "runs/step_5", use_rslora=True)
    assert inspect(tmp_path / "runs/step_5", base=str(base)).digest != found.digest, "the same tensors, scaled otherwise, are other weights"
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(Unavailable, match="no adapter_model.safetensors yet"):
        inspect(folder, base=str(base), kind="adapter")


@pytest.mark.parametrize(("config", "reason"), [
    ({"use_dora": True}, "use_dora is set (DoRA"), ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"), ({"bias": "all"}, "bias is 'all'"),
    ({"peft_type": "LOHA"}, "peft_type is 'LOHA', only LORA"), ({"init_lora_weights": "pissa_niter_4"}, "it changes the base weights"),
    ({"lora_bias": True}, "lora_bias"), ({"lora_alpha": None}, "r and lora_alpha cannot be read"),
])
def test_an_adapter_of_another_kind_is_refused_by_name(tmp_path, config, reason):
    base, folder = model(tmp_path / "base"), adapter(tmp_path / "a", **config)
    with pytest.raises(Unavailable) as refused:
        inspect(folder, base=str(base))
    assert reason in str(refused.value)


def test_an_adapter_that_does_not_fit_its_base_is_refused_by_layer(tmp_path):
    settings, folder = ShadowConfig(body_dtype="float32", device="cpu"), adapter(tmp_path / "a")
    wider = model(tmp_path / "wide", hidden_size=64, head_dim=16)
    with pytest.raises(Unavailable, match=r"down_proj is \[64, 48\] in the base"):
        ShadowModel.load(folder, settings, base=str(wider))
    shallow = model(tmp_path / "shallow", num_hidden_layers=1)
    with pytest.raises(Unavailable, match=r"no layer model.layers.1"):
        ShadowModel.load(folder, settings, base=str(shallow))
    tied = model(tmp_path / "tied", tie_word_embeddings=True)
    with pytest.raises(Unavailable, match="lm_head shares its weight with another layer"):
        ShadowModel.load(adapter(tmp_path / "h", head=True), settings, base=str(tied))
    save_tensors({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 97)}, folder / "adapter_model.safetensors")
    with pytest.raises(Unavailable, match="lora_embedding_A is no LoRA of a linear layer"):
        ShadowModel.load(folder, settings, base=str(tied))


def test_the_docs_tell_every_layout_as_it_is():
    text = (ROOT / "docs/weights.md").read_text()
    for name, layout in LAYOUTS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert all(f"`{marker}`" in row for marker in layout.markers) and layout.note.split(";")[0] in row
        assert f"`{layout.version_regex}`".replace("|", "\\|") in row and ("never" in row) == (not layout.unmarked)
