"""Configuration of [alerts] and its [[alerts.receivers]]. Secrets never stand here: name a variable or a file."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from collector.errors import ConfigError


class ReceiverConfig(BaseModel):
    """[[alerts.receivers]]: one place that hears about incidents."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    type: Literal["slack_webhook", "webhook", "console"] = Field("webhook", description="slack_webhook, webhook (signed JSON) or console")
    name: str = Field("", description="name shown in logs and incidents; empty = the type")
    url_env: str = Field("", description="environment variable that holds the address")
    url_file: str = Field("", description="file that holds the address (a mounted secret)")
    url: str = Field("", description="address written here: only for plain http on this machine (127.0.0.1, localhost)")
    secret_env: str = Field("", description="webhook: environment variable that holds the signing secret (whsec_…)")
    secret_file: str = Field("", description="webhook: file that holds the signing secret")
    allow_http: bool = Field(False, description="permit http to another machine; the address and the alert travel readable")
    allow_private: bool = Field(False, description="permit addresses of private networks (10.…, 192.168.…, link-local, …)")

    @model_validator(mode="after")
    def _addresses_are_not_secrets(self) -> Self:
        self.name = self.name or self.type
        given = [key for key in ("url", "url_env", "url_file") if getattr(self, key)]
        if self.type == "console":
            if given:
                raise ValueError(f"receiver {self.name!r}: a console has no address; remove {given[0]}")
            return self
        if len(given) != 1:
            said = f"{' and '.join(given)} are set" if given else "none is set"
            raise ValueError(f"receiver {self.name!r} needs exactly one of url_env and url_file; {said}")
        if self.url and not _is_plain_loopback(self.url):
            raise ValueError(f"receiver {self.name!r}: a webhook address is a secret and does not belong in config.toml; put it "
                             "into an environment variable or a file and name that with url_env or url_file "
                             "(a literal url is only for http:// on this machine)")
        if self.secret_env and self.secret_file:
            raise ValueError(f"receiver {self.name!r}: set one of secret_env and secret_file, not both")
        return self

    def address(self) -> str:
        """The URL to post to, read from its environment variable or file and checked.

        Raises:
            ConfigError: it is not set, cannot be read, or is not an address this receiver may use. Never shows the address.
        """
        found = self.url or _secret(self.url_env, self.url_file, whose=f"receiver {self.name!r}", what="address")
        return _checked(found, self)

    def secret(self) -> str | None:
        """The signing secret, or None when none is configured.

        Raises:
            ConfigError: it is named but not set or cannot be read.
        """
        if not (self.secret_env or self.secret_file):
            return None
        return _secret(self.secret_env, self.secret_file, whose=f"receiver {self.name!r}", what="signing secret")


class AlertsConfig(BaseModel):
    """[alerts]: who hears about incidents, and how often."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    console: bool = Field(True, description="print every alert to the daemon's standard error")
    dashboard_url: str = Field("http://127.0.0.1:8501", description="address of the page, linked from every alert; empty = no link")
    repeat_interval_seconds: float = Field(4 * 3600.0, gt=0, description="an incident nobody acknowledged is told again after this long, seconds")
    worse_factor: float = Field(2.0, gt=1, description="an incident is told again when its effect has grown by this factor")
    give_up_after_seconds: float = Field(24 * 3600.0, gt=0, description="a message that could not be delivered for this long becomes a dead letter, seconds")
    timeout_seconds: float = Field(5.0, gt=0, le=20, description="patience with a receiver: to connect, and between bytes of its answer, seconds")
    backoff_seconds: float = Field(1.0, gt=0, description="first pause after a failed delivery; doubles up to backoff_max_seconds, with full jitter, seconds")
    backoff_max_seconds: float = Field(300.0, gt=0, description="longest pause between two attempts, seconds")
    receivers: list[ReceiverConfig] = Field(default_factory=list, description="Where alerts go besides the console.")
    breaker_failures: int = Field(5, ge=1, description="after this many failures in a row a receiver is left alone for breaker_seconds, then tried with one message")
    breaker_seconds: float = Field(30.0, gt=0, le=3600, description="how long, seconds")
    rates: dict[str, float] = Field(default_factory=dict, description="most messages a second by receiver name or type, 0 = no limit; by default 1 for Slack, no limit for the others")
    heartbeat_url_env: str = Field("", description="environment variable that holds an address which is POSTed to while all is well (a dead man's switch such as healthchecks.io)")
    heartbeat_url_file: str = Field("", description="file that holds it (a mounted secret)")
    heartbeat_seconds: float = Field(60.0, gt=0, description="how often, seconds")
    heartbeat_allow_private: bool = Field(False, description="permit an address of a private network for it")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [receiver.name for receiver in self.all_receivers()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two receivers are called {twice[0]!r}; give each its own name")
        return self

    @model_validator(mode="after")
    def _rates_have_receivers(self) -> Self:
        known = {*get_args(ReceiverConfig.model_fields["type"].annotation), *(receiver.name for receiver in self.all_receivers())}
        for name, rate in self.rates.items():
            if name not in known:
                raise ValueError(f"rates names {name!r}, which is neither a receiver's name nor a type ({', '.join(sorted(known))})")
            if not 0 <= rate < float("inf"):
                raise ValueError(f"rates.{name} must be 0 (no limit) or a number of messages a second")
        return self

    def heartbeat(self) -> ReceiverConfig | None:
        """The heartbeat's address under the rules of every other one; None when none is configured."""
        if not (self.heartbeat_url_env or self.heartbeat_url_file):
            return None
        return ReceiverConfig(type="webhook", name="heartbeat", url_env=self.heartbeat_url_env, url_file=self.heartbeat_url_file,
                              allow_private=self.heartbeat_allow_private)

    def all_receivers(self) -> tuple[ReceiverConfig, ...]:
        """The configured receivers, the console first where it is on."""
        if self.console and not any(receiver.type == "console" for receiver in self.receivers):
            return (ReceiverConfig(type="console"), *self.receivers)
        return tuple(self.receivers)


def is_loopback(host: str) -> bool:
    """Does this host name, as written, mean the machine itself? Names are not resolved."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_plain_loopback(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "http" and parts.username is None and is_loopback(parts.hostname or "")
    except ValueError:
        return False


def _secret(variable: str, file: str, *, whose: str, what: str) -> str:
    if variable:
        found, place = os.environ.get(variable, ""), f"environment variable {variable}"
    else:
        place = f"file {file}"
        try:
            found = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{whose}: its {what} cannot be read from {place} ({type(error).__name__})") from None
    if not found.strip():
        raise ConfigError(f"{whose}: its {what} is missing; {place} is not set or empty")
    return found.strip()


def _checked(url: str, receiver: ReceiverConfig) -> str:
    whose = f"receiver {receiver.name!r}"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, None
    if parts is None or not host or parts.scheme not in ("http", "https") or any(c.isspace() or ord(c) < 32 for c in url):
        raise ConfigError(f"{whose}: its address is not an http(s) URL")
    if parts.username is not None:
        raise ConfigError(f"{whose}: its address carries a user name or password; put the credential into the path or sign with secret_env")
    if parts.scheme == "http" and not (receiver.allow_http or is_loopback(host)):
        raise ConfigError(f"{whose}: its address is http, not https; use https, or set allow_http = true to send alerts readable")
    return url
