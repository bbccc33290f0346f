"""Wall-clock batches: what falls into a window, and when the window closes.

A window closes `watermark_seconds` after its end. A rollout that comes later still counts, in the oldest open window
(counted as `late`); an empty window is a missing batch and is passed on as one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

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
        """The batch number a rollout finished `at` belongs to; the future is taken for now, the sealed past is late."""
        t = self._first_t + int((min(at, now) - self.started_at) // self.batch_seconds)
        if t < self._next_t:
            self._counts[self._next_t]["late"] += 1
            return self._next_t
        return t

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
