"""The trainer's own metrics as series: how each is made level, which way is bad, and what that means. A table, no state.

A series detector takes, for each step, `of(name).value(logged)` (NaN = leave out) and bets in the directions named. Everything is
two-sided where a fall is as telling as a rise. `dead_band` is the smallest change worth a page, in transformed units: .1 on a
log scale is 10 %. Units after the transform: log → log of the unit; logit → log-odds; level → the unit itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Transform = Literal["level", "log", "logit"]
SMALLEST = {"log": 1e-8, "logit": 1e-4}
"""Added before the transform, so that an exact 0 stays finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerMetric:
    """One metric under its standard name (collector/sources/metrics/names.py)."""

    name: str
    transform: Transform
    up: str = ""  # what a rise means; empty = a rise is not bet on
    down: str = ""  # what a fall means; empty = a fall is not bet on
    dead_band: float = 0.1  # transformed units
    unit: str = "nats"

    @property
    def directions(self) -> tuple[int, ...]:
        """+1 and/or −1."""
        return tuple(sign for sign, meaning in ((1, self.up), (-1, self.down)) if meaning)

    def value(self, logged: float) -> float:
        """The logged value on the scale that is compared; NaN where it has none (non-finite, or outside its range)."""
        return transformed(logged, self.transform)


def transformed(logged: float, transform: Transform) -> float:
    """One value on the scale of `transform`; NaN where it has none.

    >>> round(transformed(0.5, "logit"), 6), transformed(-1.0, "log")
    (0.0, nan)
    """
    if not math.isfinite(logged):
        return math.nan
    if transform == "level":
        return logged
    least = SMALLEST[transform]
    if transform == "log":
        return math.log(logged + least) if logged >= 0 else math.nan
    if not 0 <= logged <= 1:
        return math.nan
    return math.log((logged + least) / (1 - logged + least))


def logged(value: float, transform: Transform) -> float:
    """The inverse of `transformed`: a value on the scale that is compared, in the unit that is logged.

    >>> [round(logged(transformed(0.3, scale), scale), 6) for scale in ("level", "log", "logit")]
    [0.3, 0.3, 0.3]
    """
    if transform == "level":
        return value
    least = SMALLEST[transform]
    if transform == "log":
        return max(0.0, math.exp(min(value, 700.0)) - least)
    odds = math.exp(min(value, 700.0))
    return min(1.0, max(0.0, (odds * (1 + least) - least) / (1 + odds)))


TABLE: tuple[TrainerMetric, ...] = (
    TrainerMetric(name="clip_rate", transform="logit", up="more tokens are clipped: mismatch, staleness or too large steps", unit="fraction",
                  down="the clip no longer acts: weights do not move, or masks hide the tokens", dead_band=0.2),
    TrainerMetric(name="kl", transform="log", up="KL explosion: updates leave the policy that generated", dead_band=0.2),
    TrainerMetric(name="kl_ref", transform="log", up="KL explosion against the reference model", dead_band=0.2),
    TrainerMetric(name="mismatch_kl", transform="log", up="engine and trainer moved apart, by the trainer's own account", dead_band=0.1),
    TrainerMetric(name="mismatch_abs_d", transform="log", up="engine and trainer moved apart, by the trainer's own account", dead_band=0.1),
    TrainerMetric(name="ess", transform="logit", down="few tokens carry the whole importance weight", dead_band=0.2, unit="fraction"),
    TrainerMetric(name="entropy", transform="log", up="the policy dissolves into noise", down="entropy collapse", dead_band=0.1),
    TrainerMetric(name="reward", transform="level", up="reward jumps: a leak or a hacked verifier", down="reward falls", dead_band=0.02,
                  unit="reward"),
    TrainerMetric(name="reward_std", transform="log", up="rewards spread or split in two", down="rewards become all alike", dead_band=0.2,
                  unit="reward"),
    TrainerMetric(name="zero_std_share", transform="logit", up="more groups with all rewards equal: nothing to learn from",
                  down="groups split that were all equal: the verifier changed", dead_band=0.3, unit="fraction"),
    TrainerMetric(name="advantage_std", transform="log", up="advantages spread", down="advantages vanish", dead_band=0.2, unit="reward"),
    TrainerMetric(name="loss", transform="level", up="loss rises", down="loss falls away", dead_band=0.02, unit="loss"),
    TrainerMetric(name="value_loss", transform="log", up="the critic loses track", dead_band=0.3, unit="loss"),
    TrainerMetric(name="critic_value", transform="level", up="values drift up", down="values drift down", dead_band=0.05, unit="reward"),
    TrainerMetric(name="grad_norm", transform="log", up="gradient spikes", down="gradients vanish", dead_band=0.3, unit="norm"),
    TrainerMetric(name="response_length", transform="log", up="responses grow without end", down="responses collapse", dead_band=0.1,
                  unit="tokens"),
    TrainerMetric(name="lag", transform="level", up="the engine falls behind the trainer", dead_band=1.0, unit="versions or samples"),
)
"""Learning rate is left out: it is a plan, not a measurement."""

BY_NAME = {metric.name: metric for metric in TABLE}


def of(name: str) -> TrainerMetric:
    """The metric's row; one that Klaxon has no standard name for is compared as it is, both ways, with a dead band of 0."""
    return BY_NAME.get(name) or TrainerMetric(name=name, transform="level", up="it rises", down="it falls", dead_band=0.0, unit="")
