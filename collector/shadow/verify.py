"""What every load proves: the head applied by hand and the packed forward give what transformers' own forward gives."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from collector.errors import Unavailable
from collector.shadow.attention import NAME, Pack, Segment

if TYPE_CHECKING:
    from collector.shadow.model import ShadowModel

log = logging.getLogger(__name__)

_PROBE_TOKENS, _PROBE_PREFIX = 8, 3
_HEAD_TOLERANCE = 0.02  # of the largest logit: a bfloat16 head rounds to 0.4 %, a forgotten soft cap is tens of per cent
_PACK_TOLERANCE = {8: 1e-6, 4: 1e-3, 2: 0.1}  # of the largest logit, by bytes of a number: 16-bit kernels differ by per cents


def fallback_attention(model: Any) -> str:
    """The attention of models that cannot pack: SDPA where they have it, unless scores are capped, which SDPA leaves out."""
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    return "sdpa" if model._supports_sdpa and not capped else "eager"


@torch.inference_mode()
def verify(shadow: ShadowModel, folder: Path) -> None:
    """Compare with transformers' eager forward and set `shadow.packs`.

    Raises:
        Unavailable: the head does something Klaxon does not know, or the weights are not finite.
    """
    model = shadow._model
    start = model.get_input_embeddings().weight.device
    ids_1L = (torch.arange(_PROBE_TOKENS, device=start) % shadow.vocab_size)[None]
    shadow.attend_as("eager")
    hidden_NH = model.base_model(input_ids=ids_1L, use_cache=False).last_hidden_state[0]
    own_NV = model(input_ids=ids_1L.to(start), use_cache=False).logits[0, :, :shadow.vocab_size].float()
    largest, off = float(own_NV.abs().max()), _off(shadow.logits(hidden_NH.to(shadow.device)), own_NV)
    if not off <= _HEAD_TOLERANCE * largest + 0.05:  # also catches NaN
        raise Unavailable(f"{folder}: the head of {type(model).__name__} does something Klaxon does not know "
                          f"(its logits are off by {off:.3g}), or the weights are not finite")
    limit = _PACK_TOLERANCE[hidden_NH.dtype.itemsize] * (largest + 1)
    shadow.packs = _packs(shadow, ids_1L[0], own_NV, limit)
    if not shadow.packs:
        log.info("%s: %s runs one rollout at a time: its layers cannot be packed", folder, type(model).__name__)
        shadow.attend_as(shadow._fallback)


def _packs(shadow: ShadowModel, ids_L: Tensor, own_NV: Tensor, limit: float) -> bool:
    """Does a pack with a decoy in front, and the probe in two segments, give the same logits through every layer?"""
    n, cut = ids_L.numel(), _PROBE_PREFIX
    segments = (Segment(0, 2), Segment(2, 2 + cut), Segment(2 + cut, 2 + n, ((2, 2 + cut),)))
    pack = Pack(segments)
    tokens_N = torch.cat([ids_L.flip(0)[:2], ids_L])
    positions_N = torch.cat([torch.arange(2), torch.arange(n)])
    try:
        shadow.attend_as(NAME)
        logits_NV = shadow.logits(shadow.packed(tokens_N, positions_N, pack))[2:]
    except (ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        log.info("cannot be packed: %s", error)
        return False
    every_layer = len(pack.layers) == shadow._model.config.get_text_config().num_hidden_layers
    return every_layer and _off(logits_NV, own_NV) <= limit


def _off(ours_NV: Tensor, own_NV: Tensor) -> float:
    return float((ours_NV.float() - own_NV.to(ours_NV.device)).abs().max())
