"""Configuration of [alerts] and its [[alerts.receivers]]. Secrets never stand here: name a variable or a file."""

from __future__ import annotations

import re
from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from alerts.policy import policy_of
from alerts.receiver_types import OWN_KEYS, TYPES, ReceiverType, Takes, checked_address, is_plain_loopback, read_secret


class ReceiverConfig(BaseModel):
    """[[alerts.receivers]]: one place that hears about incidents."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    type: ReceiverType = Field(
        "webhook", description="slack (bot token: a thread an incident), slack_webhook, webhook (signed JSON), pagerduty (Events v2), "
        "alertmanager (API v2), wandb (an alert on a run), apprise (e-mail and the rest; extra `apprise`) or console")
    name: str = Field("", description="name shown in logs and incidents; empty = the type")
    url_env: str = Field("", description="environment variable that holds the address")
    url_file: str = Field("", description="file that holds the address (a mounted secret)")
    url: str = Field("", description="address written here: any for slack, pagerduty, alertmanager and wandb, where it is no secret "
                     "(empty = the service's own; alertmanager has none); else only plain http on this machine")
    secret_env: str = Field("", description="environment variable that holds the secret: slack's bot token, webhook's signing secret (whsec_…), "
                            "pagerduty's routing key, wandb's API key, alertmanager's bearer token")
    secret_file: str = Field("", description="file that holds the secret")
    channel: str = Field("", description="slack: id of the channel (C…), or its name")
    format: Literal["", "klaxon", "cloudevents", "alertmanager"] = Field(
        "", description="webhook: shape of the body: klaxon (the default), cloudevents (1.0, structured JSON) or alertmanager (its webhook, version 4)")
    path: str = Field("", description="wandb: entity/project/run_id of the run that gets the alert; entity/project = a run of Klaxon's own")
    group: str = Field("", description="wandb: group of Klaxon's own run, e.g. the trainer's")
    allow_http: bool = Field(False, description="permit http to another machine; the address and the alert travel readable")
    allow_private: bool = Field(False, description="permit addresses of private networks (10.…, 192.168.…, link-local, …)")
    match: dict[str, list[str]] = Field(default_factory=dict, description="only incidents that fit, by severity, run, cause and fault, each a list of values or globs; {} = all")
    escalation: bool = Field(False, description="hears of an incident only once nobody has acknowledged it for escalate_after_seconds")
    quiet_hours: list[str] = Field(default_factory=list, description="times of day it is left alone, e.g. [\"22:00-07:00\"]; told when they end, if still open")
    time_zone: str = Field("UTC", description="time zone of quiet_hours, e.g. Europe/Berlin")
    quiet_passes: list[Literal["page", "warn"]] = Field(default=["page"], description="severities that are told in quiet hours all the same")

    @model_validator(mode="after")
    def _is_routed(self) -> Self:
        try:
            policy_of(self)
        except ValueError as error:
            raise ValueError(f"receiver {self.name or self.type!r}: {error}") from None
        return self

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        self.name = self.name or self.type
        whose, takes = f"receiver {self.name!r}", TYPES[self.type]
        for key in takes.must:
            if not getattr(self, key):
                raise ValueError(f"{whose}: a {self.type} receiver needs {key}")
        for key in OWN_KEYS:
            if getattr(self, key) and key not in (*takes.must, *takes.may):
                owners = " or ".join(name for name, row in TYPES.items() if key in (*row.must, *row.may))
                raise ValueError(f"{whose}: {key} belongs to a {owners} receiver, not to {self.type}; remove it")
        self._address_fits(whose, takes)
        self._secret_fits(whose, takes)
        if self.type == "wandb" and not re.fullmatch(r"[^/\s]+(/[^/\s]+){1,2}", self.path):
            raise ValueError(f"{whose}: path is entity/project/run_id or entity/project")
        return self

    def _address_fits(self, whose: str, takes: Takes) -> None:
        given = [key for key in ("url", "url_env", "url_file") if getattr(self, key)]
        if takes.address == "none":
            if given:
                raise ValueError(f"{whose}: a {self.type} has no address; remove {given[0]}")
            return
        if len(given) > 1 or not (given or takes.default_address):
            said = f"{' and '.join(given)} are set" if given else "none is set"
            one_of = "url, url_env and url_file" if takes.address == "public" else "url_env and url_file"
            raise ValueError(f"{whose} needs exactly one of {one_of}; {said}")
        if self.url and takes.address == "secret" and not is_plain_loopback(self.url):
            raise ValueError(f"{whose}: this address is a secret and does not belong in config.toml; put it "
                             "into an environment variable or a file and name that with url_env or url_file "
                             "(a literal url is only for http:// on this machine)")

    def _secret_fits(self, whose: str, takes: Takes) -> None:
        if self.secret_env and self.secret_file:
            raise ValueError(f"{whose}: set one of secret_env and secret_file, not both")
        if takes.secret == "must" and not (self.secret_env or self.secret_file):
            raise ValueError(f"{whose}: name the environment variable or the file that holds its {takes.secret_is} with secret_env or secret_file")
        if takes.secret == "none" and (self.secret_env or self.secret_file):
            raise ValueError(f"{whose}: a {self.type} receiver has no secret besides its address; remove secret_env and secret_file")

    def address(self) -> str:
        """The URL to send to, from its environment variable, its file or this table, checked.

        Raises:
            ConfigError: it is not set, cannot be read, or is not an address this receiver may use. Never shows the address.
        """
        whose, takes = f"receiver {self.name!r}", TYPES[self.type]
        if self.url_env or self.url_file:
            found = read_secret(self.url_env, self.url_file, whose=whose, what="address")
        else:
            found = self.url or takes.default_address
        return found if self.type == "apprise" else checked_address(found, whose=whose, allow_http=self.allow_http)

    def secret(self) -> str | None:
        """The token, key or signing secret, or None when none is configured.

        Raises:
            ConfigError: it is named but not set or cannot be read.
        """
        if not (self.secret_env or self.secret_file):
            return None
        return read_secret(self.secret_env, self.secret_file, whose=f"receiver {self.name!r}", what=TYPES[self.type].secret_is)


class AlertsConfig(BaseModel):
    """[alerts]: who hears about incidents, and how often."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    console: bool = Field(True, description="print every alert to the daemon's standard error")
    dashboard_url: str = Field("http://127.0.0.1:8501", description="address of the dashboard; every alert links to its incident there; empty = no link")
    runbook_url: str = Field("", description="where docs/runbooks/ can be read, linked from every alert; empty = the command that prints the page")
    repeat_interval_seconds: float = Field(4 * 3600.0, gt=0, description="an incident nobody acknowledged is told again after this long, seconds")
    worse_factor: float = Field(2.0, gt=1, description="an incident is told again when its effect has grown by this factor")
    give_up_after_seconds: float = Field(24 * 3600.0, gt=0, description="a message that could not be delivered for this long becomes a dead letter, seconds")
    timeout_seconds: float = Field(5.0, gt=0, le=20, description="patience with a receiver: to connect, and between bytes of its answer, seconds")
    backoff_seconds: float = Field(1.0, gt=0, description="first pause after a failed delivery; doubles up to backoff_max_seconds, with full jitter, seconds")
    backoff_max_seconds: float = Field(300.0, gt=0, description="longest pause between two attempts, seconds")
    receivers: list[ReceiverConfig] = Field(default_factory=list, description="Where alerts go besides the console.")
    escalate_after_seconds: float = Field(1800.0, gt=0, description="an incident that fires unacknowledged for this long is told again, and to receivers with escalation = true, seconds")
    flap_window_seconds: float = Field(900.0, ge=0, description="a fault that returns within this long of its end reopens its incident, whose end is then told only once it has stayed away for this long, seconds")
    group_over: int = Field(10, ge=0, description="of one fault (on many replicas, say) at most this many incidents are told one by one, the others counted in the oldest one's messages; 0 = all are told")
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
