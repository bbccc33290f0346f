"""E-mail and a hundred other services through the apprise library (extra `apprise`).

apprise does its own HTTP and SMTP: redirects, proxies and name lookups are its business, so Klaxon's guard of private networks does not
cover this receiver; nor does it say why a service refused, or for how long to wait. Its logger writes addresses, and so does that of
the HTTP library below it at DEBUG: the first is switched off, the second kept at INFO.
"""

from __future__ import annotations

import logging
import re
from collections.abc import MutableMapping
from typing import Any

from alerts.config import ReceiverConfig
from alerts.message import Message
from alerts.render import titled
from alerts.render_html import as_html
from collector.errors import ConfigError, RetryLater

_MENTION = re.compile(r"@(?=everyone|here|channel|all)|&lt;(?=[!@#])", re.IGNORECASE)
TYPES = {"firing": "failure", "acknowledged": "warning", "resolved": "success"}


class AppriseNotifier:
    """One apprise URL, e.g. mailtos://… or discord://…"""

    def __init__(self, receiver: ReceiverConfig, *, timeout_seconds: float) -> None:
        """Raises ConfigError when the extra or the address is missing, or apprise does not know such an address."""
        try:
            import apprise
        except ImportError:
            raise ConfigError(f"receiver {receiver.name!r} needs the apprise library: pip install 'klaxon-rl[apprise]'") from None
        logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)
        service = apprise.Apprise.instantiate(receiver.address(), suppress_exceptions=True)
        if not isinstance(service, apprise.NotifyBase):
            raise ConfigError(f"receiver {receiver.name!r}: its address is none that apprise knows (apprise's list: `apprise --details`)")
        service.socket_connect_timeout = service.socket_read_timeout = timeout_seconds
        self._apprise = apprise.Apprise()
        self._apprise.add(service)

    def preview(self, message: Message) -> dict[str, Any]:
        """What apprise is given; mentions in data are broken up, because apprise turns HTML into text for services that know no HTML."""
        return {"title": _MENTION.sub("\\g<0>\u200b", titled(message)), "body": _MENTION.sub("\\g<0>\u200b", as_html(message)), "body_format": "html", "notify_type": TYPES[message.state]}

    def send(self, message: Message, *, now: float, memory: MutableMapping[str, str]) -> None:
        """Send once. Raises RetryLater."""
        try:
            accepted = self._apprise.notify(**self.preview(message), interpret_escapes=False)
        except Exception as error:  # whatever a service's own client raises
            raise RetryLater(f"apprise failed ({type(error).__name__})") from None
        if not accepted:
            raise RetryLater("apprise could not deliver the message; it does not say why")
