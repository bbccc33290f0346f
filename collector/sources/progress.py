"""How much of a source is stored: so that after a restart, also after kill -9, each rollout counts once.

A source is read ahead of what is stored, and its rollouts do not reach the store in their order: one that finished late falls into a
later batch than its neighbours. So a `Progress` knows the record up to which everything is stored (`low`), and beside it the items that
are stored beyond it. What is read carries a `Mark`; whoever has stored the item, or dropped it for good, settles its mark.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EDGE_BYTES = 256


def digest(data: bytes) -> str:
    """Of a piece of a file: the file is recognised by it, and nothing can be read back."""
    return hashlib.blake2b(data, digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mark:
    """Where an item was read. `recalled`: it is stored already, and read again only because the trainer's word on it may still come."""

    progress: Progress
    record: int  # end of its line, bytes; or its place in a file that is read whole
    item: int  # of that record's items
    start: tuple[int, int]  # byte and line at which its record begins
    name: str = ""  # of the file, for people
    recalled: bool = False

    def settle(self) -> None:
        """It is stored, or dropped for good. A second call does nothing."""
        self.progress.settle(self.record, self.item)

    def __str__(self) -> str:
        return f"{self.name}:{self.record}" + (f".{self.item}" if self.item else "")


class Progress:
    """Of one file, until it is written anew. Thread-safe: the worker opens records, the watch settles them."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self.low, self.line = int(state.get("low", 0)), int(state.get("line", 0))
        self.edge: tuple[int, str] = tuple(state.get("edge", (0, "")))  # (length, digest) of the end of record `low`
        self.recall: tuple[int, int] | None = tuple(state["recall"]) if state.get("recall") else None
        self._done: set[tuple[int, int]] = {(int(record), int(item)) for record, item in state.get("done", ())}
        self._open: OrderedDict[int, tuple[set[int], int, tuple[int, str]]] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, record: int, items: int, *, line: int = 0, edge: tuple[int, str] = (0, "")) -> None:
        """A record was read that holds `items` items; records are opened in their order."""
        with self._lock:
            if record > self.low:
                self._open[record] = {item for item in range(items) if (record, item) not in self._done}, line, edge
                self._advance()

    def stored(self, record: int, item: int) -> bool:
        """Is this item settled."""
        with self._lock:
            return record <= self.low or (record, item) in self._done

    def settle(self, record: int, item: int) -> None:
        """As `Mark.settle`."""
        with self._lock:
            if record in self._open and item in self._open[record][0]:
                self._open[record][0].discard(item)
                self._done.add((record, item))
                self._advance()

    @property
    def settled(self) -> bool:
        """Is everything that was opened settled."""
        with self._lock:
            return not self._open

    def state(self) -> dict[str, Any]:
        """As plain data; `Progress(state)` goes on from it."""
        with self._lock:
            return {"low": self.low, "line": self.line, "edge": list(self.edge), "done": sorted(map(list, self._done)),
                    **({"recall": list(self.recall)} if self.recall else {})}

    def _advance(self) -> None:
        while self._open:
            record = next(iter(self._open))
            left, line, edge = self._open[record]
            if left:
                return
            del self._open[record]
            self._done = {(one, item) for one, item in self._done if one > record} if self._done else self._done
            self.low, self.line, self.edge = record, line, edge
