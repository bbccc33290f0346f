"""The strength of a hidden sampler setting by profile likelihood, fitted on each fold of the rollouts and judged on the other.

Statistic.   mean |engine − predicted| over one strength, nats. With Laplace errors of unknown scale its least value is the most likely strength;
             it is also what explanations compete by. A coarse grid, then finer ones between the neighbours of the best value of each
             fold and of all tokens; every value is evaluated once.
Admissible.  A strength under which more than OUTSIDE_SHARE of the sampled tokens could not have been sampled is refuted.
When it lies. Presence and frequency penalty agree where no token occurs twice; top-k and top-p where distributions are alike. Which of them it
             was is then only as sure as the two folds agree on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from diagnosis.settings import OFF
from diagnosis.sheet import Sheet

OUTSIDE_SHARE = 0.01
"""An explanation under which more of the sampled tokens than this were impossible is refuted; a few boundary tokens are not."""

APART_SHARE = 0.15
"""No more tokens than this may lie at the edge of the kept set, where nothing is judged."""

GRIDS: Mapping[str, tuple[float, ...]] = {
    "top_p": (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.96, 0.98, 0.995),
    "top_k": (1, 2, 4, 7, 12, 20, 30, 45, 64, 90, 130, 180),
    "min_p": (0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.2, 0.4),
    "repetition_penalty": (0.7, 0.85, 0.95, 1.05, 1.1, 1.2, 1.3, 1.5, 1.8, 2.2),
    "presence_penalty": (-2.0, -1.0, -0.5, -0.15, 0.15, 0.5, 1.0, 1.5, 2.0),
    "frequency_penalty": (-2.0, -1.0, -0.5, -0.15, 0.15, 0.5, 1.0, 1.5, 2.0),
}
"""Coarse strengths of each setting, and thereby its range."""

LEVELS, STEPS = 6, 5
WORTH_REFINING = 1.5
AGREE_SHARE, AGREE_AT_LEAST = 0.25, 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One setting's fit. `halves`: its value on fold 0 and on fold 1."""

    name: str
    best: float
    halves: tuple[float, float]
    values: Mapping[float, np.ndarray]  # strength → prediction [N]

    def on(self, sheet: Sheet, fold: int) -> float:
        """The residual the fold's own value leaves on it, nats."""
        return cost(sheet, self.values[self.halves[fold]], sheet.fold_N == fold)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The setting that fits best, out of fold."""

    settings: dict[str, float]
    values_N: np.ndarray
    stable: bool
    text: str


def cost(sheet: Sheet, values_N: np.ndarray, within_N: np.ndarray | None = None) -> float:
    """The residual, nats; inf where the prediction is refuted, or leaves too many tokens out to be judged."""
    refuted = np.isneginf(values_N).mean() > OUTSIDE_SHARE or np.isnan(values_N).mean() > APART_SHARE
    return math.inf if refuted else sheet.residual(values_N, within_N)


def profile(name: str, sheet: Sheet, evaluate: Callable[[float], np.ndarray], *, levels: int = LEVELS) -> Profile:
    """The best strengths of one setting; `evaluate` predicts [N] at one strength."""
    values = {value: evaluate(value) for value in GRIDS[name]}
    masks = (sheet.fold_N == 0, sheet.fold_N == 1, None)

    def least(mask_N: np.ndarray | None) -> float:
        return min(values, key=lambda value: cost(sheet, values[value], mask_N))

    for _ in range(levels):
        known = sorted(values)
        for best in {least(mask_N) for mask_N in masks}:
            place = known.index(best)
            for value in _between(known[max(0, place - 1)], best, known[min(len(known) - 1, place + 1)], name):
                if value not in values:
                    values[value] = evaluate(value)
    return Profile(name=name, best=least(None), halves=(least(masks[0]), least(masks[1])), values=values)


def _between(low: float, best: float, high: float, name: str) -> list[float]:
    """A few strengths on either side of the best; whole numbers for top-k."""
    each = STEPS // 2 + 1
    found = [*np.linspace(low, best, each + 1)[1:-1], *np.linspace(best, high, each + 1)[1:-1]]
    return sorted({float(round(value)) if name == "top_k" else float(value) for value in found})


def fitted(sheet: Sheet, names: tuple[str, ...], evaluate: Callable[[Mapping[str, float]], np.ndarray], *, assumed: Callable[[str], str]) -> Fitted | None:
    """The best of several settings, each alone; None where every one is refuted.

    Args:
        evaluate: predicts [N] for {setting: strength}.
        assumed: what the trainer declares of a setting, in words.
    """
    profiles = {name: profile(name, sheet, lambda value, name=name: evaluate({name: value}), levels=0) for name in names}  # type: ignore[misc]
    least = min(cost(sheet, one.values[one.best]) for one in profiles.values())
    if not math.isfinite(least):
        return None
    near = [name for name, one in profiles.items() if cost(sheet, one.values[one.best]) <= WORTH_REFINING * least]
    profiles = {name: profile(name, sheet, lambda value, name=name: evaluate({name: value})) for name in near}  # type: ignore[misc]
    halves = [min(profiles.values(), key=lambda one: one.on(sheet, fold)) for fold in (0, 1)]
    values_N = np.where(sheet.fold_N == 0, halves[1].values[halves[1].halves[1]], halves[0].values[halves[0].halves[0]])
    best = min(profiles.values(), key=lambda one: cost(sheet, one.values[one.best]))
    stable = halves[0] is best and halves[1] is best and agree(best.name, *best.halves)
    said = " and ".join(f"{written(one.name, one.halves[fold])}{'' if one is best else ' of ' + one.name}" for fold, one in enumerate(halves))
    others = ", ".join(f"{one.name} {written(one.name, one.best)} leaves {cost(sheet, one.values[one.best]):.4f}" for one in profiles.values() if one is not best)
    text = (f"{best.name} = {written(best.name, best.best)} fits best ({said} on the two halves); the trainer assumes {assumed(best.name)}"
            f"{'; ' + others if others else ''}")
    return Fitted(settings={best.name: rounded(best.name, best.best)}, values_N=values_N, stable=stable, text=text)


def agree(name: str, one: float, other: float) -> bool:
    """Are two strengths of a setting nearly the same, measured by how far they are from off?"""
    return abs(one - other) <= max(AGREE_AT_LEAST, AGREE_SHARE * max(abs(one - OFF[name]), abs(other - OFF[name])))


def rounded(name: str, value: float) -> float:
    """As it is reported."""
    return int(value) if name == "top_k" else round(value, 4 if name == "min_p" else 3) + 0.0  # no −0


def written(name: str, value: float) -> str:
    """As it is reported, in words."""
    return f"{rounded(name, value):g}"
