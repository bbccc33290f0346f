"""Two sampler settings at once, read from one pass: a temperature beside top-p or a penalty, two truncations, two penalties.

Asked only while no single explanation brings the tokens to the floor. Every pair is tried coarsely on some of the tokens; the best few are fitted on each
fold (Nelder–Mead on mean |engine − predicted|) and judged on the other. Of two causes the one without which more would be left names the pair, the
other is its `second`; two settings of one cause are that cause. Raw logprobs hide every other setting, so they have no pair here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product

import numpy as np
from scipy.optimize import minimize

from diagnosis.explanations import Prediction, assumed
from diagnosis.heads import Heads, name_of
from diagnosis.profiles import GRIDS, agree, cost, rounded, written
from diagnosis.settings import OFF

CAUSE_OF = {"temperature": "temperature", "top_p": "truncation", "top_k": "truncation", "min_p": "truncation", "repetition_penalty": "penalties",
            "presence_penalty": "penalties", "frequency_penalty": "penalties"}

PAIRS = (("temperature", "top_p"), ("temperature", "top_k"), ("temperature", "min_p"), ("temperature", "repetition_penalty"),
         ("temperature", "presence_penalty"), ("temperature", "frequency_penalty"), ("top_p", "min_p"), ("top_p", "top_k"),
         ("top_p", "repetition_penalty"), ("presence_penalty", "frequency_penalty"), ("repetition_penalty", "frequency_penalty"))

COARSE_TEMPERATURES = (0.45, 0.6, 0.8, 1.0, 1.3)
COARSE_TOKENS = 128
MAX_FITTED = 2
MUST_LEAVE = 0.8
"""A pair is offered only where it leaves less than this share of what the best single setting leaves, and either of its own two alone."""

EVALUATIONS = 50
TEMPERATURE_RANGE = (0.1, 3.0)


def sampler_pairs(heads: Heads, *, best_single: float) -> list[Prediction]:
    """The pairs worth a place in the field. `best_single`: the residual of the best explanation so far, nats."""
    if heads.candidates is None:
        return []
    few = heads.some(COARSE_TOKENS)
    starts = {pair: _coarse(few, pair) for pair in PAIRS}
    found = []
    for pair in sorted(PAIRS, key=lambda pair: starts[pair][0])[:MAX_FITTED]:
        left, start = starts[pair]
        if math.isfinite(left):
            one = _fitted(heads, start)
            if one is not None and heads.sheet.residual(one[0].values_N) < MUST_LEAVE * min(best_single, one[1]):
                found.append(one[0])
    return found


def _coarse(heads: Heads, pair: tuple[str, str]) -> tuple[float, dict[str, float]]:
    """(cost, settings) of the best point of a coarse grid."""
    grids = [COARSE_TEMPERATURES if name == "temperature" else GRIDS[name][1::2] for name in pair]
    points = [dict(zip(pair, values, strict=True)) for values in product(*grids)]
    costs = [_cost(heads, point) for point in points]
    best = int(np.argmin(costs))
    return costs[best], points[best]


def _cost(heads: Heads, settings: Mapping[str, float]) -> float:
    values_N = heads.setting(settings)
    return math.inf if values_N is None else cost(heads.sheet, values_N)


def _fitted(heads: Heads, start: Mapping[str, float]) -> tuple[Prediction, float] | None:
    """The pair, and what the better one of its two settings leaves by itself at the same strength, nats."""
    sheet, names = heads.sheet, tuple(start)
    halves = [_refined(heads.within(sheet.fold_N == fold), start) for fold in (0, 1)]
    best = _refined(heads, start)
    predicted = [heads.setting(half) for half in halves]
    if predicted[0] is None or predicted[1] is None:
        return None
    values_N = np.where(sheet.fold_N == 0, predicted[1], predicted[0])
    if not math.isfinite(cost(sheet, values_N)):
        return None
    without = {name: _cost(heads, {other: value for other, value in best.items() if other != name}) for name in names}
    first = max(names, key=lambda name: without[name])
    other = next(name for name in names if name != first)
    second = CAUSE_OF[other] if CAUSE_OF[other] != CAUSE_OF[first] else ""
    parameters = {name: rounded(name, best[name]) for name in (first, other)} | ({"with": second} if second else {})
    said = " and ".join(", ".join(f"{name} {written(name, half[name])}" for name in (first, other)) for half in halves)
    texts = (f"together {name_of(parameters_of(parameters))} ({said} on the two halves); the trainer assumes {assumed(sheet, first)} and {assumed(sheet, other)}",
             "alone they leave " + ", ".join(f"{written(name, best[name])} {name} {without[o]:.4f}" for name, o in ((first, other), (other, first))) + " nats")
    stable = all(agree(name, halves[0][name], halves[1][name]) for name in names)
    one = Prediction(cause=CAUSE_OF[first], second=second, values_N=values_N, parameters=parameters, evidence=texts, heads=heads, stable=stable)
    return one, min(without.values())


def parameters_of(parameters: Mapping[str, object]) -> dict[str, float]:
    """The numbers among them."""
    return {name: float(value) for name, value in parameters.items() if name in OFF and isinstance(value, (int, float))}


def _refined(heads: Heads, start: Mapping[str, float]) -> dict[str, float]:
    """Nelder–Mead from the coarse point, within the grids' ranges; a refuted point costs more than any other."""
    names = tuple(start)
    ranges = [TEMPERATURE_RANGE if name == "temperature" else (GRIDS[name][0], GRIDS[name][-1]) for name in names]
    unit = np.array([max(0.02, 0.25 * abs(start[name] - OFF[name])) if name != "temperature" else 0.08 for name in names])

    def settings(x: np.ndarray) -> dict[str, float]:
        real = [float(np.clip(start[name] + step * size, *bounds)) for name, step, size, bounds in zip(names, x, unit, ranges, strict=True)]
        return dict(zip(names, (round(value) if name == "top_k" else value for name, value in zip(names, real, strict=True)), strict=True))

    simplex = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = minimize(lambda x: min(_cost(heads, settings(x)), 1e3), np.zeros(2), method="Nelder-Mead",
                     options={"maxfev": EVALUATIONS, "xatol": 0.01, "fatol": 1e-6, "initial_simplex": simplex})
    return settings(found.x)

