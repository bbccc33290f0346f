"""Notifiers: each sends one message once, and says "later" or "never" when it cannot. Retrying lives in the outbox."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Protocol

from alerts.config import ReceiverConfig
from alerts.message import Message
from alerts.notifiers.alertmanager import AlertmanagerNotifier
from alerts.notifiers.apprise_bridge import AppriseNotifier
from alerts.notifiers.console import ConsoleNotifier
from alerts.notifiers.pagerduty import PagerDutyNotifier
from alerts.notifiers.slack import SlackWebhookNotifier
from alerts.notifiers.slack_bot import SlackBotNotifier
from alerts.notifiers.wandb_alert import WandbNotifier
from alerts.notifiers.webhook import WebhookNotifier


class Notifier(Protocol):
    """One receiver's way of being told."""

    def send(self, message: Message, *, now: float, memory: MutableMapping[str, str]) -> None:
        """Send once.

        Args:
            now: UTC seconds.
            memory: what this receiver must know of the incident the next time (a thread's id). Stored with the outcome, whatever it is.

        Raises:
            RetryLater: the receiver may take it another time.
            GiveUp: it never will.
        """

    def preview(self, message: Message) -> Any:
        """The body of the first request about an incident, or the text; JSON-able and without secrets. Nothing is sent."""


NOTIFIERS = {
    "slack": SlackBotNotifier,
    "slack_webhook": SlackWebhookNotifier,
    "webhook": WebhookNotifier,
    "pagerduty": PagerDutyNotifier,
    "alertmanager": AlertmanagerNotifier,
    "wandb": WandbNotifier,
    "apprise": AppriseNotifier,
    "console": ConsoleNotifier,
}


def build(receiver: ReceiverConfig, *, timeout_seconds: float) -> Notifier:
    """The notifier of a configured receiver.

    Raises:
        ConfigError: its address, its secret or a library it needs is missing or unusable.
    """
    return NOTIFIERS[receiver.type](receiver, timeout_seconds=timeout_seconds)
