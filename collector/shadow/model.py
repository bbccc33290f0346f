"""One weight version as a model: hidden states from the body, logits from a head applied by hand.

The transformers forward is the oracle; only the head is ours, because its precision is the question. At load the
hand-applied head is compared with the model's own, so an architecture with a head we do not know is refused, not
mis-scored. docs/numerics.md explains every dtype decision made here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging as transformers_logging

from collector.config import ShadowConfig
from collector.errors import Unavailable
from collector.records import WeightVersion
from collector.shadow.attention import NAME, Pack, Segment, running
from collector.shadow.devices import pick_devices, place, replicas
from collector.shadow.head import Head
from collector.shadow.lora import LoraMerge
from collector.shadow.rounded import RoundedLinear, round_linears, wants_rounding
from collector.shadow.verify import can_pack, fallback_attention, verify_head
from collector.shadow.vocabulary import padded_config, vocabulary
from collector.weights.shelf import WeightShelf

log = logging.getLogger(__name__)

__all__ = ["RoundedLinear", "ShadowModel", "load_version", "model_shelf"]


class ShadowModel:
    """A loaded version. B = rows, L = tokens of a row, N = tokens of a pack, H = hidden size, V = vocabulary.

    `packs`: segments of different rollouts run in one forward pass; else (recurrent layers, attention of a kind not known
    here) one row at a time. `twins`: the same weights on further devices.
    """

    def __init__(self, model: Any, head: Head, *, device: torch.device, fallback: str) -> None:
        self._model, self._body, self.head = model, model.base_model, head
        self._text_config, self._fallback = model.config.get_text_config(), fallback
        self.device = device  # where hidden states come out
        self.vocab_size = head.vocab_size
        self.packs = False
        self.twins: tuple[ShadowModel, ...] = ()

    @classmethod
    def load(cls, path: str | Path, config: ShadowConfig, *, base: str = "") -> ShadowModel:
        """Load a Hugging Face folder: safetensors only, no remote code, no network. With `base` the folder is a LoRA adapter.

        Raises:
            Unavailable: the folder is gone, incomplete, not a causal language model, or its head is not understood.
        """
        devices = pick_devices(config)
        if replicas(config) == 1:
            return cls._load_on(Path(path), config, devices, base)
        first, *others = (cls._load_on(Path(path), config, (device,), base) for device in devices)
        first.twins = tuple(others)
        return first

    @classmethod
    def _load_on(cls, folder: Path, config: ShadowConfig, devices: tuple[torch.device, ...], base: str) -> ShadowModel:
        body_dtype, head_dtype = getattr(torch, config.body_dtype), getattr(torch, config.head_dtype)
        model, adapter = _read(folder, body_dtype, base)
        head = model.get_output_embeddings()
        if head is None:
            raise Unavailable(f"{folder} has no language-model head")
        stored_VH, size = _head_weight(model, Path(base or folder), adapter), vocabulary(Path(base or folder), model, config)
        if devices[0].type == "cpu" and body_dtype is torch.bfloat16 and wants_rounding(config):
            round_linears(model.base_model)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            if parameter.dtype is stored_VH.dtype:  # memory-mapped, and the trainer may rewrite the file: copy
                parameter.data = parameter.data.clone()
        last = place(model, devices)
        bias = None if head.bias is None else head.bias.detach()[:size].to(last, head_dtype)
        weight_VH = head.weight.detach() if head.weight.dtype is head_dtype else stored_VH
        shadow = cls(model, Head(weight_VH.to(last)[:size], bias, model.config.get_text_config(), dtype=head_dtype, split=last.type == "cuda"),
                     device=last, fallback=fallback_attention(model))
        verify_head(shadow, folder)
        shadow.packs = can_pack(shadow)
        if not shadow.packs:
            log.info("%s: %s runs one rollout at a time: its layers cannot be packed", folder, type(model).__name__)
        model.set_attn_implementation(NAME if shadow.packs else shadow._fallback)
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
        bias = source.get_output_embeddings().bias
        for shadow in (self, *self.twins):
            for name, parameter in shadow._model.named_parameters():
                parameter.data.copy_(new[name].data.to(self._model.dtype))
            if shadow.head.weight[0].data_ptr() != shadow._model.get_output_embeddings().weight.data_ptr():
                weight_VH = _head_weight(source, Path(base or folder), adapter)[:self.vocab_size]
                shadow.head.refill(weight_VH, None if bias is None else bias.data[:self.vocab_size])
            elif bias is not None:
                shadow.head.refill(shadow.head.weight[0], bias.data[:self.vocab_size])
            verify_head(shadow, folder)
        return True

    @property
    def experts(self) -> int:
        """Routed experts a layer; 0 = a dense model."""
        names = ("num_local_experts", "num_experts", "n_routed_experts")
        return next((int(n) for name in names if (n := getattr(self._text_config, name, None))), 0)

    def replica(self, index: int) -> ShadowModel:
        """This version on the index-th device of `split = "replicas"`."""
        return self.twins[index - 1] if index else self

    def new_cache(self) -> DynamicCache:
        """An empty KV cache for this architecture, for one_row."""
        return DynamicCache(config=self._model.config)

    @torch.inference_mode()
    def packed(self, tokens_N: Tensor, positions_N: Tensor, pack: Pack) -> Tensor:
        """Hidden states [N, H] of a pack's rows; positions count from the start of each rollout. Fills pack.kept."""
        start = self._model.get_input_embeddings().weight.device
        with running(pack):
            out = self._body(input_ids=tokens_N[None].to(start), position_ids=positions_N[None].to(start), use_cache=False)
        return out.last_hidden_state[0]

    @torch.inference_mode()
    def one_row(self, tokens_L: Any, cache: DynamicCache) -> Tensor:
        """Hidden states [L, H] of the next tokens of one row; extends the cache."""
        start = self._model.get_input_embeddings().weight.device
        ids_1L = torch.as_tensor(tokens_L, dtype=torch.int64, device=start)[None]
        return self._body(input_ids=ids_1L, past_key_values=cache, use_cache=True).last_hidden_state[0]

    def hidden(self, tokens_BL: Tensor) -> Tensor:
        """Hidden states [B, L, H] of whole rows of one length."""
        n_rows, length = tokens_BL.shape
        if not self.packs:
            return torch.stack([self.one_row(row, self.new_cache()) for row in tokens_BL])
        segments = tuple(Segment(row * length, (row + 1) * length) for row in range(n_rows))
        positions_N = torch.arange(length).repeat(n_rows)
        return self.packed(tokens_BL.reshape(-1), positions_N, Pack(segments)).unflatten(0, (n_rows, length))

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits [N, V], float32 (float64 for a float64 head), as the trainer's head computes them."""
        return self.head.logits(hidden_NH)

    @contextmanager
    def attending(self, name: str) -> Iterator[None]:
        """Another attention implementation of transformers for a while.

        Raises:
            ValueError: this architecture does not have it.
        """
        usual = self._model.config._attn_implementation
        self._model.set_attn_implementation(name)
        try:
            yield
        finally:
            self._model.set_attn_implementation(usual)


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
            folder, config=padded_config(folder), dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True,
            attn_implementation="eager", output_loading_info=True,
            **({"experts_implementation": "eager"} if dtype in (torch.float64, "float64") else {}))  # grouped kernels have no float64
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


def _other(left: Any, right: Any) -> bool:
    """Do the configs differ in more than where they came from?"""
    def essence(model: Any) -> dict[str, Any]:
        return {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "dtype")}
    return essence(left) != essence(right)
