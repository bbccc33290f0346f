"""The floor a diagnosis judges by: what the declared precisions alone make of the same tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from collector.records import Rollout
from diagnosis.bench import Bench, Scorer

FloorOf = Callable[[Sequence[Rollout]], float]
"""Some rollouts → mean |logp_low − logp_float32| of the shadow on them, nats."""

FLOOR_TOKENS = 320
LOW = ("bfloat16", "float16")


def expected_floor(bench: Bench, scorer: Scorer, measure: FloorOf | None) -> float:
    """Floor in nats for the engine's and the shadow's precision; an engine that names no dtype is taken for bfloat16.

    One side in low precision gives the intrinsic floor, both sides √2 times it (their roundings are independent).
    """
    config = bench.config
    shadow = getattr(getattr(scorer, "config", None), "body_dtype", "bfloat16")
    engines = {str(r.engine_dtype).removeprefix("torch.") for r in bench.sheet.rollouts if r.engine_dtype} or {"bfloat16"}
    low_sides = int(shadow in LOW) + int(any(dtype not in ("float32", "float64") for dtype in engines))
    if low_sides == 0:
        return config.fp32_floor_nats
    intrinsic = (measure or _of_scorer(scorer, bench))(_some(bench.sheet.rollouts))
    if not math.isfinite(intrinsic):
        return config.fp32_floor_nats
    return max(config.fp32_floor_nats, intrinsic * math.sqrt(low_sides))


def _some(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Evenly spread rollouts of about FLOOR_TOKENS tokens."""
    total = sum(rollout.n_tokens for rollout in rollouts)
    step = max(1, round(total / FLOOR_TOKENS))
    return list(rollouts[::step])


def _of_scorer(scorer: Scorer, bench: Bench) -> FloorOf:
    """The other precision scores the rollouts anew; the shadow's own is on the bench already, where their one version is at hand."""
    from collector.shadow.floor import gap_to, intrinsic_floor

    def measure(rollouts: Sequence[Rollout]) -> float:
        shelf, config = scorer.shelf, scorer.config  # type: ignore[attr-defined]
        counts = Counter(rollout.version for _, rollout, _ in bench.compared if rollout.version is not None)
        weights = shelf.know(counts.most_common(1)[0][0]) if counts else None
        if weights is None:
            return intrinsic_floor(rollouts, weights=shelf.know(bench.versions[-1]), config=config).nats
        own = {id(rollout): score.views["expected"] for _, rollout, score in bench.compared if rollout.version == weights.version}
        some = _some([rollout for _, rollout, _ in bench.compared if id(rollout) in own])
        other = "bfloat16" if config.body_dtype == "float32" else "float32"
        return gap_to([own[id(rollout)] for rollout in some], some, weights=weights, config=config, dtype=other).nats

    return measure
