"""The console: alerts as plain text on standard error, so that standard output stays for data."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping

from alerts.config import ReceiverConfig
from alerts.message import Message
from alerts.render import as_text
from collector.errors import RetryLater


class ConsoleNotifier:
    """Prints to sys.stderr as it is at the time of the message."""

    def __init__(self, receiver: ReceiverConfig, *, timeout_seconds: float) -> None:
        self.name = receiver.name

    def preview(self, message: Message) -> str:
        """What is printed."""
        return as_text(message)

    def send(self, message: Message, *, now: float, memory: MutableMapping[str, str]) -> None:
        """Print the message. Raises RetryLater when standard error is gone."""
        try:
            print(f"\n{as_text(message)}\n", file=sys.stderr, flush=True)
        except (OSError, ValueError) as error:
            raise RetryLater(f"standard error cannot be written to ({type(error).__name__})") from None
