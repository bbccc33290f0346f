"""Any HTTP receiver: JSON, signed as Standard Webhooks asks (webhook-id, webhook-timestamp, webhook-signature).

The id is the message's own, the same on every retry: a receiver that keeps the ids it has seen gets every alert once.
Without a secret the body goes unsigned.
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from datetime import UTC, datetime

from standardwebhooks import Webhook

from alerts.config import ReceiverConfig
from alerts.message import Message
from alerts.notifiers import http
from alerts.render import as_webhook
from collector.errors import ConfigError


class WebhookNotifier:
    """POSTs render.as_webhook(message)."""

    def __init__(self, receiver: ReceiverConfig, *, timeout_seconds: float) -> None:
        """Raises ConfigError when the address or the secret is missing or unusable."""
        self._poster = http.Poster(receiver.address(), allow_private=receiver.allow_private, timeout_seconds=timeout_seconds)
        secret = receiver.secret()
        try:
            self._signer = Webhook(secret) if secret is not None else None
        except Exception as error:  # the library raises binascii's, its own and plain RuntimeErrors
            raise ConfigError(f"receiver {receiver.name!r}: its signing secret is not one ({type(error).__name__}); "
                              "it is base64, usually written whsec_…") from None

    def send(self, message: Message, *, now: float, memory: MutableMapping[str, str]) -> None:
        """Send once. Raises RetryLater or GiveUp."""
        body = json.dumps(as_webhook(message), ensure_ascii=False, allow_nan=False)
        headers = {"Content-Type": "application/json", "webhook-id": message.id, "webhook-timestamp": str(int(now))}
        if self._signer is not None:
            headers["webhook-signature"] = self._signer.sign(message.id, datetime.fromtimestamp(int(now), UTC), body)
        http.judge(self._poster.post(body.encode(), headers))
