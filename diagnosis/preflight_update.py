"""What one weight update to the previous version and back says: did the label, the prefix cache and the weights move? Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collector.records import Rollout
from diagnosis.causes import CAUSE_TEXTS
from diagnosis.config import DiagnosisConfig
from diagnosis.preflight import Row, nats
from diagnosis.projection import SMALLEST_DIFFERENCE_NATS, projection
from diagnosis.sheet import Sheet


def label_row(*, set_to: str, told: str | None) -> Row:
    """Does the engine tell the label it was given?"""
    if told is None:
        return Row(name="update: label", state="unknown", seen="/weight_info does not tell the label")
    good = told == set_to
    return Row(name="update: label", state="passed" if good else "failed", seen=f"set to {set_to!r}, told {told!r}")


def reset_row(rollouts: Sequence[Rollout]) -> Row:
    """Was the prefix cache empty after its reset? `rollouts`: prompts that were cached just before, each sent once."""
    cached = [one.cached_prompt_tokens for one in rollouts]
    if not cached or None in cached:
        return Row(name="update: prefix cache", state="unknown", seen="the engine does not tell cached tokens", do="vllm serve … --enable-prompt-tokens-details")
    hit = sum(bool(one) for one in cached)
    seen = f"{hit} of {len(cached)} prompts cached before the update were served from the cache after it"
    return Row(name="update: prefix cache", state="failed" if hit else "passed", seen=seen,
               do=CAUSE_TEXTS["stale_prefix_cache"].fix if hit else "", cause="stale_prefix_cache" if hit else "")


def weights_row(name: str, sheet: Sheet, model_N: np.ndarray, previous_N: np.ndarray, *, on_previous: bool, limit_nats: float,
                config: DiagnosisConfig) -> Row:
    """Do the sampled tokens [N] lie at the version the engine was switched to?

    Args:
        model_N, previous_N: what the shadow expects under either version, nats.
        on_previous: the engine was switched to the previous version (else back to --model).
        limit_nats: a residual up to this is explained.
    """
    wanted, other = ("--previous", "--model") if on_previous else ("--model", "--previous")
    residual = sheet.residual(previous_N if on_previous else model_N)
    where = projection(sheet, model_N, previous_N)
    if where is None or where.difference_nats < SMALLEST_DIFFERENCE_NATS:
        return Row(name=name, state="unknown", seen="--model and --previous predict the same logprobs; name an older --previous")
    said = f"mean |d| {nats(residual)} under {wanted}, {nats(sheet.residual(model_N if on_previous else previous_N))} under {other}; β = {where.beta:+.2f} ± {where.se:.2f} (0 = --model, 1 = --previous)"
    towards = where.z if on_previous else -where.z
    if towards < -config.confidence_z:
        return Row(name=name, state="failed", seen=f"{said}: the engine still serves {other}", do=CAUSE_TEXTS["stale_weights"].fix, cause="stale_weights")
    if residual > limit_nats:
        return Row(name=name, state="failed", seen=f"{said}: neither explains them, {limit_nats:.4f} nats would be noise", do=CAUSE_TEXTS["stale_weights"].fix, cause="stale_weights")
    if towards <= config.confidence_z:
        return Row(name=name, state="unknown", seen=f"{said}: too close to tell; name an older --previous")
    return Row(name=name, state="passed", seen=said)
