"""The delivery loop: one thread a receiver, so that a slow one delays nobody else."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

from alerts.outbox import Outbox
from collector.errors import Unavailable

log = logging.getLogger(__name__)
JUMP_SECONDS = 5.0  # the wall clock moved this much more or less than time passed: it was set


class Workers:
    """Starts, wakes and stops the threads."""

    def __init__(self, outbox: Outbox, receivers: tuple[str, ...], *, clock: Callable[[], float],
                 monotonic: Callable[[], float] = time.monotonic) -> None:
        self._outbox, self._receivers, self._clock, self._monotonic = outbox, receivers, clock, monotonic
        self._wakers = {receiver: threading.Event() for receiver in receivers}
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.counts: Counter[str] = Counter()  # "storage_errors", "worker_errors", "clock_jumps"

    def start(self) -> None:
        """Start delivering; a second call does nothing."""
        if self._threads:
            return
        self._stopping.clear()
        self._threads = [threading.Thread(target=self.run, args=(receiver,), name=f"klaxon-alerts-{receiver}", daemon=True)
                         for receiver in self._receivers]
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """There is something to send."""
        for waker in self._wakers.values():
            waker.set()

    def run(self, receiver: str) -> None:
        """Deliver to one receiver until stopped; an error is counted, logged once, and the next round goes on."""
        settled, ahead = False, self._clock() - self._monotonic()
        while not self._stopping.is_set():
            self._wakers[receiver].clear()
            try:
                now, before = self._clock(), ahead
                if not settled:
                    self._outbox.settle(receiver, now)
                    settled = True
                if abs(now - self._monotonic() - before) > JUMP_SECONDS:
                    self._jumped(receiver, now - self._monotonic() - before)
                ahead = now - self._monotonic()
                self._outbox.deliver_due(now, receiver=receiver, most=1)  # one: leases and jumps are judged by a fresh clock
            except Unavailable as error:
                self._count("storage_errors", f"alerts wait: {error}")
            except Exception as error:  # a dead thread would be a silent receiver
                self._count("worker_errors", f"receiver {receiver}: a round of delivery failed unexpectedly ({type(error).__name__}: {error})")
            self._wakers[receiver].wait(self._outbox.pause(receiver))

    def _jumped(self, receiver: str, seconds: float) -> None:
        self._outbox.clock_jumped(receiver, seconds)
        self.counts["clock_jumps"] += 1
        log.warning("receiver %s: the clock jumped by %.0f s; what waits moves along", receiver, seconds)

    def _count(self, name: str, said: str) -> None:
        if not self.counts[name]:
            log.error("%s", said)
        self.counts[name] += 1

    def stop(self, *, drain_seconds: float) -> None:
        """Give what is due up to `drain_seconds` to leave, then end the threads; the rest leaves after the next start."""
        if not self._threads:
            return
        waited, pause = 0.0, threading.Event()
        while waited < drain_seconds and self._busy():
            pause.wait(0.05)
            waited += 0.05
        self._stopping.set()
        self.wake()
        for thread in self._threads:
            thread.join(timeout=15.0)
        self._threads = []

    def _busy(self) -> bool:
        try:
            return self._outbox.due(self._clock()) > 0
        except Unavailable:
            return False
