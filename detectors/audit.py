"""Honesty: do the battery's bets average at most 1, as an e-value must while nothing is wrong?

Question.    Is the null the bets assume (bets.py) the one this run lives under?
Statistic.   A batch's mean e-value over all bets of a family, each cut at 20: its running mean, `delay` batches late so that
             the batches just before an alarm never enter, with a standard error from means over runs of 32 batches.
Reaction.    Mean − 3 standard errors above 1: the family's block is widened by a tenth (its u divided by 1.1 more), the audit
             starts again, and a notice says so. It never narrows by itself.
Guarantee.   None; a lasting fault too small to page also raises the mean, and is then treated as noise, which costs power.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from detectors.block import Block

CUT, RUN, FEWEST, STEP, LATE = 20.0, 32, 12, 1.1, 60


class Audit:
    """One running mean a family; `take` once a batch."""

    def __init__(self) -> None:
        self._late: deque[dict[str, float]] = deque()
        self._open: dict[str, list[float]] = {}
        self._runs: dict[str, list[float]] = {}  # family → count, mean, sum of squared deviations of the runs' means

    def take(self, block: Block, *, paused: bool) -> list[str]:
        """Note this batch's mean e-values; returns notices. `paused`: a fault is known, nothing is learnt."""
        if paused:
            self._late.clear()
            return []
        if not block.told.any():
            return []
        e = np.minimum(np.exp(np.minimum(block.gain, math.log(CUT))), CUT).mean(axis=0)
        row = {name: float(e[members].mean()) for i, name in enumerate(block.families) if (members := block.told & (block.family == i)).any()}
        self._late.append(row)
        return self._learn(block, self._late.popleft()) if len(self._late) > LATE else []

    def _learn(self, block: Block, row: Mapping[str, float]) -> list[str]:
        notices = []
        for name, value in row.items():
            run = self._open.setdefault(name, [])
            run.append(value)
            if len(run) < RUN:
                continue
            count, mean, squares = self._runs.get(name, [0.0, 0.0, 0.0])
            level = sum(run) / len(run)
            run.clear()
            count, before = count + 1, mean
            mean += (level - mean) / count
            squares += (level - before) * (level - mean)
            self._runs[name] = [count, mean, squares]
            if count >= FEWEST and mean - 3 * math.sqrt(squares / (count - 1) / count) > 1:
                block.widen *= STEP
                self._runs.clear()
                notices.append(f"the battery's {name} bets averaged {mean:.2f} instead of at most 1: all its noise is now taken to be "
                               f"{block.widen:.2f} times as wide as its own past says")
                break
        return notices

    def means(self) -> dict[str, dict[str, float]]:
        """Family → mean e-value, its standard error, and the batches behind it."""
        return {name: {"mean_e": mean, "standard_error": math.sqrt(squares / max(count - 1, 1) / count), "batches": count * RUN}
                for name, (count, mean, squares) in self._runs.items()}

    def to_state(self) -> dict[str, Any]:
        """JSON-able."""
        return {"late": list(self._late), "open": {k: list(v) for k, v in self._open.items()}, "runs": {k: list(v) for k, v in self._runs.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `to_state` gave."""
        self._late = deque(dict(row) for row in state["late"])
        self._open = {k: list(v) for k, v in state["open"].items()}
        self._runs = {k: list(v) for k, v in state["runs"].items()}
