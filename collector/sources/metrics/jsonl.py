"""Trainer metrics as JSON lines: one object a step, `step` a whole number, times in `at` or `time` (UTC seconds).

Understands what frameworks write themselves: prime-rl's metrics.jsonl, W&B's files/wandb-history.jsonl (`_step`, `_timestamp`).
"""

from __future__ import annotations

from collections.abc import Iterator

from collector.errors import InputError
from collector.sources.file_tail import JsonLinesTail
from collector.sources.metrics.source import MetricsRow, row_of


class JsonlMetrics:
    """New lines of a file that another process appends to; it may appear later, be truncated or rotated."""

    name = "file"

    def __init__(self, path: str) -> None:
        self._tail = JsonLinesTail(path)
        self.counts = self._tail.counts  # tail_rotated, tail_truncated

    def poll(self, now: float) -> Iterator[MetricsRow | InputError]:
        """Each complete new line."""
        for where, item in self._tail.poll():
            yield item if isinstance(item, InputError) else row_of(item, where=where, now=now)
