"""Rollouts pushed by taps: a bounded inbox between the ingest endpoint and the worker."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from collector.records import Rollout


class TapInbox:
    """Thread-safe, bounded; a full inbox refuses (the tap is told to wait, and drops at the source, counted there)."""

    def __init__(self, capacity: int, clock: Callable[[], float] = time.time) -> None:
        self.capacity, self._clock = capacity, clock
        self._items: deque[tuple[float, Rollout]] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, rollout: Rollout) -> bool:
        """Take one rollout, or return False when full."""
        with self._lock:
            if len(self._items) >= self.capacity:
                return False
            self._items.append((self._clock(), rollout))
            return True

    @property
    def oldest_at(self) -> float | None:
        """UTC seconds at which the oldest rollout that waits came in; None when none waits."""
        with self._lock:
            return self._items[0][0] if self._items else None

    def poll(self, limit: int) -> list[Rollout]:
        """At most `limit` rollouts, oldest first."""
        with self._lock:
            return [self._items.popleft()[1] for _ in range(min(limit, len(self._items)))]
