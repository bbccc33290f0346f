"""The open statistical alarm: what its leading stream is doing now, and whether a page for something else is due.

The second page for a disjoint slice: while an alarm on one replica or position is open, the battery's streams about other
replicas or positions keep SR processes of their own, begun at the alarm; they page when Σ w·SR ≥ 4A, within the quarter of the budget kept for
second pages (`[detectors.weights] second_pages`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from detectors.battery import Battery
from detectors.recovery import Aftermath

LOGARITHMIC = ("mean", "k3", "clip", "tail1", "tail3", "clip|mean", "tail|k3", "ess", "entropy")


class OpenAlarm:
    """One at a time; `take` once a batch after the alarm's own."""

    def __init__(self, stream: str, battery: Battery, *, ln_a: float, change_t: int, gains: list[float]) -> None:
        """gains: of a named stream since the change, the newest last."""
        self.stream, self.ln_a = stream, ln_a
        self.frozen: list[float] = []
        self.elsewhere = np.empty(0)
        self.paged: list[dict[str, str]] = [battery.slice_of(stream)] if stream.startswith("battery:") else []
        if stream.startswith("battery:"):
            column = battery.block.keys.index(stream)
            front = battery.block.front
            self.frozen = [*front.beta[:, column].tolist(), self._tau(battery, change_t)]
            values = [self._value(battery, slot) for slot in self._slots(battery, change_t)]
            sd, phi = float(front.sd()[column]), float(front.partials()[0][column])
        else:
            values, phi = gains, 0.0
            sd = max(float(np.std(gains)), 0.5, 0.25 * abs(float(np.mean(gains)))) if gains else 1.0
        found = [value for value in values if math.isfinite(value)]
        logarithmic = stream.startswith("battery:") and stream.split(":", 2)[1] in LOGARITHMIC
        self.after = Aftermath(found, sd=sd, phi=phi, logarithmic=logarithmic, ln_a=ln_a)

    def take(self, battery: Battery, gains: Mapping[str, float]) -> tuple[str | None, int | None]:
        """(what the leading stream did: "recovered", "grown" or None; the column of a disjoint slice that pages)."""
        if self.frozen:
            y = self._value(battery, (battery.block.front.calls - 1) % battery.block.front.settings.delay)
            y = y if battery.block.told[battery.block.keys.index(self.stream)] else math.nan
        else:
            y = gains.get(self.stream, math.nan)
        return (self.after.take(y) if math.isfinite(y) else None), self._disjoint(battery)

    def _tau(self, battery: Battery, t: int) -> float:
        front = battery.block.front
        return (t - (front.origin or 0)) / front.settings.memory

    def _slots(self, battery: Battery, since: int) -> list[int]:
        front = battery.block.front
        known = range(max(0, front.calls - front.settings.delay), front.calls)
        return [call % front.settings.delay for call in known if front.times[call % front.settings.delay] >= since]

    def _value(self, battery: Battery, slot: int) -> float:
        """x less the level the stream had before the change, trend stopped there."""
        x, z1, z2 = battery.block.front.ring[slot, :3, battery.block.keys.index(self.stream)].tolist()
        b0, b1, b2, b3, tau = self.frozen
        return x - (b0 + b1 * tau + b2 * z1 + b3 * z2)

    def _disjoint(self, battery: Battery) -> int | None:
        if not any(self.paged):
            return None
        block = battery.block
        if self.elsewhere.shape != block.bets.log_sr.shape:
            grown = np.full(block.bets.log_sr.shape, -np.inf)
            old = self.elsewhere.shape[1] if self.elsewhere.ndim == 2 else 0
            grown[:, :old] = self.elsewhere if old else grown[:, :0]
            self.elsewhere = grown
        one_sided = block.bets.shift[1] > 0  # a fault elsewhere moves the rest of a contrast down, never up
        apart = block.told & one_sided & np.array([all(_apart(here, battery.slice_of(key)) for here in self.paged) for key in block.keys])
        self.elsewhere[:, apart] = np.logaddexp(self.elsewhere[:, apart], 0.0) + block.gain[:, apart]
        worth = block.log_weight + np.logaddexp.reduce(self.elsewhere, axis=0) - math.log(len(self.elsewhere))
        if float(np.logaddexp.reduce(worth)) < self.ln_a + math.log(4.0):
            return None
        column = int(np.argmax(worth))
        self.elsewhere[:] = -np.inf
        self.paged.append(battery.slice_of(block.keys[column]))
        return column

    def to_state(self) -> dict[str, Any]:
        """JSON-able."""
        sr = [[value if math.isfinite(value) else None for value in row] for row in self.elsewhere.tolist()] if self.elsewhere.ndim == 2 else []
        return {"stream": self.stream, "ln_a": self.ln_a, "frozen": list(self.frozen), "after": self.after.to_state(), "elsewhere": sr,
                "paged": [dict(found) for found in self.paged]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> OpenAlarm:
        """The inverse of `to_state`."""
        made = cls.__new__(cls)
        made.stream, made.ln_a, made.frozen = state["stream"], state["ln_a"], list(state["frozen"])
        made.paged = [dict(found) for found in state["paged"]]
        made.after = Aftermath.from_state(state["after"])
        made.elsewhere = np.array([[-np.inf if value is None else value for value in row] for row in state["elsewhere"]], dtype=float)
        return made


def _apart(here: Mapping[str, str], there: Mapping[str, str]) -> bool:
    """Do two slices share no token? Only where both name the same dimension, with different names."""
    return any(name in there and there[name] != value for name, value in here.items())
