"""Is a variant (another prompt, older weights) worth a pass over every rollout? A few rollouts tell, with the best quick sampler setting on top.

A fault of two parts leaves much under either part alone, so what is compared is what any sampler setting leaves: under the variant, and as recorded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from diagnosis.bench import Bench, Variant
from diagnosis.heads import Heads

SCREENED_ROLLOUTS = 4
PROMISING = 0.8
QUICK: tuple[dict[str, float], ...] = (
    {}, *({"temperature": t} for t in (0.5, 0.6, 0.8, 0.9, 1.0, 1.2)), *({"top_p": p} for p in (0.8, 0.9, 0.95)), {"top_k": 30}, {"min_p": 0.05},
    {"repetition_penalty": 1.1}, {"repetition_penalty": 1.2})


def promising(bench: Bench, variants: Iterable[Variant], count: int, *, least: float = PROMISING) -> list[Variant]:
    """At most `count` of them, the best first: those that leave less than `least` of what is left without them on a few rollouts of one fold."""
    first = [int(i) for i in np.unique(bench.sheet.rollout_N[bench.sheet.fold_N == 0])]
    left = []
    for variant in variants:
        few = [i for i in first if i in variant.rollouts][:SCREENED_ROLLOUTS] or sorted(variant.rollouts)[:SCREENED_ROLLOUTS]
        heads = bench.heads_of(replace(variant, rollouts={i: variant.rollouts[i] for i in few}))
        if heads is None:
            continue
        share = quick_residual(heads) / max(quick_residual(bench.part(few)), 1e-9)
        if share < least:
            left.append((share, variant))
    return [variant for _, variant in sorted(left, key=lambda item: item[0])[:count]]


def quick_residual(heads: Heads) -> float:
    """The least any quick sampler setting leaves, nats."""
    sheet = heads.sheet
    found = [sheet.residual(heads.view("expected"))]
    if heads.candidates is not None:
        found.append(sheet.residual(heads.view("raw")))
        for settings in QUICK:
            values_N = heads.setting(settings)
            found.append(math.inf if values_N is None or not _possible(values_N) else sheet.residual(values_N))
    return min(found)


def _possible(values_N: np.ndarray) -> bool:
    return bool(np.isneginf(values_N).mean() <= 0.05)
