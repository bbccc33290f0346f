"""Every kind of receiver beside its service, its config and the messages of one incident's life; for the contract suite and the docs page."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from alerts import incidents
from alerts.config import ReceiverConfig
from alerts.message import Message, compose
from alerts.notifiers import Notifier, build
from alerts_helpers import BUDGET, NOW, SECRET, diagnosis, mismatch
from receiver_services import AlertmanagerApi, PagerDuty, Service, SignedWebhook, SlackApi, SlackWebhook, WandbApi, served

CANARY = "c4n4ryc4n4ryc4n4ry"
ADDRESS, KEY = "KX_KIND_ADDRESS", "KX_KIND_SECRET"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One type of receiver, in one of its formats."""

    type: str
    service: type[Service]
    path: str = ""  # of the service's address
    secret: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    own_http: bool = False  # its library does the HTTP, so Klaxon's guard does not cover it

    def config(self, **changes: Any) -> ReceiverConfig:
        named = {"secret_env": KEY} if self.secret else {}
        return ReceiverConfig(**{"type": self.type, "name": "oncall", "url_env": ADDRESS, **named, **self.keys, **changes})

    def plant(self, environ: pytest.MonkeyPatch, url: str) -> None:
        """Put the address and the secret into the environment; and no proxy."""
        environ.setenv(ADDRESS, ("json" + url.removeprefix("http") if self.type == "apprise" else url) + self.path)
        environ.setenv(KEY, self.secret)
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "WANDB_MODE"):
            environ.delenv(name, raising=False)


KINDS = {
    "slack": Kind(type="slack", service=SlackApi, path="/api/", secret=f"xoxb-{CANARY}", keys={"channel": "C0ONCALL"}),
    "slack_webhook": Kind(type="slack_webhook", service=SlackWebhook, path=f"/services/T0/B0/{CANARY}"),
    "webhook": Kind(type="webhook", service=SignedWebhook, path=f"/hook/{CANARY}", secret=SECRET),
    "webhook_cloudevents": Kind(type="webhook", service=SignedWebhook, path=f"/hook/{CANARY}", secret=SECRET, keys={"format": "cloudevents"}),
    "webhook_alertmanager": Kind(type="webhook", service=SignedWebhook, path=f"/hook/{CANARY}", secret=SECRET, keys={"format": "alertmanager"}),
    "pagerduty": Kind(type="pagerduty", service=PagerDuty, path="/v2/enqueue", secret=f"{CANARY}{CANARY}"[:32]),
    "alertmanager": Kind(type="alertmanager", service=AlertmanagerApi, secret=f"token-{CANARY}"),
    "wandb": Kind(type="wandb", service=WandbApi, secret=f"{CANARY}{CANARY}0123", keys={"path": "team/grpo", "group": "grpo-7"}),
    "apprise": Kind(type="apprise", service=Service, path=f"/{CANARY}", own_http=True),
}
MISSING = [] if importlib.util.find_spec("apprise") else ["apprise"]
NO_APPRISE = pytest.mark.skipif(bool(MISSING), reason="the apprise library is not installed (extra `apprise`)")
QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # apprise's own imports
EVERY = [pytest.param(name, marks=(NO_APPRISE, QUIET) if KINDS[name].own_http else (), id=name) for name in KINDS]
GUARDED = [name for name, kind in KINDS.items() if not kind.own_http]


@contextmanager
def running(name: str, environ: pytest.MonkeyPatch, *, patience: float = 20.0, **changes: Any) -> Iterator[tuple[Notifier, Any]]:
    """The notifier of a kind and the service it speaks to; `patience` in seconds."""
    kind = KINDS[name]
    with served(kind.service(secret=kind.secret)) as service:
        kind.plant(environ, service.url)
        yield build(kind.config(**changes), timeout_seconds=patience), service


def life(*, began: float = NOW, **drift: Any) -> dict[str, Message]:
    """The messages of one incident opened at `began` (UTC seconds): first, diagnosed, acknowledged, worse, resolved; with stable ids."""
    first = incidents.opened(mismatch(**drift), run="r1", id="inc_5d1c0ffee123", now=began, closed_at=began, batch_seconds=120.0)
    known = incidents.diagnosed(first, diagnosis(), now=began + 42)
    taken = incidents.acknowledged(known, now=began + 300)
    over = incidents.resolved(taken, now=began + 7500)
    told = {"first": (0, first, "this is the first notice of this incident"), "diagnosed": (42, known, "the cause is now known"),
            "acknowledged": (300, taken, "somebody has taken it"), "worse": (900, taken, "it spread: replica b"),
            "resolved": (7500, over, "the incident is over")}
    return {reason: replace(compose(case, reason=reason, detail=detail, budget_text=BUDGET, dashboard_url="http://127.0.0.1:8501", now=began + after),
                            id=f"msg_{number}")
            for number, (reason, (after, case, detail)) in enumerate(told.items(), 1)}
