"""Tier 0: which temperature were the reported logprobs divided by? The bf16 lattice tells, with no model.

Question.    An engine with a bfloat16 head rounds its logits to multiples of 1/16 or 1/32 (for logits of size 4 to 16).
             Differences of reported logprobs are differences of logits divided by the temperature in the report.
Statistic.   For a hypothetical T: share of top-1 − top-j differences, times T, that are multiples of 1/32. Right T: nearly
             all; wrong T: about 2·tolerance·32 by chance, unless it is a simple fraction of the right one (0.8 and 1): then
             the right T lies on the coarser lattice, seen in the shares for 1/16 and 1/8.
Units.       Share of differences, in [0, 1].
When it lies. A float32 head has no lattice at any T (then nothing is said). Logprobs that were themselves rounded lie on a
             lattice of their own: then the values, not only their differences, are multiples of 1/32, and nothing is said.
             The head's step is known up to a factor of two, so T is too: only T within a factor √2 of the declared one and
             T = 1 (a raw report) are asked. Raw reports at a declared T of 0.5 are taken for right.
Source.      Reference measurements: 99 % on-lattice for a bf16 head (n = 992), 2 % for a float32 head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from collector.records import Rollout

STEPS = (1 / 32, 1 / 16, 1 / 8)
TOLERANCE_NATS = 2e-4
CLEAR_SHARE = 0.9
CLEAR_LEAD = 0.1
MIN_DIFFERENCES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """On-lattice shares; `report_temperature` is the T the reports were divided by, None when no T stands out."""

    differences: int
    share_at_one: float  # as if the report were raw
    share_at_declared: float | None
    report_temperature: float | None


def lattice_test(rollouts: Iterable[Rollout], *, temperature: float | None) -> Lattice | None:
    """The test over all rollouts; `temperature` is the declared one. None when too few differences are reported."""
    differences_N, values_N = _differences(rollouts)
    if differences_N.size < MIN_DIFFERENCES:
        return None
    declared = temperature or None
    shares = {t: _shares(differences_N, t) for t in _grid(declared)}
    return Lattice(
        differences=differences_N.size, share_at_one=shares[1.0][0], share_at_declared=shares[declared][0] if declared else None,
        report_temperature=None if _shares(values_N, 1.0)[0] > 0.5 else _clear(shares, declared),
    )


def _clear(shares: dict[float, list[float]], declared: float | None) -> float | None:
    """The one temperature whose lattice is clearly the coarsest; the declared one when it is as good as any."""
    depth = {t: sum(values) / len(values) for t, values in shares.items() if values[0] >= CLEAR_SHARE}
    if not depth:
        return None
    first = max(depth, key=lambda t: depth[t])
    if declared in depth and depth[declared] > depth[first] - CLEAR_LEAD:
        return declared
    lead = depth[first] - max((value for t, value in depth.items() if t != first), default=0.0)
    return first if lead > CLEAR_LEAD else None


def _grid(declared: float | None) -> list[float]:
    """Temperatures within a factor √2 of the declared one (or of 1), and 1: a lattice of half the step looks the same."""
    centre = declared or 1.0
    near = np.arange(math.ceil(centre / math.sqrt(2) * 100), math.floor(centre * math.sqrt(2) * 100) + 1) / 100
    return sorted({1.0, centre, *near.tolist()})


def _differences(rollouts: Iterable[Rollout]) -> tuple[np.ndarray, np.ndarray]:
    differences, values = [np.empty(0)], [np.empty(0)]
    for rollout in rollouts:
        for row in rollout.top_logprobs:
            if row is not None and row.size > 1 and np.isfinite(row).all():
                top = np.sort(row.astype(np.float64))[::-1]
                differences.append(top[0] - top[1:])
                values.append(top[1:])
    gaps_N = np.concatenate(differences)
    keep_N = gaps_N > STEPS[0]
    return gaps_N[keep_N], np.concatenate(values)[keep_N]


def _shares(values_N: np.ndarray, temperature: float) -> list[float]:
    """Share of values × T on the lattice of each step, finest first."""
    scaled_N = values_N * temperature
    return [float((np.abs(scaled_N - step * np.round(scaled_N / step)) <= TOLERANCE_NATS).mean()) for step in STEPS]
