"""Are two runs the same within noise? Per metric: the difference, an honest interval, and what would settle it.

Question.    V0 and V1 (or two seeds, or two images): did this metric come out the same, different, or can nobody tell yet?
Statistic.   On the scale of trainer_metrics.py, over the steps both sides logged: the mean of D = b − a, and an interval.
             One run a side: D is a time series; its mean's standard error is the orthonormal-cosine estimate of the long-run
             variance with ν terms, Student-t(ν). ν follows the autocorrelation found (an upper estimate), so that slow noise
             gives few degrees of freedom and a wide interval rather than a false alarm. Several runs on both sides: each run's
             mean is one number, Welch's interval: seeds vary, steps within a run do not count as many. Several on one side only: the
             other side's single run against the prediction of one more.
Answer.      With margin m: *same* = the whole interval lies within ±m; *different* = it excludes 0 and is not all within ±m;
             else *cannot tell*, and how many times the steps (or runs) would shrink the interval enough.
Units.       Transformed: log scales are shown as a ratio, level scales in the metric's own unit. Effect size: the mean of D over
             its standard deviation from step to step.
Guarantee.   A fixed-length interval at level 1 − α/(number of metrics): for a finished pair, looked at once. To watch a run as it
             goes, use the reference band: its evidence may be looked at any time.
When it lies. One run a side knows nothing of seeds: "different" means these two runs differ, not that the change did it. Beyond
             an autocorrelation of about .97 over the length at hand it always says it cannot tell.
Source.      Lazarus, Lewis, Stock, Watson (2018), *HAR inference*: equal-weighted cosines; Schuirmann (two one-sided tests); Welch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from collector.sources.metrics.history import Series
from detectors.trainer_metrics import of

LEAST_STEPS = 20
LEAST_TERMS = 3  # degrees of freedom of a long-run variance worth having


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One metric. `difference`, `low`, `high`, `margin` on the transformed scale, b − a; NaN where nothing could be computed."""

    metric: str
    answer: Literal["same", "different", "cannot tell"]
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    margin: float = math.nan
    effect: float = math.nan  # difference / standard deviation of D from step to step
    steps: int = 0  # in common
    runs: tuple[int, int] = (1, 1)
    times_more: float | None = None  # cannot tell: this many times the steps (runs, where there are several) would settle it
    why: str = ""

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """(estimate, low, high) of b/a on a log scale; None on others."""
        if of(self.metric).transform != "log" or not math.isfinite(self.difference):
            return None
        return tuple(math.exp(min(x, 700.0)) for x in (self.difference, self.low, self.high))


def compare(a: Sequence[Mapping[str, Series]], b: Sequence[Mapping[str, Series]], *, names: Sequence[str], alpha: float = 0.05,
            margin: Mapping[str, float]) -> list[Answer]:
    """One answer a metric. `margin`: metric or "" (all) → fraction that is no difference worth a word."""
    level = alpha / max(len(names), 1)
    return [_answer(name, a, b, level=level, allowed=margin.get(name, margin.get("", 0.1))) for name in names]


def _answer(name: str, a: Sequence[Mapping[str, Series]], b: Sequence[Mapping[str, Series]], *, level: float, allowed: float) -> Answer:
    found = [_known(run[name], name) for run in (*a, *b) if name in run]
    runs = len(a), len(b)
    if len(found) < len(a) + len(b):
        return Answer(metric=name, answer="cannot tell", runs=runs, why="not every run logs it")
    common = sorted(set.intersection(*(set(one) for one in found)))
    if len(common) < LEAST_STEPS:
        return Answer(metric=name, answer="cannot tell", steps=len(common), runs=runs, why=f"fewer than {LEAST_STEPS} steps in common")
    values_RK = np.array([[one[step] for step in common] for one in found])
    left, right = values_RK[:len(a)], values_RK[len(a):]
    d_K = right.mean(axis=0) - left.mean(axis=0)
    margin = math.log1p(allowed) if of(name).transform != "level" else allowed * float(np.median(np.abs(values_RK)))
    mean, spread = float(d_K.mean()), float(d_K.std(ddof=1))
    half, more, why = _within(d_K, level) if max(runs) == 1 else (*_between(left.mean(axis=1), right.mean(axis=1), level), "")
    effect = mean / spread if spread > 0 else (0.0 if mean == 0 else math.copysign(math.inf, mean))
    base = {"metric": name, "difference": mean, "low": mean - half, "high": mean + half, "margin": margin, "effect": effect,
            "steps": len(common), "runs": runs}
    if half < math.inf and abs(mean) + half <= margin:
        return Answer(**base, answer="same")
    if half < math.inf and abs(mean) > half:
        return Answer(**base, answer="different")
    target = max(margin - abs(mean), abs(mean))
    needed = more if half == math.inf else max((half / target) ** 2, 1.1) if target > 0 else None
    return Answer(**base, answer="cannot tell", times_more=needed, why=why)


def _known(series: Series, name: str) -> dict[int, float]:
    metric = of(name)
    rows = ((step, metric.value(value)) for step, value in zip(series.steps.tolist(), series.values.tolist(), strict=True))
    return {step: x for step, x in rows if math.isfinite(x)}


def _within(d_K: np.ndarray, level: float) -> tuple[float, float | None, str]:
    """(half-width, how many times longer if it has none, why it has none) from one series of differences."""
    n, terms = d_K.size, cosine_terms(d_K)
    if terms < LEAST_TERMS:
        return math.inf, LEAST_TERMS / max(terms, 0.2), "the difference wanders too slowly for so few steps"
    return interval(d_K, level=level, terms=int(terms)), None, ""


def cosine_terms(d_K: np.ndarray) -> float:
    """How many cosines look at frequencies where the spectrum is still flat: K·(1 − φ)/2π, at most .4·K^⅔."""
    n, centred = d_K.size, d_K - d_K.mean()
    squares = float((centred**2).sum())
    phi = float((centred[1:] * centred[:-1]).sum()) / squares if squares else 0.0
    phi = max(phi, 0.0) + (1 + 3 * max(phi, 0.0)) / n + math.sqrt(max(1 - phi**2, 0.0) / n)  # bias, and one standard error
    return min(n * max(1 - phi, 0.0) / (2 * math.pi), 0.4 * n ** (2 / 3))


def interval(d_K: np.ndarray, *, level: float, terms: int) -> float:
    """Half-width of the mean's interval at two-sided `level`, from `terms` orthonormal cosines."""
    n = d_K.size
    angle = math.pi * np.arange(1, terms + 1)[:, None] * (np.arange(n) + 0.5)[None, :] / n
    weights = math.sqrt(2 / n) * np.cos(angle) @ d_K
    return float(stats.t.ppf(1 - level / 2, terms)) * math.sqrt(float((weights**2).mean()) / n)


def _between(left: np.ndarray, right: np.ndarray, level: float) -> tuple[float, float | None]:
    """(half-width, None) from the runs' own means: Welch, or one side's spread for both where the other has one run."""
    sizes = np.array([left.size, right.size])
    if sizes.min() == 1:
        many = left if left.size > 1 else right
        half = float(stats.t.ppf(1 - level / 2, many.size - 1)) * float(many.std(ddof=1)) * math.sqrt(1 + 1 / many.size)
        return half, None
    parts = np.array([left.var(ddof=1), right.var(ddof=1)]) / sizes
    if not parts.sum():
        return 0.0, None
    freedom = float(parts.sum() ** 2 / (parts**2 / (sizes - 1)).sum())
    return float(stats.t.ppf(1 - level / 2, freedom)) * math.sqrt(float(parts.sum())), None
