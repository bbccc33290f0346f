"""Everything a post-mortem says, asked of the read API once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pandas as pd

from dashboard.client import Snapshot, ask_json, ask_table, signals, snapshot
from dashboard.client_incident import Dossier, dossier, listing
from dashboard.training_charts import NAMES

POINTS = 240
MOST_INCIDENTS = 12  # told in full; the others a line each
BREAKDOWNS = ("replica", "position", "version,lag", "cached", "probability", "env", "turn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """A run as the read API tells it; times are UTC seconds."""

    shot: Snapshot
    incidents: list[dict[str, Any]]  # newest first
    dossiers: list[Dossier]
    audit: Mapping[str, Any]
    band: Mapping[str, Any]
    comparisons: list[dict[str, Any]]
    metrics: pd.DataFrame  # of the trainer
    throughput: pd.DataFrame
    coverage: pd.DataFrame
    breakdowns: dict[str, pd.DataFrame]
    signals: list[dict[str, str]]
    findings: list[dict[str, Any]] = field(default_factory=list)  # of a file

    @property
    def status(self) -> Mapping[str, Any]:
        """The daemon's."""
        return self.shot.status

    @property
    def now(self) -> float:
        """The daemon's clock, or when it was last heard."""
        return self.shot.end


def gather(client: httpx.Client, *, incident: str | None = None, progress: Callable[[str], None] = lambda said: None) -> Gathered:
    """Ask for the whole run, and for one incident in full or for the newest MOST_INCIDENTS.

    Raises:
        Refused: there is no such incident; the text names those there are.
        Disconnected: the daemon does not answer, or not with what was asked.
    """
    progress("asking for the whole run")
    shot = snapshot(client, window_seconds=None, max_points=POINTS)
    told = [incident] if incident else [str(one["id"]) for one in listing(client)[:MOST_INCIDENTS]]
    dossiers = []
    for number, named in enumerate(told, 1):
        progress(f"asking for incident {number} of {len(told)}")
        dossiers.append(dossier(client, named))
    progress("asking for slices, the trainer's metrics and the engine's settings")
    breakdowns = {by: ask_table(client, "/v1/breakdown", by=by, points=60 if by in ("replica", "position") else 0, most=24 if by in ("env", "turn") else 64)
                  for by in BREAKDOWNS}
    return Gathered(
        shot=shot, incidents=shot.incidents, dossiers=dossiers, audit=ask_json(client, "/v1/audit"), band=shot.band, comparisons=ask_json(client, "/v1/comparisons"),
        metrics=ask_table(client, "/v1/metrics", name=list(NAMES), max_points=POINTS), throughput=ask_table(client, "/v1/throughput", points=60),
        coverage=ask_table(client, "/v1/coverage"), breakdowns=breakdowns, signals=signals(client), findings=list(shot.status.get("findings") or ()))

