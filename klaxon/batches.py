"""Wall-clock batches: what falls into a window, and when the window closes.

A window closes `watermark_seconds` after its end. What comes later still counts, in the oldest open window; an empty window is a
missing batch and is passed on as one. Whoever files a rollout asks `is_late` and counts it, once a rollout.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from collector import signals
from collector.records import BatchStats, SliceStats
from collector.sources.progress import Mark


class BatchBuilder:
    """Collects per-rollout statistics into BatchStats. Not thread-safe: one worker owns it."""

    def __init__(self, *, started_at: float, batch_seconds: float, watermark_seconds: float, first_t: int = 0) -> None:
        self.started_at, self.batch_seconds, self.watermark_seconds = started_at, batch_seconds, watermark_seconds
        self._first_t = first_t
        self._next_t = first_t
        self._slices: dict[int, list[SliceStats]] = defaultdict(list)
        self._gains: dict[int, Counter[str]] = defaultdict(Counter)
        self._counts: dict[int, Counter[str]] = defaultdict(Counter)
        self._marks: dict[int, list[Mark]] = defaultdict(list)

    def window_of(self, at: float, *, now: float) -> int:
        """The batch number for what happened `at`; the future is taken for now, what belongs to a closed batch goes into the oldest open one."""
        return max(self._own_window(at, now=now), self._next_t)

    def is_late(self, at: float, *, now: float) -> bool:
        """Has the batch of what happened `at` been closed already?"""
        return self._own_window(at, now=now) < self._next_t

    def _own_window(self, at: float, *, now: float) -> int:
        return self._first_t + int((min(at, now) - self.started_at) // self.batch_seconds)

    def add(self, t: int, *, slices: Iterable[SliceStats] = (), gains: Mapping[str, float] = {},
            counts: Mapping[str, int] = {}, mark: Mark | None = None) -> None:
        """Add one rollout's statistics to batch t. `mark`: where it was read, to be settled once batch t is stored."""
        if mark is not None:
            self._marks[t].append(mark)
        self._slices[t].extend(slices)
        for stream, gain in gains.items():
            self._gains[t][stream] += gain
        self._counts[t].update(counts)

    def close_due(self, now: float) -> list[BatchStats]:
        """Every batch whose watermark has passed, in order, empty ones included."""
        closed = []
        while now >= self._closes_at(self._next_t) + self.watermark_seconds:
            closed.append(self._close(self._next_t))
            self._next_t += 1
        return closed

    def close_all(self, now: float) -> list[BatchStats]:
        """Every batch that has begun, for a daemon that stops at `now`; the open one is cut short, and left out where nothing is in it."""
        closed = self.close_due(now)
        while now >= self._closes_at(self._next_t):  # ended, and no late rollout will come any more
            closed.append(self._close(self._next_t))
            self._next_t += 1
        if any(self._next_t in held for held in (self._slices, self._gains, self._counts, self._marks)):
            closed.append(replace(self._close(self._next_t), closed_at=now))
            self._next_t += 1
        return closed

    def take_marks(self, t: int) -> list[Mark]:
        """Where the rollouts of closed batch t were read; once."""
        return self._marks.pop(t, [])

    def seconds_left(self, now: float) -> float:
        """Until the oldest open batch is closed and judged, seconds."""
        return max(0.0, self._closes_at(self._next_t) + self.watermark_seconds - now)

    def _closes_at(self, t: int) -> float:
        return self.started_at + (t + 1 - self._first_t) * self.batch_seconds

    def _close(self, t: int) -> BatchStats:
        closes_at = self._closes_at(t)
        return BatchStats(
            t=t, opened_at=closes_at - self.batch_seconds, closed_at=closes_at,
            slices=signals.merge(self._slices.pop(t, ())), gains=dict(sorted(self._gains.pop(t, Counter()).items())),
            counts=dict(self._counts.pop(t, Counter())),
        )


def add_gains(builder: BatchBuilder, lock: threading.Lock, gains: Mapping[str, float]) -> None:
    """Log gains that belong to no rollout go into the batch that is open now."""
    now = time.time()
    with lock:
        builder.add(builder.window_of(now, now=now), gains=gains)
