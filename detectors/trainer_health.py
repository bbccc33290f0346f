"""Plain facts about the trainer's own metrics: no statistics, no budget.

Question.    Is training plainly broken: a loss that is no number, a step that learns nothing?
Statistic.   None. The newest steps as logged, under standard names: a loss that is NaN or infinite holds at once; a gradient norm
             must be so for GRADIENT_STEPS steps running, since a mixed-precision trainer skips single steps by design;
             "learns nothing" needs STILL_STEPS steps running with every group's rewards equal, or a gradient of exactly 0.
Guarantee.   None is needed; a healthy run does not meet these. What drifts is for the statistics (trainer_metrics.py).
When it lies. A metric logged as 0 because it was not computed looks like a vanished gradient. A step logged in pieces is put
             together by its number.
Example.     loss = NaN at step 812: "loss is nan at step 812."
Source.      rlwatch's loss and reward-variance rules, without their rolling thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from collector.records import Fact

GRADIENT_STEPS, STILL_STEPS = 3, 5
LOSSES, GRADIENT = ("loss", "value_loss"), "grad_norm"
STILL = {"zero_std_share": lambda value: value >= 0.999, "reward_std": lambda value: value == 0.0,
         "advantage_std": lambda value: value == 0.0, GRADIENT: lambda value: value == 0.0}
"""Metric → is a step with this value one that learns nothing?"""


class TrainerHealth:
    """The runs of odd steps so far; `take` once a logged row, in order."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._row: dict[str, float] = {}
        self._runs: dict[str, int] = {}  # metric or metric + "!" (non-finite) → odd steps running, the newest step not among them

    def take(self, step: int, values: Mapping[str, float]) -> None:
        """One row of metrics under standard names; rows of one step are put together. An older step is ignored."""
        if self._step is not None and step < self._step:
            return
        if self._step is not None and step > self._step:
            self._runs = self._running()
            self._row = {}
        self._step = step
        self._row = {**self._row, **{name: value for name, value in values.items() if name in STILL or name in LOSSES}}

    def facts(self, at: float) -> tuple[Fact, ...]:
        """What holds at the newest step."""
        running, found = self._running(), []
        for name in (*LOSSES, GRADIENT):
            if running.get(f"{name}!", 0) >= (GRADIENT_STEPS if name == GRADIENT else 1):
                steps = f" and the {running[f'{name}!'] - 1} before" if running[f"{name}!"] > 1 else ""
                text = f"The trainer's {name} is {self._row.get(name, math.nan):g} at step {self._step}{steps}."
                found.append(Fact(name="trainer_nonfinite", text=text, slice={"metric": name}, at=at))
        for name in STILL:
            if running.get(name, 0) >= STILL_STEPS:
                text = f"The trainer has learnt nothing for {running[name]} steps: {name} is {self._row.get(name, 0.0):g} at step {self._step}."
                found.append(Fact(name="trainer_learns_nothing", text=text, slice={"metric": name}, at=at))
        return tuple(found)

    def _running(self) -> dict[str, int]:
        """Odd steps running, the newest step among them; a metric the newest step does not carry keeps its run."""
        running = {key: count for key, count in self._runs.items() if key.rstrip("!") not in self._row}
        for name, value in self._row.items():
            odd = not math.isfinite(value)
            if odd:
                running[f"{name}!"] = self._runs.get(f"{name}!", 0) + 1
            elif name in STILL and STILL[name](value):
                running[name] = self._runs.get(name, 0) + 1
        return running
