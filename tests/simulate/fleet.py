"""The battery over many simulated runs at once: one block whose columns are runs × contrasts × features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from detectors.battery import CAP, FLEET, SHARES, Battery, F, leading_column
from detectors.bets import BETS
from detectors.block import FIRST_COHORT, Block
from detectors.config import BatteryConfig
from detectors.contrasts import Grid, grid_values
from detectors.features import log_weight_variation, sums
from detectors.frontend import Settings
from detectors.looks import Cell, Look
from tests.simulate.streams import Batch, Simulation


@dataclass(kw_only=True)
class Step:
    """After one batch of all runs."""

    t: int
    ln_m: np.ndarray  # [runs]
    worth: np.ndarray  # [runs, streams] log w·SR


class Fleet:
    """As many batteries as runs; the same streams, weights and arithmetic as Battery (without version contrasts)."""

    def __init__(self, simulation: Simulation, config: BatteryConfig | None = None) -> None:
        self.simulation, self.config = simulation, config or BatteryConfig()
        runs = simulation.runs
        one = Battery(self.config, share=0.85)
        zero = np.zeros(24, np.int64)
        cells = tuple(Cell(replica=str(r), position=str(p), counts=zero + 1, n_sequences=1.0)
                      for r in range(simulation.replicas) for p in range(simulation.positions))
        for cell in cells:
            one._place(cell, 0)
        template = one.block
        self.keys = template.keys
        self.order = one._order
        self.entropy = np.full(runs, np.nan)
        self.fleet_at = one._first["fleet"]
        settings = Settings(warmup=self.config.warmup_batches, delay=self.config.delay_batches, memory=self.config.memory_batches)
        self.block = Block(settings, {})
        self.block.families = list(template.families)
        tile = lambda values: np.tile(values, (1,) * (values.ndim - 1) + (runs,))  # noqa: E731
        self.block.front.born(template.size * runs, slope=tile(template.front.slope), floor=tile(template.front.floor))
        self.block.front.wary = tile(template.front.wary)
        self.block.bets.grow(template.size * runs)
        self.block.bets.shift, self.block.bets.psi = tile(template.bets.shift), tile(template.bets.psi)
        self.block.family, self.block.dead_band = tile(template.family), tile(template.dead_band)
        parts = [SHARES[template.families[i]] * 0.85 * FIRST_COHORT / int((template.family == i).sum()) for i in template.family]
        self.weights = tile(np.log(parts))
        self.block.log_weight = self.weights.copy()
        self.block.keys = list(self.keys) * runs

    def watch(self, count: int, *, ln_a: float) -> Iterator[Step]:
        """Every batch after which some stream has bet."""
        runs, width = self.simulation.runs, len(self.keys)
        for batch in self.simulation.batches(count):
            self.take(batch, CAP * ln_a)
            worth = (self.weights + self.block.bets.mean_log_sr()).reshape(runs, width)
            yield Step(t=batch.t, ln_m=np.logaddexp.reduce(worth, axis=1), worth=worth)

    def take(self, batch: Batch, cap: float) -> None:
        """One batch of all runs."""
        runs, width = self.simulation.runs, len(self.keys)
        grid = Grid(sums=sums(batch.counts.astype(float)), n_sequences=batch.sequences, lag=batch.lag,
                    surprise=np.full((*batch.lag.shape, 2), np.nan))
        values = grid_values(grid, unsure=np.log(batch.entropy), min_tokens=self.config.min_tokens)
        columns = [np.full((runs, width), fill) for fill in (np.nan, 0.0, 0.0, 1.0, 0.0)]
        for column, value in zip(columns, (values.x, values.z1, values.z2, values.n, values.least), strict=True):
            column[:, self.order] = value.reshape(runs, -1)
        for run in range(runs):
            counts = batch.counts[run].sum(axis=(0, 1))
            if counts.any():
                columns[0][run, self.fleet_at] = log_weight_variation(counts) or np.nan
                columns[2][run, self.fleet_at] = np.log(batch.entropy[run])
                columns[0][run, self.fleet_at + FLEET.index("entropy")] = np.log(batch.entropy[run]) - self.entropy[run]
                self.entropy[run] = np.log(batch.entropy[run])
        x, z1, z2, n, least = (column.ravel() for column in columns)
        self.block.step(batch.t, x, z1, z2, n, cap=cap, least=least)

    def restart(self, run: int) -> None:
        """Forget the evidence of one run, as after a resolved alarm."""
        width = len(self.keys)
        self.block.bets.reset(np.arange(run * width, (run + 1) * width))

    def leading(self, worth: np.ndarray) -> int:
        """The leading column of one run, as Battery.leading says it."""
        return leading_column(self.keys, worth) or 0


__all__ = ["BETS", "F", "Fleet", "Look", "Step"]
