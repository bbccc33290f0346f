"""Alertmanager as a sink: POST /api/v2/alerts, so that its routing, grouping and silences serve Klaxon's incidents too.

Alertmanager identifies an alert by its labels. When they change (the cause has become sure), one request ends the alert of the old
labels and begins that of the new ones. It forgets an open alert at its endsAt; see render_events.ENDS_AFTER_SECONDS.
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from typing import Any

from alerts.config import ReceiverConfig
from alerts.message import Message
from alerts.notifiers import http
from alerts.render import rfc3339
from alerts.render_events import as_alertmanager_alert


class AlertmanagerNotifier:
    """POSTs one alert, or two when its labels changed."""

    def __init__(self, receiver: ReceiverConfig, *, timeout_seconds: float) -> None:
        """Raises ConfigError when the address or the token is missing or unusable."""
        token = receiver.secret()
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._poster = http.poster(receiver, receiver.address().rstrip("/"), timeout_seconds=timeout_seconds, secrets=(token,))

    def preview(self, message: Message) -> list[dict[str, Any]]:
        """The body of the request."""
        return [as_alertmanager_alert(message, now=message.at)]

    def send(self, message: Message, *, now: float, memory: MutableMapping[str, str]) -> None:
        """Send once. Raises RetryLater or GiveUp."""
        alert = as_alertmanager_alert(message, now=now)
        identity, before = json.dumps(alert["labels"], sort_keys=True), memory.get("labels")
        sent = [alert]
        if before is not None and before != identity:
            ends_at = alert["endsAt"] if message.state == "resolved" else max(rfc3339(now), alert["startsAt"])
            sent.insert(0, {**alert, "labels": json.loads(before), "endsAt": ends_at})
        http.judge(self._poster.post(json.dumps(sent, ensure_ascii=False, allow_nan=False).encode(), self._headers, below="/api/v2/alerts"))
        memory["labels"] = identity
