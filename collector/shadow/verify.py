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

_PROBE_TOKENS, _PROBE_PREFIX = 16, 5
_HEAD_TOLERANCE = 0.02  # of the largest logit: a bfloat16 head rounds to 0.4 %, a forgotten soft cap is tens of per cent
_PACK_TOLERANCE = {8: 1e-6, 4: 1e-3, 2: 0.25}  # of the spread of the logits, by bytes of a number; a lost or foreign token moves them by half


def fallback_attention(model: Any) -> str:
    """The attention of models that cannot pack: SDPA where they have it, unless scores are capped, which SDPA leaves out."""
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    return "sdpa" if model._supports_sdpa and not capped else "eager"


@torch.inference_mode()
def verify_head(shadow: ShadowModel, folder: Path) -> None:
    """Compare the head applied by hand with transformers' eager forward; leaves the model attending as it did.

    Raises:
        Unavailable: the head does something Klaxon does not know, or the weights are not finite.
    """
    model, ids_1L = shadow._model, _probe(shadow)[None]
    with shadow.attending("eager"):
        hidden_NH = model.base_model(input_ids=ids_1L, use_cache=False).last_hidden_state[0]
        own_NV = model(input_ids=ids_1L, use_cache=False).logits[0, :, :shadow.vocab_size].float()
    largest, off = float(own_NV.abs().max()), float((shadow.logits(hidden_NH.to(shadow.device)) - own_NV.to(shadow.device)).abs().max())
    if not off <= _HEAD_TOLERANCE * largest + 0.05:  # also catches NaN
        raise Unavailable(f"{folder}: the head of {type(model).__name__} does something Klaxon does not know "
                          f"(its logits are off by {off:.3g}), or the weights are not finite")


@torch.inference_mode()
def can_pack(shadow: ShadowModel) -> bool:
    """Does a pack with a decoy in front, and the probe in two segments, give transformers' eager logits through every layer?

    Judged by the middle row's mean difference in units of the spread of the logits: in 16 bits single tokens (a first token with
    massive activations) differ by tens of per cent between any two correct kernels.
    """
    ids_L, cut = _probe(shadow), _PROBE_PREFIX
    n = ids_L.numel()
    with shadow.attending("eager"):
        own_NV = shadow._model(input_ids=ids_L[None], use_cache=False).logits[0, :, :shadow.vocab_size].float().to(shadow.device)
    pack = Pack((Segment(0, 2), Segment(2, 2 + cut), Segment(2 + cut, 2 + n, ((2, 2 + cut),))))
    tokens_N = torch.cat([ids_L.flip(0)[:2], ids_L])
    positions_N = torch.cat([torch.arange(2), torch.arange(n)])
    try:
        with shadow.attending(NAME):
            hidden_NH = shadow.packed(tokens_N, positions_N, pack)
    except (ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        log.info("cannot be packed: %s", error)
        return False
    every_layer = len(pack.layers) == shadow._model.config.get_text_config().num_hidden_layers
    off_N = (shadow.logits(hidden_NH)[2:].float() - own_NV).abs().mean(-1) / own_NV.std(-1)
    return every_layer and float(off_N.median()) <= _PACK_TOLERANCE[hidden_NH.dtype.itemsize]


def _probe(shadow: ShadowModel) -> Tensor:
    """Ids from the whole vocabulary: the first few are often special tokens with massive activations."""
    start = shadow._model.get_input_embeddings().weight.device
    return (torch.arange(_PROBE_TOKENS, device=start) * 7919 + 1013) % shadow.vocab_size
