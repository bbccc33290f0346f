"""How a bank behaves on recorded or simulated batches: run lengths, delays, realised false alarms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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
