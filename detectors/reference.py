"""Reference runs: the band a metric of the trainer should stay in, and bets on leaving it.

Question.    Trusted runs (of V0, of last week) went this way. Is this run on the same way?
Statistic.   Per metric, on the scale of trainer_metrics.py, aligned on the trainer's step. A run is a slow level (moving average) plus
             fast noise around it. Band at a step = median level of the runs ± t(R − 1)·s·√(1 + 1/R), s their spread there (pooled over
             neighbouring steps): where the level of one more run of the same kind lies with the stated coverage. A live value x
             bets on being above the upper (below the lower) edge: u = (x − edge) / (σ·√((1 + φ)/(1 − φ))), σ and φ the noise's
             size and autocorrelation within the reference runs, through the bounded bets of bounded.py.
One run.     Its seed variance is unknown: the edges are the operator's tolerance around its level, and the band says so.
Units.       The metric's own on its transformed scale; gains: nats of log evidence, one bet a logged step.
Guarantee.   E[e] ≤ 1 as far as the run's level stays inside the band and its noise is like the references': the long-run spread in
             the denominator pays for autocorrelation. Approximate, tested on AR(1) runs in tests/test_reference.py. That a healthy
             run's level leaves the band of a metric has probability 1 − coverage, besides.
When it lies. A run with another schedule (batch size, learning rate, data order) is no run of the same kind. Steps beyond the last
             common step of the references are not judged. With two runs the band is very wide, honestly so.
Source.      Prediction interval of one more normal draw; long-run variance of an AR(1); bounded.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from collector.errors import InputError
from collector.sources.metrics.history import Series
from detectors import bounded
from detectors.trainer_metrics import of

SCHEMA = 1
GRID = 100  # points a band is kept at, at most
LEAST_STEPS = 20
MAX_PHI = 0.95
SIDES = {1: "above", -1: "below"}
Arrays = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricBand:
    """One metric's band: `steps` ascending, `center`, `low`, `high` on the transformed scale at each of them, linear in between."""

    steps: Arrays
    center: Arrays
    low: Arrays
    high: Arrays
    noise: float  # standard deviation of the fast noise of one logged step
    phi: float  # its autocorrelation from one logged step to the next
    runs: int

    def edges(self, step: float) -> tuple[float, float] | None:
        """(low, high) at a step; None outside the steps the references share."""
        if not self.steps[0] <= step <= self.steps[-1]:
            return None
        return float(np.interp(step, self.steps, self.low)), float(np.interp(step, self.steps, self.high))

    @property
    def spread(self) -> float:
        """Long-run standard deviation of the noise: what one step counts for in a sum of many."""
        return self.noise * math.sqrt((1 + self.phi) / (1 - self.phi))


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """What `klaxon reference learn` writes."""

    runs: tuple[str, ...]
    metrics: Mapping[str, MetricBand]
    left_out: Mapping[str, str] = field(default_factory=dict)  # metric → why it has no band
    coverage: float = 0.99
    tolerance: str = ""  # as given; "" = none

    @property
    def seed_variance_known(self) -> bool:
        """Did more than one run teach it?"""
        return len(self.runs) > 1

    def to_json(self) -> dict[str, Any]:
        """Plain data, versioned."""
        return {"klaxon_band": SCHEMA, "runs": list(self.runs), "coverage": self.coverage, "tolerance": self.tolerance,
                "left_out": dict(self.left_out), "metrics": {name: asdict(band) for name, band in self.metrics.items()}}


def band_from(data: Any, *, where: str) -> Band:
    """The inverse of `to_json`.

    Raises:
        InputError: another version, or a field that is missing or wrong; named.
    """
    if not isinstance(data, dict) or data.get("klaxon_band") != SCHEMA:
        found = data.get("klaxon_band") if isinstance(data, dict) else None
        raise InputError(f"is {found}, this Klaxon reads {SCHEMA}; write it anew with `klaxon reference learn`", field="klaxon_band", where=where)
    metrics = {}
    for name, row in data.get("metrics", {}).items():
        try:
            arrays = {key: tuple(float(x) for x in row[key]) for key in ("steps", "center", "low", "high")}
            metrics[name] = MetricBand(**arrays, noise=float(row["noise"]), phi=float(row["phi"]), runs=int(row["runs"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{type(error).__name__}: {error}", field=f"metrics.{name}", where=where) from None
        lengths = {len(values) for values in arrays.values()}
        if len(lengths) > 1 or not lengths.pop() or not metrics[name].noise > 0 or not 0 <= metrics[name].phi < 1:
            raise InputError("steps, center, low and high must be equally long, noise above 0, phi in [0, 1)", field=f"metrics.{name}", where=where)
    return Band(runs=tuple(data.get("runs", ())), metrics=metrics, left_out=data.get("left_out", {}), coverage=float(data.get("coverage", 0.99)),
                tolerance=str(data.get("tolerance", "")))


def learn(runs: Mapping[str, Mapping[str, Series]], *, names: Sequence[str], coverage: float = 0.99,
          tolerance: Mapping[str, float] | None = None) -> Band:
    """The band of the metrics `names` over the runs. `tolerance`: metric (or "" for all) → fraction, the least half-width.

    Raises:
        InputError: no metric has a band; says why of the first.
    """
    tolerance, metrics, left_out = tolerance or {}, {}, {}
    for name in names:
        series = [found[name] for found in runs.values() if name in found]
        allowed = tolerance.get(name, tolerance.get(""))
        if len(series) < len(runs):
            left_out[name] = f"only {len(series)} of {len(runs)} runs log it"
        elif len(series) == 1 and allowed is None:
            left_out[name] = "one run alone needs a tolerance"
        else:
            made = _band(name, series, coverage, allowed)
            (metrics if isinstance(made, MetricBand) else left_out)[name] = made
    if not metrics:
        first = next(iter(left_out.items()), ("any metric", "the runs share none"))
        raise InputError(f"no band could be learnt: {first[0]}: {first[1]}", where=", ".join(runs))
    said = ", ".join(f"{name or 'all'} {value:.4g}" for name, value in tolerance.items())
    return Band(runs=tuple(runs), metrics=metrics, left_out=left_out, coverage=coverage, tolerance=said)


def _band(name: str, series: Sequence[Series], coverage: float, allowed: float | None) -> MetricBand | str:
    """One metric's band, or why there is none."""
    metric, curves = of(name), []
    for one in series:
        values = np.array([metric.value(x) for x in one.values])
        known = np.isfinite(values)
        curves.append((one.steps[known].astype(float), values[known]))
    first, last = max((steps[0] if steps.size else math.inf) for steps, _ in curves), min((steps[-1] if steps.size else -math.inf) for steps, _ in curves)
    inside = [(steps >= first) & (steps <= last) for steps, _ in curves]
    curves = [(steps[keep], values[keep]) for (steps, values), keep in zip(curves, inside, strict=True)]
    if min(steps.size for steps, _ in curves) < LEAST_STEPS:
        return f"fewer than {LEAST_STEPS} steps in common"
    levels = [smooth(values) for _, values in curves]
    noise, phi = noise_of([values - level for (_, values), level in zip(curves, levels, strict=True)])
    grid = np.linspace(first, last, min(GRID, min(steps.size for steps, _ in curves)))
    level_RG = np.stack([np.interp(grid, steps, level) for (steps, _), level in zip(curves, levels, strict=True)])
    center = np.median(level_RG, axis=0)
    half = np.full(grid.size, metric.dead_band if len(series) > 1 else 0.0)
    if len(series) > 1:
        spread = np.sqrt(smooth(level_RG.var(axis=0, ddof=1), share=0.3))
        half += stats.t.ppf(0.5 + coverage / 2, len(series) - 1) * spread * math.sqrt(1 + 1 / len(series))
    if allowed is not None:
        size = float(np.median(np.abs(np.concatenate([values for _, values in curves]))))
        half = np.maximum(half, allowed * size if metric.transform == "level" else math.log1p(allowed))
    least = 1e-6 * max(1.0, float(np.abs(center).max()))
    rounded = {key: tuple(np.round(values, 9).tolist()) for key, values in
               (("steps", grid), ("center", center), ("low", center - half), ("high", center + half))}
    return MetricBand(**rounded, noise=max(noise, least), phi=phi, runs=len(series))


def smooth(values: np.ndarray, *, share: float = 0.1) -> np.ndarray:
    """Centred moving average over a share of the points (at least 5), narrower at the ends; float [K]."""
    half = max(2, int(share * values.size / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(values.size)
    reach = np.minimum(half, np.minimum(index, values.size - 1 - index))
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def noise_of(residuals: Sequence[np.ndarray]) -> tuple[float, float]:
    """(standard deviation, autocorrelation from one step to the next) of the fast noise, pooled over runs, the ends left out."""
    inner = [each[2:-2] for each in residuals]
    squares = sum(float((each**2).sum()) for each in inner)
    count = sum(each.size for each in inner)
    products = sum(float((each[1:] * each[:-1]).sum()) for each in inner)
    phi = products / squares if squares else 0.0
    phi += (1 + 3 * max(phi, 0.0)) / max(count, 1) + 2 / math.sqrt(max(count, 1))  # the estimate is low on average; an upper one is used
    return math.sqrt(squares / max(count, 1)) * 1.1, min(max(phi, 0.0), MAX_PHI)


def stream(name: str, side: int, shift: float) -> str:
    """The stream's name.

    >>> stream("reward", -1, 0.5)
    'reference:reward:below:0.5'
    """
    return f"reference:{name}:{SIDES[side]}:{shift:g}"


def streams(band: Band) -> tuple[str, ...]:
    """Every stream this band can give birth to."""
    return tuple(stream(name, side, shift) for name in band.metrics for side in of(name).directions for shift in bounded.SHIFTS)


def gains(band: Band, step: int, values: Mapping[str, float]) -> dict[str, float]:
    """Stream → log gain of one step's metrics (standard names, as logged), nats; what has no band or no value does not bet."""
    found: dict[str, float] = {}
    for name in band.metrics.keys() & values.keys():
        one, metric = band.metrics[name], of(name)
        x, edges = metric.value(values[name]), one.edges(step)
        if edges is None or not math.isfinite(x):
            continue
        for side in metric.directions:
            u = (x - edges[1] if side > 0 else edges[0] - x) / one.spread
            found |= {stream(name, side, shift): bounded.gain(u, shift) for shift in bounded.SHIFTS}
    return dict(sorted(found.items()))
