"""PagerDuty by Events API v2: one incident there an incident here (dedup_key), triggered, acknowledged and resolved with it.

Every event is idempotent by its dedup_key, so a second copy changes nothing there but the incident's log.
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from typing import Any

from alerts.config import ReceiverConfig
from alerts.message import Message
from alerts.notifiers import http
from alerts.render_events import as_pagerduty


class PagerDutyNotifier:
    """POSTs to /v2/enqueue."""

    def __init__(self, receiver: ReceiverConfig, *, timeout_seconds: float) -> None:
        """Raises ConfigError when the routing key is missing or an address is unusable."""
        self._key = receiver.secret()
        self._poster = http.poster(receiver, receiver.address(), timeout_seconds=timeout_seconds, secrets=(self._key,))

    def preview(self, message: Message) -> dict[str, Any]:
        """The event, without the routing key."""
        action = {"firing": "trigger", "acknowledged": "acknowledge", "resolved": "resolve"}[message.state]
        return {"routing_key": "…", **as_pagerduty(message, action=action)}

    def send(self, message: Message, *, now: float, memory: MutableMapping[str, str]) -> None:
        """Send once. Raises RetryLater or GiveUp (HTTP 400: PagerDuty says what it does not take)."""
        for action in _actions(message, memory):
            event = {"routing_key": self._key, **as_pagerduty(message, action=action)}
            http.judge(self._poster.post(json.dumps(event, ensure_ascii=False, allow_nan=False).encode(), {"Content-Type": "application/json"}))
            memory["pagerduty"] = action


def _actions(message: Message, memory: MutableMapping[str, str]) -> list[str]:
    """News of an acknowledged incident is a trigger too: it only lengthens the log of an incident that is already there."""
    if message.state == "resolved":
        return ["resolve"]
    if message.state == "firing":
        return ["trigger"]
    tell = [] if memory.get("pagerduty") and message.reason == "acknowledged" else ["trigger"]
    return [*tell, "acknowledge"]
