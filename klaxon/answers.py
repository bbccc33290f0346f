"""Answers of the read API, kept until a table they were read from has changed.

Ten viewers of one page, or one viewer every few seconds, cost the store one question a change. An answer carries the write counts of its
tables as they stood BEFORE the store was read (Store.writes), so a write beside the reading makes it old, never wrongly new.

A range of time is asked for by seconds that move with the clock. An answer is kept by the first and the last row inside the range, so that a
window that slid without gaining or losing a batch is the same question.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Literal

import pyarrow as pa
from cachetools import LRUCache

from collector.store import Store

MOST_BYTES = 48 * 2**20
LARGEST_BYTES = 4 * 2**20
"""A larger answer is a bulk export, asked for once."""


class Answers:
    """Bytes by question, MOST_BYTES at most, the longest unasked forgotten first. Thread-safe."""

    def __init__(self, store: Store, *, most_bytes: int = MOST_BYTES, largest_bytes: int = LARGEST_BYTES) -> None:
        self._store, self._largest = store, largest_bytes
        self._kept: LRUCache[Hashable, tuple[tuple[int, ...], bytes]] = LRUCache(most_bytes, getsizeof=lambda kept: len(kept[1]) + 1024)
        self._lock = threading.Lock()
        self._making: dict[Hashable, threading.Lock] = {}
        self.made = 0  # answers that had to be read from the store

    def of(self, question: Hashable, tables: tuple[str, ...], make: Callable[[], bytes]) -> bytes:
        """The answer to `question`, made anew where one of `tables` was written to since. Who asks the same at once waits for the first."""
        with self._lock:
            gate = self._making.setdefault(question, threading.Lock())
        with gate:
            try:
                return self._found(question, tables) or self._made(question, tables, make)
            finally:
                with self._lock:
                    self._making.pop(question, None)

    def table(self, question: Hashable, tables: tuple[str, ...], span: tuple[float | None, float | None], read: Callable[[], pa.Table], *,
              over: Literal["batches", "metrics"] = "batches") -> bytes:
        """A table as an Arrow IPC stream. Of `span` (UTC seconds) only the rows of `over` inside it may matter to the answer."""
        return self.of((question, over, self._inside(over, span)), tables, lambda: arrow_bytes(read()))

    def bytes_held(self) -> int:
        """What the kept answers weigh."""
        with self._lock:
            return int(self._kept.currsize)

    def _inside(self, over: str, span: tuple[float | None, float | None]) -> tuple[object, ...]:
        """The first and the last row inside the range; rows are only ever appended, and a deletion counts as a write."""
        column = {"batches": "closed_at", "metrics": '"at"'}[over]
        start, end = span
        return self._store.query(f"SELECT min({column}), max({column}) FROM {over} WHERE {column} >= ? AND {column} <= ?",
                                 [-1e18 if start is None else start, 1e18 if end is None else end])[0]

    def _found(self, question: Hashable, tables: tuple[str, ...]) -> bytes | None:
        with self._lock:
            kept = self._kept.get(question)
        return kept[1] if kept is not None and kept[0] == self._store.writes(tables) else None

    def _made(self, question: Hashable, tables: tuple[str, ...], make: Callable[[], bytes]) -> bytes:
        before = self._store.writes(tables)
        answer = make()
        with self._lock:
            self.made += 1
            if len(answer) <= self._largest:
                self._kept[question] = (before, answer)
        return answer


def arrow_bytes(table: pa.Table) -> bytes:
    """A table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
