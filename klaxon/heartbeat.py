"""The dead man's switch: a POST to an address that pages when it stops coming (healthchecks.io and the like).

It is sent by the chores' schedule, and only while Klaxon can do its work: its threads make rounds, it sees the run, and
both of its stores take writes. Silence is the message: what is wrong is in the log, once, and in `klaxon status`.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from alerts.config import ReceiverConfig
from alerts.notifiers import http
from collector.errors import GiveUp, RetryLater, Unavailable
from detectors.hardfacts import facts
from klaxon.live import BLINDING

if TYPE_CHECKING:
    from klaxon.app import Daemon

log = logging.getLogger("klaxon.heartbeat")
STUCK_SECONDS = 60.0  # a round of the watch takes half a second; a diagnosis or a slow disk may hold it up


class Heartbeat:
    """Sends one beat when asked, or none when something is wrong."""

    def __init__(self, receiver: ReceiverConfig, *, run: str, timeout_seconds: float, trouble: Callable[[float], str | None],
                 counts: Counter[str], clock: Callable[[], float] = time.time) -> None:
        """`trouble` says at a time (UTC seconds) why no beat may be sent, or None; `counts` gets heartbeat_sent, _failed and _withheld.

        Raises:
            ConfigError: the address is missing or unusable.
        """
        self._poster = http.Poster(receiver.address(), allow_private=receiver.allow_private, timeout_seconds=timeout_seconds)
        self._run, self._trouble, self._counts, self._clock = run, trouble, counts, clock
        self._said = ""  # the kind of outcome that was logged last

    def beat(self) -> bool:
        """One beat; True when it was accepted."""
        now = self._clock()
        if (why := self._trouble(now)) is not None:
            return self._note("withheld", f"no heartbeat is sent: {why}")
        body = json.dumps({"run": self._run, "at": now}).encode()
        try:
            http.judge(self._poster.post(body, {"Content-Type": "application/json"}))
        except (RetryLater, GiveUp) as error:
            return self._note("failed", f"the heartbeat was not accepted: {error}")
        return self._note("sent", "")

    def _note(self, outcome: str, said: str) -> bool:
        """Count; log what is new."""
        self._counts[f"heartbeat_{outcome}"] += 1
        if outcome != self._said and (said or self._said):
            log.log(logging.ERROR if said else logging.INFO, "%s", said or "heartbeats are sent again")
        self._said = outcome
        return outcome == "sent"


def heartbeat_of(daemon: Daemon) -> Heartbeat | None:
    """The daemon's heartbeat, None where none is configured. Raises ConfigError for an unusable address."""
    config = daemon.config.alerts
    receiver = config.heartbeat()
    if receiver is None:
        return None
    return Heartbeat(receiver, run=daemon.config.run.name, timeout_seconds=config.timeout_seconds, counts=daemon.counts,
                     trouble=lambda now: trouble(daemon, now))


def trouble(daemon: Daemon, now: float) -> str | None:
    """Why this daemon cannot vouch for the run, in words; None when it can."""
    for thread in (daemon.watch, daemon.worker):
        if not thread.is_alive():
            return f"the thread {thread.name} has ended"
    if now - daemon.watch.ticked_at > STUCK_SECONDS:
        return f"the detectors have made no round for {now - daemon.watch.ticked_at:.0f} s"
    for fact in facts(None, daemon.live.observation(now), daemon.config.detectors.facts):
        if fact.name in BLINDING:
            return fact.text
    try:
        daemon.alerts.probe()
    except Unavailable as error:
        return str(error)
    return None
