"""Any HTTP receiver: JSON, signed as Standard Webhooks asks (webhook-id, webhook-timestamp, webhook-signature).

The id is the message's own, the same on every retry: a receiver that keeps the ids it has seen gets every alert once.
Without a secret the body goes unsigned.
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

from standardwebhooks import Webhook

from alerts.config import ReceiverConfig
from alerts.message import Message
from alerts.notifiers import http
from alerts.render import as_webhook
from alerts.render_events import as_alertmanager_webhook, as_cloudevent
from collector.errors import ConfigError


class WebhookNotifier:
    """POSTs the message in the receiver's format."""

    def __init__(self, receiver: ReceiverConfig, *, timeout_seconds: float) -> None:
        """Raises ConfigError when the address or the secret is missing or unusable."""
        secret = receiver.secret()
        self._name, self._format = receiver.name, receiver.format
        self._poster = http.poster(receiver, receiver.address(), timeout_seconds=timeout_seconds, secrets=(secret,))
        try:
            self._signer = Webhook(secret) if secret is not None else None
        except Exception as error:  # the library raises binascii's, its own and plain RuntimeErrors
            raise ConfigError(f"receiver {receiver.name!r}: its signing secret is not one ({type(error).__name__}); "
                              "it is base64, usually written whsec_…") from None

    def preview(self, message: Message) -> dict[str, Any]:
        """The body of the request."""
        if self._format == "cloudevents":
            return as_cloudevent(message)
        if self._format == "alertmanager":
            return as_alertmanager_webhook(message, receiver=self._name)
        return as_webhook(message)

    def send(self, message: Message, *, now: float, memory: MutableMapping[str, str]) -> None:
        """Send once. Raises RetryLater or GiveUp."""
        body = json.dumps(self.preview(message), ensure_ascii=False, allow_nan=False)
        kind = "application/cloudevents+json; charset=utf-8" if self._format == "cloudevents" else "application/json"
        headers = {"Content-Type": kind, "webhook-id": message.id, "webhook-timestamp": str(int(now))}
        if self._signer is not None:
            headers["webhook-signature"] = self._signer.sign(message.id, datetime.fromtimestamp(int(now), UTC), body)
        http.judge(self._poster.post(body.encode(), headers))
