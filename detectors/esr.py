"""e-Shiryaev–Roberts, many streams at once: has something changed, and since when?

Question.    Is there a batch since when the gains of a stream add up to more than chance?
Statistic.   SR ← (SR + 1)·e, with e the e-value of one batch; in logs: log SR ← logaddexp(log SR, 0) + gain.
             Written out, SR_t = Σ_j Π_{i=j..t} e_i: one bet started at every batch, so a fault beginning half-way is seen.
Units.       Natural log of an e-value.
Guarantee.   If E[e | past] ≤ 1 before a change, SR_t − t is a supermartingale: the average run length to SR ≥ A is at
             least A batches, under any dependence. A stream that had nothing to bet on does not tick: it adds no 1
             either, which only lengthens the run (whether it ticks must not depend on the outcome of its bet).
Change.      The dominating summand starts where the running sum of gains was lowest: that batch is the estimate. The
             interval holds every start whose summand is within ln 20 of the dominating one. Its early end is kept in two
             numbers, not a list: it may reach further back than needed, never less far.
When it lies. Gains that are not e-values (reused data, selected rollouts) void the promise. The interval is a likelihood
             set, not a proven confidence set.
Cost.        O(1) memory and time a stream, vectorised; the state is ten numbers a stream.
Example.     Gains −1, −1, 2, 2: the lowest running sum is after the second batch, so the change starts at the third.
Source.      Shin, Ramdas, Rinaldo, *E-detectors*; change-time sets after Saha & Ramdas, arXiv 2502.06096.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

PLAUSIBLE_NATS = math.log(20.0)
_FLOATS = ("log_sr", "height", "low_old", "low_new")
_INTS = ("start", "latest", "start_old", "start_new")


class ShiryaevRoberts:
    """Parallel arrays, one entry a stream; entries are only ever appended."""

    def __init__(self) -> None:
        self.log_sr = np.empty(0)  # log SR; −inf = nothing yet
        self.height = np.empty(0)  # running sum of gains above its lowest point; 0 = at the lowest point
        self.low_old, self.low_new = np.empty(0), np.empty(0)  # two remembered earlier low points, height above the lowest
        self.start, self.latest = np.empty(0, np.int64), np.empty(0, np.int64)  # batch numbers; −1 = never ticked
        self.start_old, self.start_new = np.empty(0, np.int64), np.empty(0, np.int64)

    @property
    def size(self) -> int:
        """The number of streams."""
        return int(self.log_sr.size)

    def add(self, count: int = 1) -> None:
        """Give birth to `count` streams with SR = 0."""
        for name in _FLOATS:
            fill = {"log_sr": -np.inf, "height": 0.0}.get(name, np.inf)
            setattr(self, name, np.concatenate([getattr(self, name), np.full(count, fill)]))
        for name in _INTS:
            setattr(self, name, np.concatenate([getattr(self, name), np.full(count, -1, np.int64)]))

    def update(self, t: int, index_K: np.ndarray, gain_K: np.ndarray) -> None:
        """Tick the streams `index_K` (distinct) at batch t with their log gains, nats."""
        i = index_K
        self._note_starts(t, i)
        self.log_sr[i] = np.logaddexp(self.log_sr[i], 0.0) + gain_K
        height = self.height[i] + gain_K
        deeper = np.maximum(-height, 0.0)
        self.height[i] = height + deeper
        self.low_old[i] += deeper
        self.low_new[i] += deeper

    def _note_starts(self, t: int, i: np.ndarray) -> None:
        height = self.height[i]
        at_low = height <= 0.0
        self.start[i[at_low]] = t
        self.latest[i[height <= PLAUSIBLE_NATS]] = t
        deep = i[at_low & (self.low_new[i] >= PLAUSIBLE_NATS)]
        self.low_old[deep], self.start_old[deep] = self.low_new[deep], self.start_new[deep]
        self.low_new[deep], self.start_new[deep] = 0.0, t

    def interval(self, index: int) -> tuple[int, int]:
        """Earliest and latest plausible first changed batch of one stream that has ticked."""
        old, new = int(self.start_old[index]), int(self.start_new[index])
        earliest = old if old >= 0 and self.low_new[index] < PLAUSIBLE_NATS else new
        return earliest, max(int(self.latest[index]), int(self.start[index]))

    def reset(self) -> None:
        """Forget all evidence; the streams stay."""
        count, self.log_sr = self.size, np.empty(0)
        for name in (*_FLOATS, *_INTS):
            setattr(self, name, getattr(self, name)[:0])
        self.add(count)

    def to_state(self) -> dict[str, Any]:
        """JSON-able; infinities become None."""
        state: dict[str, Any] = {n: [x if math.isfinite(x) else None for x in getattr(self, n).tolist()] for n in _FLOATS}
        return state | {n: getattr(self, n).tolist() for n in _INTS}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ShiryaevRoberts:
        """The inverse of `to_state`, bit for bit."""
        made = cls()
        for name in _FLOATS:
            absent = -np.inf if name == "log_sr" else np.inf
            setattr(made, name, np.array([absent if x is None else x for x in state[name]], dtype=np.float64))
        for name in _INTS:
            setattr(made, name, np.array(state[name], dtype=np.int64))
        return made
