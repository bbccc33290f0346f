"""What each type of receiver takes: an address, a secret, keys of its own. One row a type, and one reader of secrets."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from collector.errors import ConfigError

ReceiverType = Literal["slack", "slack_webhook", "webhook", "pagerduty", "alertmanager", "wandb", "apprise", "console"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Takes:
    """The row of one type."""

    address: Literal["none", "secret", "public"]  # a secret one is named by url_env or url_file; a public one may be written down
    default_address: str = ""
    secret: Literal["none", "may", "must"] = "none"
    secret_is: str = ""  # in words
    must: tuple[str, ...] = ()  # keys of its own that have to be given
    may: tuple[str, ...] = ()  # keys of its own


TYPES: dict[ReceiverType, Takes] = {
    "slack": Takes(address="public", default_address="https://slack.com/api/", secret="must", secret_is="bot token (xoxb-…)", must=("channel",)),
    "slack_webhook": Takes(address="secret"),
    "webhook": Takes(address="secret", secret="may", secret_is="signing secret", may=("format",)),
    "pagerduty": Takes(address="public", default_address="https://events.pagerduty.com/v2/enqueue", secret="must",
                       secret_is="routing key (integration key)"),
    "alertmanager": Takes(address="public", secret="may", secret_is="bearer token"),
    "wandb": Takes(address="public", default_address="https://api.wandb.ai", secret="must", secret_is="API key", must=("path",), may=("group",)),
    "apprise": Takes(address="secret"),
    "console": Takes(address="none"),
}
OWN_KEYS = tuple(sorted({key for takes in TYPES.values() for key in (*takes.must, *takes.may)}))


def is_loopback(host: str) -> bool:
    """Does this host name, as written, mean the machine itself? Names are not resolved."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_plain_loopback(url: str) -> bool:
    """Is it http:// on this machine, without a user name?"""
    try:
        parts = urlsplit(url)
        return parts.scheme == "http" and parts.username is None and is_loopback(parts.hostname or "")
    except ValueError:
        return False


def read_secret(variable: str, file: str, *, whose: str, what: str) -> str:
    """The value of an environment variable, or of a file when no variable is named.

    Raises:
        ConfigError: it is not set, empty or cannot be read. Never shows the value.
    """
    if variable:
        found, place = os.environ.get(variable, ""), f"environment variable {variable}"
    else:
        place = f"file {file}"
        try:
            found = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{whose}: its {what} cannot be read from {place} ({type(error).__name__})") from None
    found = found.strip()
    if not found:
        raise ConfigError(f"{whose}: its {what} is missing; {place} is not set or empty")
    if any(ord(c) < 32 for c in found):
        raise ConfigError(f"{whose}: its {what} in {place} holds a line break or another control character")
    return found


def checked_address(url: str, *, whose: str, allow_http: bool) -> str:
    """The URL, when it is one this receiver may use.

    Raises:
        ConfigError: it is not. Never shows the address.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, None
    if parts is None or not host or parts.scheme not in ("http", "https") or any(c.isspace() or ord(c) < 32 for c in url):
        raise ConfigError(f"{whose}: its address is not an http(s) URL")
    if parts.username is not None:
        raise ConfigError(f"{whose}: its address carries a user name or password; put the credential into the path or sign with secret_env")
    if parts.scheme == "http" and not (allow_http or is_loopback(host)):
        raise ConfigError(f"{whose}: its address is http, not https; use https, or set allow_http = true to send alerts readable")
    return url
