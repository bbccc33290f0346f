"""Rollouts pushed by taps: a bounded inbox between the ingest endpoint and the worker."""

from __future__ import annotations

import threading
from collections import deque

from collector.records import Rollout


class TapInbox:
    """Thread-safe, bounded; a full inbox refuses (the tap is told to wait, and drops at the source, counted there)."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._items: deque[Rollout] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, rollout: Rollout) -> bool:
        """Take one rollout, or return False when full."""
        with self._lock:
            if len(self._items) >= self.capacity:
                return False
            self._items.append(rollout)
            return True

    def poll(self, limit: int) -> list[Rollout]:
        """At most `limit` rollouts, oldest first."""
        with self._lock:
            return [self._items.popleft() for _ in range(min(limit, len(self._items)))]
