"""How detectors behave on recorded or simulated batches: run lengths, delays, realised false alarms, and rules to compare with.

Every rule to compare with is set on healthy streams: to the most sensitive level at which it stays silent on all of them. With
as many healthy batches as the budget's period that is about the same false-alarm rate as the budget's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from collector.records import BatchStats, Drift
from detectors.bank import Bank
from detectors.config import DetectorsConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One bank over one sequence of batches."""

    ln_a: float
    ln_m: tuple[float, ...]  # after each batch, nats
    drifts: tuple[Drift, ...]  # in order of time; statistical alarms latch

    @property
    def alarm_at(self) -> int | None:
        """How many batches it took to the statistical alarm (1 = the first); None = it stayed silent."""
        over = (i for i, ln_m in enumerate(self.ln_m, start=1) if ln_m >= self.ln_a)
        return next(over, None)

    def delay(self, changed_at: int) -> int | None:
        """Batches from the first changed one (counted from 1) to the alarm; None = silent or a false alarm before."""
        at = self.alarm_at
        return None if at is None or at < changed_at else at - changed_at + 1


def run(batches: Iterable[BatchStats], config: DetectorsConfig, *, batch_seconds: float) -> Run:
    """A fresh bank over the batches. Raises ConfigError on an unreadable budget."""
    bank, path, drifts = Bank(config, batch_seconds=batch_seconds), [], []
    for batch in batches:
        drifts += bank.update(batch)[1]
        path.append(bank.ln_m)
    return Run(ln_a=bank.ln_a, ln_m=tuple(path), drifts=tuple(drifts))


def false_alarms_per_period(runs: Iterable[Run], *, period_batches: float) -> tuple[int, float]:
    """(alarms, expected alarms at the promise) of runs without a change: each runs until its alarm or its end."""
    alarms, watched = 0, 0
    for one in runs:
        at = one.alarm_at
        alarms += at is not None
        watched += len(one.ln_m) if at is None else at
    return alarms, watched / period_batches


def realised(alarms: int, stated: float, *, level: float = 0.95) -> tuple[float, float, float]:
    """(alarms / stated, lower, upper limit) with the exact Poisson interval; `stated` is the number the budget allows."""
    tail = (1 - level) / 2
    low = stats.chi2.ppf(tail, 2 * alarms) / 2 if alarms else 0.0
    return alarms / stated, float(low) / stated, float(stats.chi2.ppf(1 - tail, 2 * alarms + 2) / 2 / stated)


def cusum(steps: np.ndarray) -> np.ndarray:
    """CUSUM of log-likelihood steps along the first axis: max(0, level + step). Page, *Biometrika* 1954."""
    level, out = np.zeros(steps.shape[1:]), np.empty_like(steps)
    for t, row in enumerate(steps):
        level = np.maximum(0.0, level + row)
        out[t] = level
    return out


def delays(fired: np.ndarray) -> list[float]:
    """bool [batches, runs] from the first changed batch on → batches to the first alarm of each run; infinity when never."""
    return [float(np.argmax(column)) + 1 if column.any() else np.inf for column in fired.T]


def oracle_delays(u: np.ndarray, healthy: np.ndarray, *, start: int, known: int = 60, spread: bool = False) -> list[float]:
    """Delays of the CUSUM that knows the stream and the size of the change, silent on the healthy runs.

    Args:
        u, healthy: the stream that changes, whitened, [batches, runs] each; NaN = absent. The change is at batch `start`.
        known: batches after the change from which the size is read.
        spread: the change is one of spread, not of the mean.
    """
    column, null = np.nan_to_num(u), np.nan_to_num(healthy)
    after = column[start:start + known]
    shift = float(np.clip(after.mean(), -5, 5))
    shift = float(np.copysign(max(abs(shift), 0.05), shift))
    wide = max(float(after.std()), 1.05)

    def steps(x: np.ndarray) -> np.ndarray:
        return 0.5 * (1 - 1 / wide**2) * x**2 - np.log(wide) if spread else shift * x - shift**2 / 2

    return delays(cusum(steps(column[start:])) > cusum(steps(null[start:])).max())


def most_cusum(u: np.ndarray, *, start: int, shift: float = 1.0, clip: float = 5.0) -> np.ndarray:
    """The highest of one CUSUM a stream, u [batches, runs, streams] → [batches − start, runs]: upwards, u cut at `clip`."""
    return cusum(shift * np.clip(np.nan_to_num(u[start:]), -clip, clip) - shift**2 / 2).max(axis=2)
