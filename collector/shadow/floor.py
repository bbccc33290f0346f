"""The model-intrinsic floor: how much the declared dtype alone moves the logprobs, with no engine involved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from collector.config import BodyDtype, ShadowConfig
from collector.records import Rollout, WeightVersion
from collector.shadow.model import model_shelf
from collector.shadow.scorer import ShadowScorer
from collector.shadow.views import expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """mean |logp_dtype − logp_float32| over `tokens` tokens, expected view; `tail_nats` is its 99th percentile."""

    nats: float
    tail_nats: float
    tokens: int
    dtype: str


def intrinsic_floor(rollouts: Sequence[Rollout], *, weights: WeightVersion, config: ShadowConfig,
                    dtype: BodyDtype | None = None) -> Floor:
    """Score the same tokens with a body in `dtype` (default: config.body_dtype, or bfloat16 when that is float32) and in
    float32; the head stays as configured. NaN nats when no token could be scored.

    Raises:
        Unavailable: the weights cannot be loaded.
    """
    low = dtype or ("bfloat16" if config.body_dtype == "float32" else config.body_dtype)
    return replace(gap_to(_expected(rollouts, weights, config, low), rollouts, weights=weights, config=config, dtype="float32"), dtype=low)


def gap_to(known: Sequence[np.ndarray], rollouts: Sequence[Rollout], *, weights: WeightVersion, config: ShadowConfig, dtype: BodyDtype) -> Floor:
    """`known` (the expected view of each rollout [T] in one precision) against a body in `dtype`, which scores them here.

    Raises:
        Unavailable: the weights cannot be loaded.
    """
    rows = [np.concatenate(side) if side else np.empty(0) for side in (known, _expected(rollouts, weights, config, dtype))]
    gap = np.abs(rows[0].astype(np.float64) - rows[1])
    gap = gap[np.isfinite(gap)]
    if not gap.size:
        return Floor(nats=float("nan"), tail_nats=float("nan"), tokens=0, dtype=dtype)
    return Floor(nats=float(gap.mean()), tail_nats=float(np.quantile(gap, 0.99)), tokens=gap.size, dtype=dtype)


def _expected(rollouts: Sequence[Rollout], weights: WeightVersion, config: ShadowConfig, body: BodyDtype) -> list[np.ndarray]:
    one = config.model_copy(update={"body_dtype": body, "versions_held": 1})
    shelf = model_shelf(one, [weights])
    shelf.get(weights.version)
    return [score.views["expected"] for score in ShadowScorer(one, shelf).score(rollouts, views={"expected": expected}, version=weights.version)]
