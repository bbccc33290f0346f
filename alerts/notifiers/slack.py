"""Slack by incoming webhook, through slack_sdk's own client: one message a notice, no threads, no updates (Slack offers
those to bot tokens only).

Three things of the client are replaced: its retries (the outbox retries), its opener (it would follow redirects, ignore
no_proxy and read without bound), and its logger (at DEBUG it writes the webhook's address, which is a secret).
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any
from urllib.request import Request

from slack_sdk.errors import SlackClientError
from slack_sdk.webhook import WebhookClient, WebhookResponse

from alerts.config import ReceiverConfig
from alerts.message import Message
from alerts.notifiers import http
from alerts.notifiers.slack_client import MUTE
from alerts.render import as_slack
from collector.errors import GiveUp


class _Client(WebhookClient):
    """slack_sdk's client over our poster."""

    def __init__(self, poster: http.Poster) -> None:
        super().__init__(poster.url, logger=MUTE, retry_handlers=[], user_agent_prefix="klaxon")
        self._poster = poster

    def _perform_http_request_internal(self, url: str, req: Request) -> WebhookResponse:
        data = req.data if isinstance(req.data, bytes) else b""
        answer = self._poster.post(data, dict(req.header_items()))
        return WebhookResponse(url="", status_code=answer.status, body=answer.body, headers=dict(answer.headers))


class SlackWebhookNotifier:
    """POSTs render.as_slack(message)."""

    def __init__(self, receiver: ReceiverConfig, *, timeout_seconds: float) -> None:
        """Raises ConfigError when the address is missing or unusable."""
        self._client = _Client(http.poster(receiver, receiver.address(), timeout_seconds=timeout_seconds))

    def preview(self, message: Message) -> dict[str, Any]:
        """The body of the request."""
        return as_slack(message)

    def send(self, message: Message, *, now: float, memory: MutableMapping[str, str]) -> None:
        """Send once. Raises RetryLater or GiveUp."""
        try:
            answer = self._client.send_dict(as_slack(message))
        except SlackClientError as error:
            raise GiveUp(f"the Slack client refuses the message ({type(error).__name__})") from None
        http.judge(http.Answer(status=answer.status_code, headers=answer.headers, body=answer.body))
