"""One exporter: a thread, a bounded queue and a sink that may fail for as long as it likes without anybody waiting for it.

What is taken from the queue is written at least once: it is kept and tried again, with a growing pause, until the sink takes it.
What does not fit into the queue stays in the store and is offered again.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from klaxon.exports.points import Note, Point

log = logging.getLogger("klaxon.exports")
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
POLL_SECONDS = 0.25
COMPLAINT_SECONDS = 300.0  # a complaint is taken to hold this long: clients say when a try fails, not when one works again


class Sink(Protocol):
    """A place that takes points. Opening and writing may raise anything; the relay counts it and tries again."""

    def write(self, item: Point | Note) -> None:
        """Take one; returns when it is taken."""
        ...

    def close(self) -> None:
        """Let what was taken leave, and end."""
        ...

    def trouble(self) -> str:
        """What it has complained about since the last call, although it took everything; "" = nothing."""
        ...


class Relay(threading.Thread):
    """Thread-safe. `name` is the exporter's, `where` says in words where the numbers go; `open_sink` is handed the event that is set when
    Klaxon stops, and gives up waiting then."""

    def __init__(self, name: str, open_sink: Callable[[threading.Event], Sink], *, where: str, capacity: int, takes_notes: bool,
                 clock: Callable[[], float] = time.time, pause_seconds: float = FIRST_PAUSE_SECONDS) -> None:
        super().__init__(name=f"klaxon-export-{name}", daemon=True)
        self.exporter, self.where, self.takes_notes = name, where, takes_notes
        self.counts: Counter[str] = Counter()  # written, notes, failed, complaints
        self.done_t = -1  # newest batch that was written
        self.told: dict[str, str] = {}  # incident → state that was told
        self.last_written_at: float | None = None  # UTC seconds
        self.last_error, self.failing_since, self.complained_at = "", None, None
        self._open, self._sink, self._clock, self._first_pause = open_sink, None, clock, pause_seconds
        self._queue: queue.Queue[Point | Note] = queue.Queue(capacity)
        self._halt = threading.Event()

    def offer(self, item: Point | Note) -> bool:
        """Queue it; False when the queue is full. Never waits."""
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            return False
        return True

    def room(self) -> int:
        """How many more fit."""
        return self._queue.maxsize - self._queue.qsize()

    def run(self) -> None:
        """Until stopped and, if the sink takes it, empty."""
        while not (self._halt.is_set() and self._queue.empty()):
            try:
                item = self._queue.get(timeout=POLL_SECONDS)
            except queue.Empty:
                self._hear()
                continue
            if not self._deliver(item):
                break
        self._close()

    def stop(self) -> None:
        """Ask the thread to end with what is queued; a sink that fails now is not tried again."""
        self._halt.set()

    def status(self) -> dict[str, Any]:
        """For GET /v1/status. state: starting (nothing written yet), ok, complaining (it took everything, and its server fails) or failing;
        times are UTC seconds."""
        complains = self.complained_at is not None and self._clock() - self.complained_at < COMPLAINT_SECONDS
        state = "failing" if self.failing_since is not None else "complaining" if complains else "ok" if self.last_written_at is not None else "starting"
        return {"exporter": self.exporter, "state": state, "where": self.where, "queued": self._queue.qsize(), "written": self.counts["written"],
                "notes": self.counts["notes"], "failed": self.counts["failed"], "complaints": self.counts["complaints"],
                "last_batch": self.done_t if self.done_t >= 0 else None, "last_written_at": self.last_written_at,
                "failing_since": self.failing_since, "last_error": self.last_error}

    def _deliver(self, item: Point | Note) -> bool:
        """Write it, however often that takes; False when Klaxon stops before."""
        pause = self._first_pause
        while True:
            try:
                self._sink = self._sink or self._open(self._halt)
                self._sink.write(item)
            except Exception as error:  # a client library may raise anything: counted, shown, tried again
                self._failed(error)
                if self._halt.wait(pause):
                    return False
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                continue
            self._took(item)
            return True

    def _took(self, item: Point | Note) -> None:
        if self.failing_since is not None:
            log.info("%s takes numbers again", self.exporter)
        self.last_written_at, self.failing_since = self._clock(), None
        if isinstance(item, Point):
            self.counts["written"] += 1
            self.done_t = item.t
        else:
            self.counts["notes"] += 1
            self.told[item.incident] = item.state
        self._hear()

    def _failed(self, error: Exception) -> None:
        self.counts["failed"] += 1
        self.last_error = f"{error}"[:300] or type(error).__name__
        if self.failing_since is None:
            log.error("%s takes no numbers: %s; it is tried again", self.exporter, self.last_error)
            self.failing_since = self._clock()
        self._close()

    def _hear(self) -> None:
        """A sink that took a number may still complain about it later."""
        if self._sink is not None and (said := self._sink.trouble()):
            self.counts["complaints"] += 1
            self.complained_at = self._clock()
            self.last_error = said[:300]
            log.warning("%s: %s", self.exporter, self.last_error)

    def _close(self) -> None:
        sink, self._sink = self._sink, None
        if sink is None:
            return
        try:
            sink.close()
        except Exception as error:  # as above
            self.counts["failed"] += 1
            self.last_error = f"{error}"[:300]
            log.warning("%s does not close cleanly: %s", self.exporter, self.last_error)
