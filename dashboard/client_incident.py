"""One incident, asked of the daemon and changed there: its story, what to draw of it, acknowledge, silence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import pandas as pd

from dashboard.client import TIMEOUT_SECONDS, Disconnected, Snapshot, ask_json, ask_table
from dashboard.words import since

LEAST_SECONDS = 20.0  # of a timeline, on either side of the incident
BATCHES_AROUND = 12
POINTS = 200
MOST_EVENTS = 5000
PERIODS = ("before", "since")


class Refused(Exception):
    """The daemon answers, and says no; the text says why and is text from outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dossier:
    """Everything the incident's page shows. Times are UTC seconds."""

    incident: dict[str, Any]  # as GET /v1/incidents/{id} tells it
    silences: list[dict[str, Any]]  # of this fault: in force, to come and over
    shot: Snapshot  # the time around the incident
    evidence: pd.DataFrame  # a row a stream, at the alarm
    slices: dict[str, pd.DataFrame]  # slice key → its values' numbers, with `period` "before" or "since" the change
    runbook: dict[str, Any] | None  # name and text (Markdown of the product's own)
    now: float


def listing(client: httpx.Client) -> list[dict[str, Any]]:
    """The newest incidents, the newest first. Raises Disconnected."""
    return ask_json(client, "/v1/incidents")


def dossier(client: httpx.Client, named: str) -> Dossier:
    """Ask for everything about an incident.

    Raises:
        Refused: there is no such incident.
        Disconnected: the daemon does not answer, or not with what was asked.
    """
    incident = read(client, f"/v1/incidents/{quote(named, safe='')}")
    status = ask_json(client, "/v1/status")
    now = float(status.get("now") or 0.0)
    start, end = around(incident, now=now, batch_seconds=float(status.get("batch_seconds") or 0.0))
    series = ask_table(client, "/v1/series", max_points=POINTS, start=start, end=end)
    if len(series):  # a run younger than the margin
        start = max(start, float(series["closed_at"].iloc[0]) - 0.02 * (end - start))
    events = ask_json(client, "/v1/events", since=start, limit=MOST_EVENTS)
    shot = Snapshot(
        status=status, incidents=[], weights=[], evidence=pd.DataFrame(), start=start, end=end,
        events=[event for event in events if event["at"] <= end], series=series)
    opened, began = float(incident.get("opened_at") or now), since(incident) or now
    return Dossier(
        incident=incident, shot=shot, now=now, silences=_silences(client, incident), runbook=_runbook(client, incident),
        evidence=ask_table(client, "/v1/evidence", latest="true", start=start, end=opened + 1e-3),
        slices={key: _slices(client, key, start, began, min(end, float(incident.get("resolved_at") or end))) for key in ("replica", "position", "version")})


def around(incident: dict[str, Any], *, now: float, batch_seconds: float) -> tuple[float, float]:
    """The stretch of time to draw: the incident, with some of what was before and after."""
    began, over = since(incident) or now, float(incident.get("resolved_at") or now)
    margin = max(LEAST_SECONDS, BATCHES_AROUND * batch_seconds, 0.25 * (over - began))
    return began - margin, min(now, over + margin)


def acknowledge(client: httpx.Client, incident: str, *, author: str, reason: str) -> dict[str, Any]:
    """Take an incident. Raises Refused or Disconnected."""
    return _write(client, f"/v1/incidents/{quote(incident, safe='')}/ack", {"author": author, "reason": reason})


def silence(client: httpx.Client, incident: str, *, length: str, author: str, reason: str) -> dict[str, Any]:
    """Have quiet about the incident's fault for `length` ("2h"). Raises Refused or Disconnected."""
    return _write(client, "/v1/silences", {"incident": incident, "for": length, "author": author, "reason": reason})


def runbook_name(incident: dict[str, Any]) -> str | None:
    """The page that says what to do: of the verdict, else of the hard fact."""
    verdict = (incident.get("diagnosis") or {}).get("verdict")
    if verdict and verdict != "healthy":
        return str(verdict)
    fault = str(incident.get("fault") or "")
    return fault if fault and fault != "mismatch" else None


def _runbook(client: httpx.Client, incident: dict[str, Any]) -> dict[str, Any] | None:
    name = runbook_name(incident)
    try:
        return None if name is None else read(client, f"/v1/runbooks/{quote(name, safe='')}")
    except Refused:
        return None


def _silences(client: httpx.Client, incident: dict[str, Any]) -> list[dict[str, Any]]:
    in_force = {one["id"] for one in incident.get("silences") or ()}
    found = ask_json(client, "/v1/silences", ended="true")
    return [one for one in found if one["id"] in in_force or (one.get("match") or {}).get("fingerprint") == incident.get("fingerprint")]


def _slices(client: httpx.Client, key: str, start: float, began: float, end: float) -> pd.DataFrame:
    parts = [ask_table(client, "/v1/breakdown", by=key, start=low, end=high).assign(period=period)
             for period, low, high in zip(PERIODS, (start, began), (began, end), strict=True)]
    return pd.concat([part for part in parts if len(part)] or parts[:1])


def read(client: httpx.Client, path: str) -> dict[str, Any]:
    """An object of the daemon. Raises Refused or Disconnected."""
    return _said(client, lambda: client.get(path))


def _write(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return _said(client, lambda: client.post(path, json=body))


def _said(client: httpx.Client, ask: Any) -> dict[str, Any]:
    try:
        answer = ask()
        found = answer.json()
    except httpx.TimeoutException:
        raise Disconnected(f"the daemon at {client.base_url} took longer than {TIMEOUT_SECONDS:g} s to answer") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Disconnected(f"the daemon at {client.base_url} cannot be reached ({type(error).__name__})") from None
    except ValueError:
        raise Disconnected(f"{client.base_url} answers, but not like Klaxon's daemon (no JSON)", "odd") from None
    if not isinstance(found, dict):
        raise Disconnected(f"{client.base_url} answers, but not like Klaxon's daemon", "odd")
    if answer.status_code >= 500:
        raise Disconnected(f"the daemon at {client.base_url} answers {answer.status_code}", "error")
    if answer.status_code >= 400:
        raise Refused(str(found.get("error") or f"the daemon answers {answer.status_code}"))
    return found
