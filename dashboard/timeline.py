"""The mismatch around one incident, with the change-time interval shaded and everything that happened to run and incident marked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from dashboard import charts
from dashboard.client_incident import Dossier


def timeline(found: Dossier) -> charts.Chart:
    """The chart at the head of the incident's page."""
    floor = (found.incident.get("diagnosis") or {}).get("floor_nats") or found.shot.status.get("floor_nats")
    drawn = charts.mismatch(replace(found.shot, status={**found.shot.status, "floor_nats": floor}, events=[*found.shot.events, *deeds(found)]))
    span = found.incident.get("since")
    rows = drawn.rows
    if isinstance(span, list) and len(span) == 2:
        shade = {"row": "span", "at": 1000 * span[0], "until": 1000 * max(span[1], span[0] + (found.shot.end - found.shot.start) / 300), "text": "the fault began in here"}
        rows = pd.concat([rows, pd.DataFrame([shade], columns=list(charts.COLUMNS)).astype(rows.dtypes.to_dict())], ignore_index=True)
    return replace(drawn, name="timeline", title="What happened", rows=rows, look=replace(drawn.look, span=True),
                   help="The mismatch around the incident. Shaded: when the fault began, as exactly as the evidence tells. Marks: alarm, restarts, "
                        "config changes, silences; at the foot: weight updates.")


def deeds(found: Dossier) -> list[dict[str, Any]]:
    """What people did about it, as events."""
    taken = [{"at": step["at"], "kind": "acknowledged", "text": str(step.get("why") or "acknowledged")}
             for step in found.incident.get("history") or () if step.get("to_state") == "acknowledged"]
    quiet = [{"at": one["starts_at"], "kind": "silence", "text": f"silenced by {one.get('author')}: {one.get('reason')}"}
             for one in found.silences if found.shot.start <= (one.get("starts_at") or 0) <= found.shot.end]
    return taken + quiet
