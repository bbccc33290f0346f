"""The dashboard's only source: the daemon's read API, over HTTP, JSON for state and Arrow for series."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import httpx
import pandas as pd
import pyarrow as pa

from dashboard import runs, trainer_names
from dashboard.trouble import Trouble, TroubleKind

TIMEOUT_SECONDS = 5.0

TRAINER_METRICS = ("clip_rate", "reward", "entropy", "kl")
"""The trainer's metrics that stand beside Klaxon's own numbers, by their standard names."""


class Disconnected(Exception):
    """The daemon does not answer, or not with what was asked; the text is fit for the page, and `trouble` says of which kind it is."""

    def __init__(self, text: str, kind: TroubleKind = "away") -> None:
        super().__init__(text)
        self.trouble = Trouble(text, kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything one refresh of the page shows."""

    status: dict[str, Any]
    incidents: list[dict[str, Any]]
    events: list[dict[str, Any]]
    weights: list[dict[str, Any]]
    series: pd.DataFrame
    evidence: pd.DataFrame  # newest row of each stream
    metrics: dict[str, pd.DataFrame] = field(default_factory=dict)  # standard name → rows of one metric
    silences: list[dict[str, Any]] = field(default_factory=list)  # in force and to come
    band: dict[str, Any] = field(default_factory=dict)  # of the reference runs, as GET /v1/reference-band tells it
    start: float = 0.0  # UTC seconds of the window's left edge
    end: float = 0.0


def api_url() -> str:
    """Where the daemon of the run in the address is asked, without a trailing slash."""
    return runs.here().url


def snapshot(client: httpx.Client, *, window_seconds: float | None, max_points: int = 240) -> Snapshot:
    """Ask for everything the page shows, the last `window_seconds` of it (None = all).

    Raises:
        Disconnected: with what is wrong, in words.
    """
    status = ask_json(client, "/v1/status")
    now = float(status.get("now") or 0.0)
    start = None if window_seconds is None else now - window_seconds
    span = {} if start is None else {"start": start}
    series = ask_table(client, "/v1/series", max_points=max_points, **span)
    left = _left_edge(series, start, now)
    return Snapshot(
        status=status, incidents=ask_json(client, "/v1/incidents"), series=series,
        events=ask_json(client, "/v1/events", limit=400, **({} if start is None else {"since": start})),
        weights=ask_json(client, "/v1/weights", limit=400), evidence=ask_table(client, "/v1/evidence", latest="true"),
        metrics=_trainer_metrics(client, max_points=max_points, **span),
        silences=_optional(client, "/v1/silences", []), band=_optional(client, "/v1/reference-band", {}), start=left, end=now)


def signals(client: httpx.Client) -> list[dict[str, str]]:
    """name, formula, direction, level and unit of every signal the daemon can draw. Raises: Disconnected."""
    return ask_json(client, "/v1/signals")


def signal_series(client: httpx.Client, name: str, *, start: float | None, max_points: int = 240) -> pd.DataFrame:
    """closed_at, NAME, NAME:min, NAME:max over the window. Raises: Disconnected."""
    return ask_table(client, "/v1/series", signal=name, max_points=max_points, **({} if start is None else {"start": start}))


def _optional(client: httpx.Client, path: str, nothing: Any) -> Any:
    """What a route says that not every read API has: one without alerts has no silences."""
    try:
        return ask_json(client, path)
    except Disconnected:
        return nothing


def _left_edge(series: pd.DataFrame, start: float | None, now: float) -> float:
    """Where the charts begin: the window's start, or the first batch of a run that is younger than the window."""
    first = float(series["closed_at"].iloc[0]) if len(series) else now - 60
    young = first - 0.02 * (now - first)
    return young if start is None else max(start, young)


def _trainer_metrics(client: httpx.Client, **params: Any) -> dict[str, pd.DataFrame]:
    found = ask_table(client, "/v1/metrics", name=[name for what in TRAINER_METRICS for name in trainer_names.names(what)], **params)
    chosen = {what: trainer_names.first(what, found["name"]) for what in TRAINER_METRICS}
    return {what: found[found["name"] == name].sort_values("at") for what, name in chosen.items() if name}


def ask_json(client: httpx.Client, path: str, **params: Any) -> Any:
    """What a JSON route of the daemon says. Raises Disconnected."""
    answer = _get(client, path, params)
    try:
        return answer.json()
    except ValueError:
        raise Disconnected(f"{client.base_url} answers, but not like Klaxon's daemon (no JSON at {path})", "odd") from None


def ask_table(client: httpx.Client, path: str, **params: Any) -> pd.DataFrame:
    """What an Arrow route of the daemon says. Raises Disconnected."""
    answer = _get(client, path, params)
    try:
        return pa.ipc.open_stream(io.BytesIO(answer.content)).read_pandas()
    except pa.ArrowInvalid:
        raise Disconnected(f"{client.base_url} answers, but not like Klaxon's daemon (no Arrow at {path})", "odd") from None


def _get(client: httpx.Client, path: str, params: dict[str, Any]) -> httpx.Response:
    try:
        answer = client.get(path, params=params)
    except httpx.TimeoutException:
        raise Disconnected(f"the daemon at {client.base_url} took longer than {TIMEOUT_SECONDS:g} s to answer") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Disconnected(f"the daemon at {client.base_url} cannot be reached ({type(error).__name__})") from None
    if answer.status_code in (401, 403):
        raise Disconnected(f"the daemon at {client.base_url} wants its token ({answer.status_code} to {path})", "refused")
    if answer.status_code != 200:
        raise Disconnected(f"the daemon at {client.base_url} answers {answer.status_code} to {path}", "error" if answer.status_code >= 500 else "odd")
    return answer
