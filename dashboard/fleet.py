"""How each of several daemons is, at a glance. Asked in the background: a daemon that does not answer never delays the page."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from dashboard import words
from dashboard.daemons import Daemon, Unusable, connect

EVERY_SECONDS = 5.0
TIMEOUT_SECONDS = 3.0
MOST_AT_ONCE = 8

State = Literal["firing", "acknowledged", "healthy", "learning", "starting", "blind", "stale", "stored", "unreachable", "refused", "odd", "asking"]
LOOKS: dict[State, tuple[str, str, str]] = {
    "firing": ("red", ":material/notifications_active:", "firing"), "acknowledged": ("orange", ":material/person_check:", "taken"),
    "healthy": ("green", ":material/check_circle:", "healthy"), "learning": ("blue", ":material/hourglass_top:", "learning"),
    "starting": ("blue", ":material/hourglass_top:", "starting"), "blind": ("orange", ":material/visibility_off:", "blind"),
    "stale": ("orange", ":material/visibility_off:", "stale"), "stored": ("gray", ":material/inventory_2:", "stored, read only"),
    "unreachable": ("gray", ":material/cloud_off:", "unreachable"), "refused": ("gray", ":material/lock:", "wants its token"),
    "odd": ("gray", ":material/help:", "answers oddly"), "asking": ("gray", ":material/sync:", "being asked")}
"""State → colour, icon and word: told apart without colour too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """What is known of a daemon."""

    state: State
    run: str = ""  # the run's own name, as the daemon says
    open: int = 0  # open incidents

    def text(self) -> str:
        """One line of Markdown: icon, word, number of open incidents."""
        colour, icon, word = LOOKS[self.state]
        many = f" · {self.open} open" if self.open else ""
        return f":{colour}[{icon} {word}{many}]"


class Fleet:
    """The newest glance at every daemon, shared by all who look at the page."""

    def __init__(self, daemons: Sequence[Daemon]) -> None:
        self._daemons = {one.url: one for one in daemons}
        self._known: dict[str, Glance] = {}
        self._asked: dict[str, float] = {}
        self._running: dict[str, Future[None]] = {}
        self._lock = threading.Lock()
        self._workers = ThreadPoolExecutor(max_workers=MOST_AT_ONCE, thread_name_prefix="klaxon-fleet")

    def look(self, *, patience_seconds: float = 0.0) -> dict[str, Glance]:
        """Daemon's address → its newest glance; what is old is asked again behind the caller's back. `patience_seconds`: how long to wait
        for those that were never heard."""
        now = time.monotonic()
        with self._lock:
            for url in self._daemons:
                if url not in self._running and now - self._asked.get(url, -1e9) > EVERY_SECONDS:
                    self._asked[url] = now
                    self._running[url] = self._workers.submit(self._ask, url)
            first = [future for url, future in self._running.items() if url not in self._known]
        if first and patience_seconds:
            wait(first, timeout=patience_seconds)
        return {url: self._known.get(url, Glance(state="asking")) for url in self._daemons}

    def _ask(self, url: str) -> None:
        try:
            self._known[url] = ask(self._daemons[url])
        finally:
            with self._lock:
                self._running.pop(url, None)


def ask(daemon: Daemon) -> Glance:
    """A glance at one daemon, now."""
    try:
        with connect(daemon, timeout_seconds=TIMEOUT_SECONDS) as client:
            answer = client.get("/v1/status")
            if answer.status_code == 401:
                return Glance(state="refused")
            incidents = client.get("/v1/incidents/open", params={"limit": 100})
            return glance(answer.raise_for_status().json(), incidents.json() if incidents.status_code == 200 else [])
    except (httpx.TransportError, Unusable):
        return Glance(state="unreachable")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError, AttributeError):
        return Glance(state="odd")


def glance(status: Mapping[str, Any], incidents: Sequence[Mapping[str, Any]]) -> Glance:
    """The state out of a status and the open incidents.

    >>> glance({"run": "a", "verdict": "healthy", "now": 5.0}, [{"state": "firing"}]).text()
    ':red[:material/notifications_active: firing · 1 open]'
    """
    verdict = words.verdict(status, []).state
    states = {str(one.get("state")) for one in incidents}
    state: State = "healthy"
    if verdict == "stored":
        state = "stored"
    elif "firing" in states or (verdict == "mismatch" and "acknowledged" not in states):
        state = "firing"
    elif "acknowledged" in states:
        state = "acknowledged"
    elif verdict in LOOKS:
        state = verdict
    return Glance(state=state, run=str(status.get("run") or ""), open=len(incidents))
