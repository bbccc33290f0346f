"""Has a recorded run left the band of its reference runs, and at which step? For a whole run at hand (klaxon reference check).

Question.    Over the whole run, may the band be left by chance with at most the stated probability?
Statistic.   Per stream of reference.py the mixture W_t = Σ_j w_j·Π_{i=j..t} e_i over the step j at which it may have left,
             w_j = 1/(j(j + 1)). A metric has left when one of its K streams (K over all metrics) reaches W ≥ K/α.
Units.       W, α: none; steps are the trainer's.
Guarantee.   Each W is an e-process (Ville): P(any metric is said to have left) ≤ α, however often one looks, as far as
             reference.py's bets are e-values.
Source.      Ville's inequality; Shin, Ramdas, Rinaldo (*E-detectors*) for mixing over the start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from collector.sources.metrics.history import Series
from detectors.reference import SIDES, Band, gains, streams
from detectors.trainer_metrics import of


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One metric of the run. `left` False and `judged` 0 = not judged (`why`)."""

    metric: str
    left: bool
    side: str = ""  # above or below
    at_step: int | None = None  # where the evidence reached its threshold
    since_step: int | None = None  # where that evidence began
    log_evidence: float = -math.inf  # largest ln W of its streams, nats
    threshold: float = math.inf  # ln(K/α)
    excess: float = 0.0  # largest mean distance beyond the edge since then, in half-widths of the band
    judged: int = 0  # steps
    why: str = ""


class _Process:
    """One stream's ln W, and where its dominating part began."""

    def __init__(self) -> None:
        self.started, self.ticks, self.best, self.low, self.total, self.since = -math.inf, 0, -math.inf, 0.0, 0.0, None

    def tick(self, gain: float, step: int) -> float:
        self.ticks += 1
        if self.total <= self.low:
            self.low, self.since = self.total, step
        self.total += gain
        self.started = np.logaddexp(self.started, -math.log(self.ticks * (self.ticks + 1))) + gain
        return float(np.logaddexp(self.started, -math.log(self.ticks + 1)))


def check(band: Band, run: Mapping[str, Series], *, alpha: float = 0.01) -> list[Verdict]:
    """One verdict a metric of the band, those that left first."""
    threshold = math.log(len(streams(band)) / alpha)
    found = [_metric(band, name, run.get(name), threshold) for name in band.metrics]
    return sorted(found, key=lambda verdict: (not verdict.left, -verdict.log_evidence))


def _metric(band: Band, name: str, series: Series | None, threshold: float) -> Verdict:
    if series is None:
        return Verdict(metric=name, left=False, threshold=threshold, why="the run does not log it")
    processes: dict[str, _Process] = {}
    best, crossed, judged = (-math.inf, ""), None, 0
    for step, value in zip(series.steps.tolist(), series.values.tolist(), strict=True):
        ticking = gains(band, step, {name: value})
        judged += bool(ticking)
        for stream, gain in ticking.items():
            process = processes.setdefault(stream, _Process())
            reached = process.tick(gain, step)
            best = max(best, (reached, stream))
            if crossed is None and reached >= threshold:
                crossed = stream, step, process.since
    if not judged:
        return Verdict(metric=name, left=False, threshold=threshold, why="none of its steps is among those of the references")
    if crossed is None:
        return Verdict(metric=name, left=False, log_evidence=best[0], threshold=threshold, judged=judged)
    side = crossed[0].split(":")[-2]
    return Verdict(metric=name, left=True, side=side, at_step=crossed[1], since_step=crossed[2], log_evidence=best[0], threshold=threshold,
                   excess=_excess(band, name, series, side, crossed[2]), judged=judged)


def _excess(band: Band, name: str, series: Series, side: str, since: int | None) -> float:
    one, sign = band.metrics[name], next(key for key, word in SIDES.items() if word == side)
    keep = (series.steps >= (since or 0)) & (series.steps <= one.steps[-1]) & (series.steps >= one.steps[0])
    steps, values = series.steps[keep], np.array([of(name).value(x) for x in series.values[keep]])
    edge = np.interp(steps, one.steps, one.high if sign > 0 else one.low)
    half = np.abs(edge - np.interp(steps, one.steps, one.center))
    return float(np.nanmean(sign * (values - edge) / np.maximum(half, 1e-9))) if steps.size else 0.0
