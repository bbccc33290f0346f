"""One weight version as a model: hidden states from the body, logits from a head applied by hand.

The transformers forward is the oracle; only the head is ours, because its precision is the question. At load the
hand-applied head is compared with the model's own, so an architecture with a head we do not know is refused, not
mis-scored. docs/numerics.md explains every dtype decision made here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging as transformers_logging

from collector.config import ShadowConfig
from collector.errors import ConfigError, Unavailable
from collector.records import WeightVersion
from collector.shadow.lora import LoraMerge
from collector.weights.shelf import WeightShelf

_PROBE_TOKENS = (0, 1, 2)
_HEAD_TOLERANCE = 0.02  # of the largest logit: a bfloat16 head rounds to 0.4 %, a forgotten soft cap is tens of per cent


class ShadowModel:
    """A loaded version. B = rows, L = tokens of a row, N = tokens, H = hidden size, V = vocabulary."""

    def __init__(self, model: Any, head_VH: Tensor, head_bias_V: Tensor | None, *, head_dtype: torch.dtype,
                 device: torch.device) -> None:
        self._model, self._body = model, model.base_model
        self._head_VH, self._head_bias_V, self._head_dtype = head_VH, head_bias_V, head_dtype
        self._text_config = model.config.get_text_config()
        self.device = device
        self.vocab_size = int(model.get_input_embeddings().weight.shape[0])

    @classmethod
    def load(cls, path: str | Path, config: ShadowConfig, *, base: str = "") -> ShadowModel:
        """Load a Hugging Face folder: safetensors only, no remote code, no network. With `base` the folder is a LoRA adapter.

        Raises:
            Unavailable: the folder is gone, incomplete, not a causal language model, or its head is not understood.
        """
        folder, device = Path(path), pick_device(config.device)
        body_dtype, head_dtype = getattr(torch, config.body_dtype), getattr(torch, config.head_dtype)
        model, adapter = _read(folder, body_dtype, base)
        head = model.get_output_embeddings()
        if head is None:
            raise Unavailable(f"{folder} has no language-model head")
        stored_VH = _head_weight(model, Path(base or folder), adapter)
        if device.type == "cpu" and body_dtype is torch.bfloat16 and _rounded(config):
            _round_linears(model.base_model)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            if parameter.dtype is stored_VH.dtype:  # memory-mapped, and the trainer may rewrite the file: copy
                parameter.data = parameter.data.clone()
        model.to(device)
        bias = None if head.bias is None else head.bias.detach().to(device, head_dtype)
        head_VH = head.weight.detach() if head.weight.dtype is head_dtype else stored_VH.to(device)
        shadow = cls(model, _stored_head(head_VH, head_dtype), bias, head_dtype=head_dtype, device=device)
        shadow._verify_head(folder)
        return shadow

    def refill(self, path: str | Path, *, base: str = "") -> bool:
        """Take over another version's weights in place; False when it is another architecture (nothing changed).

        Six times faster than a fresh load on a CPU, where new memory pages cost more than the copy.

        Raises:
            Unavailable: as load; the model may then be half filled and must be thrown away.
        """
        folder = Path(path)
        source, adapter = _read(folder, self._model.dtype if base else "auto", base)  # a merge rounds once, as in load
        own, new = dict(self._model.named_parameters()), dict(source.named_parameters())
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in new.items()} or _other(source, self._model):
            return False
        body_dtype = self._model.dtype
        for name, parameter in own.items():
            parameter.data.copy_(new[name].data.to(body_dtype))
        if self._head_VH.data_ptr() != self._model.get_output_embeddings().weight.data_ptr():
            self._head_VH.copy_(_stored_head(_head_weight(source, Path(base or folder), adapter), self._head_dtype))
        if self._head_bias_V is not None:
            self._head_bias_V.copy_(source.get_output_embeddings().bias.data)
        self._verify_head(folder)
        return True

    def new_cache(self) -> DynamicCache:
        """An empty KV cache for this architecture."""
        return DynamicCache(config=self._model.config)

    @torch.inference_mode()
    def hidden(self, tokens_BL: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """Hidden states [B, L, H] of the next tokens of each row; extends the cache. Pad on the right only."""
        out = self._body(input_ids=tokens_BL.to(self.device), past_key_values=cache, use_cache=cache is not None)
        return out.last_hidden_state

    @torch.inference_mode()
    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V], float32 (float64 for a float64 head), as the trainer's head computes them."""
        return self._after_head(self._matmul(hidden_NH))

    def _matmul(self, hidden_NH: Tensor) -> Tensor:
        wide = torch.float64 if self._head_dtype is torch.float64 else torch.float32
        if self._head_dtype in (torch.bfloat16, torch.float16):  # rounded inputs, float32 sums, rounded output
            hidden_NH = hidden_NH.to(self._head_dtype)
        if hidden_NH.is_cuda and hidden_NH.dtype == self._head_VH.dtype and hidden_NH.dtype.itemsize == 2:
            logits_NV = torch.mm(hidden_NH, self._head_VH.t(), out_dtype=torch.float32)  # exact products, fp32 sums
        else:
            logits_NV = functional.linear(hidden_NH.to(wide), self._head_VH.to(wide))
        if self._head_bias_V is not None:
            logits_NV = logits_NV + self._head_bias_V.to(wide)
        return logits_NV.to(self._head_dtype).to(wide)

    def _after_head(self, logits_NV: Tensor) -> Tensor:
        config = self._text_config
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma
            return torch.tanh(logits_NV / cap) * cap
        if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
            return logits_NV * scale
        if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
            return logits_NV / divisor
        return logits_NV

    @torch.inference_mode()
    def _verify_head(self, folder: Path) -> None:
        probe = torch.tensor([_PROBE_TOKENS], device=self.device)
        own_NV = self._model(input_ids=probe).logits[0].float()
        ours_NV = self.logits(self.hidden(probe)[0]).float()
        off = float((ours_NV - own_NV).abs().max())
        limit = _HEAD_TOLERANCE * float(own_NV.abs().max()) + 0.05
        if not off <= limit:  # also catches NaN
            raise Unavailable(f"{folder}: the head of {type(self._model).__name__} does something Klaxon does not know "
                              f"(its logits are off by {off:.3g}), or the weights are not finite")


def model_shelf(config: ShadowConfig, known: Iterable[WeightVersion] = ()) -> WeightShelf[ShadowModel]:
    """A shelf that holds `config.versions_held` ShadowModels and refills the one it evicts."""
    return WeightShelf(lambda version, evicted: load_version(version, evicted, config), versions_held=config.versions_held,
                       known=known)


def load_version(version: WeightVersion, evicted: ShadowModel | None, config: ShadowConfig) -> ShadowModel:
    """What a shelf does to hold a version: refill what it evicts where that fits, else load.

    Raises:
        Unavailable: it cannot be loaded; the text says why.
    """
    if evicted is not None and evicted.refill(version.path, base=version.base):
        return evicted
    return ShadowModel.load(version.path, config, base=version.base)


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
    return device


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


def _rounded(config: ShadowConfig) -> bool:
    if config.bf16_on_cpu != "auto":
        return config.bf16_on_cpu == "rounded"
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _round_linears(body: nn.Module) -> None:
    for module in list(body.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, RoundedLinear(child))


def _read(folder: Path, dtype: torch.dtype | str, base: str) -> tuple[Any, LoraMerge | None]:
    """The model of a folder, or of its base with the folder's adapter merged in."""
    if not base:
        return _from_pretrained(folder, dtype), None
    model, adapter = _from_pretrained(Path(base), dtype), LoraMerge(folder)
    adapter.into(model)
    return model, adapter


def _from_pretrained(folder: Path, dtype: torch.dtype | str) -> Any:
    if not (folder / "config.json").is_file():
        raise Unavailable(f"{folder} is no model folder: it has no config.json")
    transformers_logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True,
            attn_implementation="sdpa", output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise Unavailable(f"{folder} cannot be loaded as a causal language model: {error}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise Unavailable(f"{folder} lacks {len(missing)} tensors, e.g. {missing[0]}: a half-written checkpoint, or "
                          "adapter weights without their base")
    if info["mismatched_keys"]:
        raise Unavailable(f"{folder}: tensors of another shape than config.json says: {info['mismatched_keys']}")
    return model.eval()


def _head_weight(model: Any, folder: Path, adapter: LoraMerge | None = None) -> Tensor:
    """The head [V, H] as the checkpoint has it: the body's dtype must not round a float32 head."""
    target = model.get_output_embeddings().weight
    names = {name for name, p in model.named_parameters(remove_duplicate=False) if p is target}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in sorted(names & set(tensors.keys())):
                stored_VH = tensors.get_tensor(name)
                return adapter.merged(name.removesuffix(".weight"), stored_VH) if adapter else stored_VH
    return target.detach()


def _stored_head(weight_VH: Tensor, head_dtype: torch.dtype) -> Tensor:
    """The head matrix as the matmul wants it: 16-bit on CUDA where that is exact, widened once on a CPU."""
    if head_dtype in (torch.bfloat16, torch.float16):
        weight_VH = weight_VH.to(head_dtype)
    if weight_VH.is_cuda and weight_VH.dtype.itemsize == 2:
        return weight_VH
    return weight_VH.to(torch.float64 if head_dtype is torch.float64 else torch.float32)


def _other(left: Any, right: Any) -> bool:
    """Do the configs differ in more than where they came from?"""
    def essence(model: Any) -> dict[str, Any]:
        return {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "dtype")}
    return essence(left) != essence(right)
