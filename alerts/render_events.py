"""Message → the bodies other systems define: CloudEvents 1.0, Alertmanager's webhook (version 4) and API (v2), PagerDuty Events v2. Pure."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

from alerts.message import Message
from alerts.render import cut, data_of, rfc3339

ENDS_AFTER_SECONDS = 7 * 86400.0  # an open alert's endsAt in Alertmanager, pushed on by every message
NEVER = "0001-01-01T00:00:00Z"  # what Alertmanager writes for "has not ended"
PAGERDUTY_SEVERITIES = {"page": "critical", "warn": "warning"}


def as_cloudevent(message: Message) -> dict[str, Any]:
    """CloudEvents 1.0 in structured mode (application/cloudevents+json); `data` is that of Klaxon's own webhook."""
    return {
        "specversion": "1.0", "id": message.id, "source": f"/klaxon/runs/{quote(message.run, safe='')}",
        "type": f"klaxon.incident.{message.state}", "subject": message.incident_id, "time": rfc3339(message.at),
        "datacontenttype": "application/json", "data": data_of(message),
    }


def labels(message: Message) -> dict[str, str]:
    """The identity of an alert in Alertmanager: the fault, the run, the severity, the place, and the cause once it is sure.

    Empty values are left out, as Alertmanager does; a slice's key that is no label name, or is taken, is made one.
    """
    found = {"alertname": alertname(message), "run": message.run, "severity": message.severity}
    if message.facts.get("confident") and message.facts.get("cause"):
        found["cause"] = str(message.facts["cause"])
    for key, value in dict(message.facts.get("slice") or {}).items():
        name = re.sub(r"[^a-zA-Z0-9_]", "_", str(key))
        if name in found or name == "cause" or not re.match(r"(?!__)[a-zA-Z_]", name):
            name = f"slice_{name.lstrip('_')}"
        found[name] = str(value)
    return {name: value for name, value in found.items() if value}


def alertname(message: Message) -> str:
    """The fault in Prometheus's spelling.

    >>> from alerts.message import Message
    >>> alertname(Message(incident_id="inc_1", fingerprint="r1/engine_unreachable/replica=a", run="r1", state="firing", severity="page",
    ...                   reason="first", at=0.0, title="", headline="", sections=(), because=""))
    'KlaxonEngineUnreachable'
    """
    fault = message.fingerprint.partition("/")[2].partition("/")[0] or "incident"
    return "Klaxon" + "".join(part.capitalize() for part in re.split(r"[^a-zA-Z0-9]+", fault))


def annotations(message: Message) -> dict[str, str]:
    """What Alertmanager carries along without looking: the message in words."""
    said = {section.name.lower().replace(" ", "_"): section.text for section in message.sections}
    found = {"summary": message.title, "description": message.headline, **said, "because": message.because,
             "incident": message.incident_id, "state": message.state}
    return {name: value for name, value in found.items() if value}


def fingerprint(found: dict[str, str]) -> str:
    """Alertmanager's fingerprint of a label set: FNV-1a, 64 bits, over sorted names and values, each followed by byte 0xff
    (prometheus/common model/signature.go)."""
    digest = 0xCBF29CE484222325
    for name in sorted(found):
        for byte in b"".join((name.encode(), b"\xff", found[name].encode(), b"\xff")):
            digest = (digest ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{digest:016x}"


def as_alertmanager_webhook(message: Message, *, receiver: str) -> dict[str, Any]:
    """The body Alertmanager 0.2x itself posts to a webhook, with one alert in it."""
    found, notes = labels(message), annotations(message)
    status, (starts_at, ends_at) = _status(message), _times(message)
    group = {name: found[name] for name in ("alertname", "run")}
    inside = ", ".join(f'{name}="{_quoted(value)}"' for name, value in group.items())
    alert = {"status": status, "labels": found, "annotations": notes, "startsAt": rfc3339(starts_at),
             "endsAt": NEVER if ends_at is None else rfc3339(ends_at), "generatorURL": message.dashboard_url, "fingerprint": fingerprint(found)}
    return {"receiver": receiver, "status": status, "alerts": [alert], "groupLabels": group, "commonLabels": found, "commonAnnotations": notes,
            "externalURL": message.dashboard_url, "version": "4", "groupKey": f"{{}}:{{{inside}}}", "truncatedAlerts": 0}


def as_alertmanager_alert(message: Message, *, now: float) -> dict[str, Any]:
    """One element of POST /api/v2/alerts. An open alert ends ENDS_AFTER_SECONDS from now unless another message comes."""
    starts_at, ends_at = _times(message)
    found = {"labels": labels(message), "annotations": annotations(message), "startsAt": rfc3339(starts_at),
             "endsAt": rfc3339(ends_at if ends_at is not None else max(now, starts_at) + ENDS_AFTER_SECONDS)}
    return {**found, "generatorURL": message.dashboard_url} if message.dashboard_url else found


def as_pagerduty(message: Message, *, action: str) -> dict[str, Any]:
    """The body of POST /v2/enqueue without its routing_key. `action`: trigger, acknowledge or resolve."""
    key = {"event_action": action, "dedup_key": message.incident_id}
    if action != "trigger":
        return key
    found = labels(message)
    details = {"headline": message.headline, **{section.name: section.text for section in message.sections},
               "Because": message.because, "Incident": message.incident_id, "State": message.state}
    payload = {"summary": cut(f"{message.title} · run {message.run}: {message.headline}", 1024),
               "source": found.get("replica") or message.run, "severity": PAGERDUTY_SEVERITIES.get(message.severity, "error"),
               "timestamp": rfc3339(_times(message)[0]), "component": "rollout engine", "group": message.run,
               "class": found.get("cause") or found["alertname"], "custom_details": details}
    links = [{"href": message.dashboard_url, "text": "Klaxon's dashboard"}] if message.dashboard_url else []
    event = {**key, "payload": payload, "client": "Klaxon", "links": links}
    return {**event, "client_url": message.dashboard_url} if message.dashboard_url else event


def _status(message: Message) -> str:
    return "resolved" if message.state == "resolved" else "firing"


def _times(message: Message) -> tuple[float, float | None]:
    """Start and, once it is over, end; UTC seconds."""
    starts_at = float(message.facts.get("opened_at") or message.at)
    if message.state != "resolved":
        return starts_at, None
    return starts_at, max(float(message.facts.get("resolved_at") or message.at), starts_at)


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
