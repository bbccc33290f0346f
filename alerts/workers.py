"""The delivery loop: one thread a receiver, so that a slow one delays nobody else."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable

from alerts.outbox import Outbox
from collector.errors import Unavailable

log = logging.getLogger(__name__)
POLL_SECONDS = 0.5  # retries and leases come due without anybody waking the loop


class Workers:
    """Starts, wakes and stops the threads."""

    def __init__(self, outbox: Outbox, receivers: tuple[str, ...], *, clock: Callable[[], float]) -> None:
        self._outbox, self._receivers, self._clock = outbox, receivers, clock
        self._wakers = {receiver: threading.Event() for receiver in receivers}
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.counts: Counter[str] = Counter()  # "storage_errors"

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
        """Deliver to one receiver until stopped."""
        while not self._stopping.is_set():
            self._wakers[receiver].clear()
            try:
                self._outbox.deliver_due(self._clock(), receiver=receiver)
            except Unavailable as error:
                if not self.counts["storage_errors"]:
                    log.error("alerts wait: %s", error)
                self.counts["storage_errors"] += 1
            self._wakers[receiver].wait(POLL_SECONDS)

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
