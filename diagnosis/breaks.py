"""Faults that predict no logprob but have a place: from a position on, or in a few rollouts. The rest must be at the floor.

Question.    The tokens are as healthy everywhere but in one part. From which position N on (position_dependent), or in which rollouts (strays)?
Statistic.   Position: N maximises the between-part sum of squares of log(1 + |d|/floor) on one fold of the rollouts; mean |d| from N on against
             before is judged on the other fold, clustered by rollout, both ways round. Rollouts: mean |d| of a rollout's even tokens chooses,
             that of its odd tokens judges.
Guarantee.   What is selected is judged on tokens that took no part in selecting it.
When it lies. An update in the middle of rollouts and a frequency penalty also begin late, but by the index in the completion: N as a position in
             prompt + completion must fit better than N as an index, so prompts of one length never give a confident verdict. Stray rollouts without
             a donor (donors.py) can be any fault that strikes few requests; they are named, never confident.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diagnosis.sheet import Sheet, clustered_mean

BLOCK = 16
"""KV block sizes are multiples of it: their edges are candidates besides quantiles of the positions."""

QUANTILES = 48
MIN_SHARE = 0.05
AFTER_TO_BEFORE = 3.0
CONCERNED_SHARE = 0.8
STRAY_RATIO = 8.0
STRAY_SHARE = 0.34
MIN_STRAY_TOKENS = 8
REMARK = ("from a position on: look at RoPE or YaRN scaling, KV cache quantisation (fp8 tiles), sliding windows and chunked prefill at block edges")


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """From token `position` of prompt + completion on the two sides differ. Nats."""

    position: int
    halves: tuple[int, int]  # N as each fold chose it
    before: float
    after: float
    z: float  # of after − before, held out
    by_position_z: float  # how much better the position tells it than the index in the completion; ≤ 0: not at all

    @property
    def stable(self) -> bool:
        """Both halves of the rollouts chose nearly the same N."""
        return abs(self.halves[0] - self.halves[1]) <= max(6, 0.05 * self.position)

    @property
    def text(self) -> str:
        """The numbers in one line."""
        edge = round(self.position / BLOCK) * BLOCK
        near = f", by the block edge {edge}" if abs(edge - self.position) <= 2 else ""
        return (f"mean |d| {self.before:.4f} nats before token {self.position}, {self.after:.4f} from there on (z {self.z:.1f} on held-out tokens; "
                f"{self.halves[0]} and {self.halves[1]} on the two halves{near})")


def find_break(sheet: Sheet, expected_N: np.ndarray, *, floor_nats: float, limit: float, z: float) -> Break | None:
    """None unless everything before N is at the floor, and nearly every rollout that goes beyond is off from there on.

    Args:
        floor_nats, limit: the floor, and the residual up to which tokens count as explained, nats.
        z: standard errors the held-out difference must have.
    """
    d_N = np.abs(sheet.engine_N - expected_N)
    if not np.isfinite(d_N).all():
        return None
    x_N = np.log1p(d_N / floor_nats)
    halves = [_best(sheet.position_N, x_N, sheet.fold_N == fold) for fold in (0, 1)]
    best = _best(sheet.position_N, x_N, np.ones(x_N.size, dtype=bool))
    if best is None or None in halves:
        return None
    cut_N = np.where(sheet.fold_N == 0, halves[1], halves[0])
    after_N = sheet.position_N >= cut_N
    low, low_se, _ = clustered_mean(d_N[~after_N], sheet.rollout_N[~after_N])
    high, high_se, _ = clustered_mean(d_N[after_N], sheet.rollout_N[after_N])
    found = Break(position=best, halves=(halves[0], halves[1]), before=low, after=high, z=(high - low) / max(math.hypot(low_se, high_se), 1e-12),
                  by_position_z=_over_index(sheet, x_N, after_N))
    reach = [float(d_N[after_N & (sheet.rollout_N == i)].mean()) for i in np.unique(sheet.rollout_N[after_N])]
    concerned = np.mean(np.array(reach) > limit)
    holds = low <= limit and high > max(limit, AFTER_TO_BEFORE * low) and found.z > z and concerned >= CONCERNED_SHARE
    return found if holds else None


def _best(place_N: np.ndarray, x_N: np.ndarray, use_N: np.ndarray) -> int | None:
    """The cut that raises x most from there on, by between-part sum of squares; None without an admissible one."""
    place, x = place_N[use_N], x_N[use_N]
    if not place.size:
        return None
    marks = np.quantile(place, np.linspace(MIN_SHARE, 1 - MIN_SHARE, QUANTILES)).round().astype(int)
    edges = np.arange(BLOCK, int(place.max()) + 1, BLOCK)
    best, best_gain = None, 0.0
    for cut in np.unique([*marks, *edges, *(edges + 1)]).tolist():
        after = place >= cut
        n = int(after.sum())
        if min(n, x.size - n) < max(4, MIN_SHARE * x.size):
            continue
        rise = float(x[after].mean() - x[~after].mean())
        gain = rise**2 * n * (x.size - n) / x.size if rise > 0 else 0.0
        if gain > best_gain:
            best, best_gain = cut, gain
    return best


def _over_index(sheet: Sheet, x_N: np.ndarray, after_N: np.ndarray) -> float:
    """z of how much better the position tells x than the index in the completion does, both cut out of fold; 0 where they are one."""
    cuts = [_best(sheet.index_N, x_N, sheet.fold_N == fold) for fold in (0, 1)]
    late_N = np.zeros(x_N.size, dtype=bool) if None in cuts else sheet.index_N >= np.where(sheet.fold_N == 0, cuts[1], cuts[0])
    errors = []
    for part_N in (late_N, after_N):
        fitted_N = np.empty(x_N.size)
        for fold in (0, 1):
            own, other = sheet.fold_N == fold, sheet.fold_N != fold
            for side in (part_N, ~part_N):
                fitted_N[own & side] = x_N[other & side].mean() if (other & side).any() else x_N[other].mean()
        errors.append((x_N - fitted_N) ** 2)
    mean, se, _ = clustered_mean(errors[0] - errors[1], sheet.rollout_N)
    return mean / se if se > 0 and math.isfinite(se) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Strays:
    """A few rollouts that are off while the rest are at the floor. `rollouts`: indices in the sheet. Nats."""

    rollouts: tuple[int, ...]
    off: float  # mean |d| of their odd tokens, which did not choose them
    rest: float  # residual of all others

    def text(self, total: int) -> str:
        """The numbers in one line."""
        return f"{len(self.rollouts)} of {total} rollouts are off by {self.off:.3f} nats on average, the rest by {self.rest:.4f}"


def find_strays(sheet: Sheet, expected_N: np.ndarray, *, floor_nats: float, limit: float) -> Strays | None:
    """None without such rollouts, when they are not few, or when the rest is not at the floor."""
    d_N = np.abs(sheet.engine_N - expected_N)
    d_N[~np.isfinite(d_N)] = math.inf
    even_N = sheet.index_N % 2 == 0
    rows = [sheet.rollout_N == i for i in range(len(sheet.rollouts))]
    usual = float(np.median([d_N[row].mean() for row in rows]))
    bar = STRAY_RATIO * max(floor_nats, usual)
    picked = [i for i, row in enumerate(rows) if row.sum() >= MIN_STRAY_TOKENS
              and all(part.any() and d_N[part].mean() > bar for part in (row & even_N, row & ~even_N))]
    if not picked or len(picked) > STRAY_SHARE * len(rows):
        return None
    theirs_N = np.isin(sheet.rollout_N, picked)
    rest = sheet.residual(expected_N, ~theirs_N)
    odd = d_N[theirs_N & ~even_N]
    return Strays(rollouts=tuple(picked), off=float(odd.mean()), rest=rest) if rest <= limit else None
