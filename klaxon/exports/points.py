"""What is exported of a batch: the same numbers for W&B and TensorBoard, under the same names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from collector.store import Store

NAMES: dict[str, str] = {
    "klaxon/k3_nats": "mean e^d − 1 − d of the tokens compared in the batch: KL(p‖q), nats",
    "klaxon/mean_abs_d_nats": "mean |d|, nats",
    "klaxon/mean_d_nats": "mean d = log q − log p, nats",
    "klaxon/abs_d_p50_nats": "median of |d|, nats",
    "klaxon/abs_d_p99_nats": "99th percentile of |d|, nats",
    "klaxon/clip_rate": "share of the tokens whose ratio lies outside the clip range, 0 to 1",
    "klaxon/ess": "effective sample size of the ratios as a share of the tokens, 0 to 1",
    "klaxon/compared_tokens": "tokens compared in the batch",
    "klaxon/coverage": "share of the batch's sampled tokens that was compared, 0 to 1",
    "klaxon/ln_m": "evidence of a mismatch: natural log of M",
    "klaxon/ln_a": "alarm threshold on ln_m",
    "klaxon/floor_nats": "mean |d| of this run while nothing fired (median of batches), nats",
    "klaxon/weight_lag_versions": "versions the engine is behind the trainer",
    "klaxon/incidents_open": "incidents that fire or are acknowledged",
    "klaxon/batch": "number of the batch",
    "klaxon/trainer_step": "newest step the trainer had logged when the batch closed",
    "klaxon/closed_at_seconds": "end of the batch, UTC seconds",
}
"""Name → meaning, unit included. A number that is unknown is left out of its batch."""

_COLUMNS = {"k3": "klaxon/k3_nats", "mean_abs_d": "klaxon/mean_abs_d_nats", "mean_d": "klaxon/mean_d_nats", "p50_abs_d": "klaxon/abs_d_p50_nats",
            "p99_abs_d": "klaxon/abs_d_p99_nats", "clip_rate": "klaxon/clip_rate", "ess": "klaxon/ess", "n_tokens": "klaxon/compared_tokens"}
_SQL = f"""
    SELECT b.t, b.closed_at, b.ln_m, b.ln_a, TRY_CAST(b.counts ->> '$.tokens_seen' AS DOUBLE), TRY_CAST(b.counts ->> '$.tokens_scored' AS DOUBLE),
           (SELECT arg_max(step, "at") FROM metrics WHERE "at" <= b.closed_at), {', '.join(f's.{name}' for name in _COLUMNS)}
    FROM batches b LEFT JOIN series s USING (t) WHERE b.t > ? ORDER BY b.t LIMIT ?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One batch."""

    t: int
    at: float  # UTC seconds, its end
    step: int | None  # newest trainer step then; None = unknown
    values: dict[str, float] = field(default_factory=dict)  # NAMES → finite numbers

    @property
    def x(self) -> int:
        """The x-axis: the trainer's step where one is known, else the batch."""
        return self.t if self.step is None else self.step


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """An incident that began or ended, for trackers that know alerts."""

    incident: str
    state: Literal["firing", "resolved"]
    title: str
    text: str
    level: Literal["ERROR", "WARN", "INFO"]


def points(store: Store, *, after: int, most: int) -> list[Point]:
    """The stored batches after number `after`, oldest first, `most` at most."""
    return [_point(row) for row in store.query(_SQL, [after, most])]


def with_live(point: Point, status: Mapping[str, Any], *, incidents_open: int) -> Point:
    """The newest batch with what only the running daemon knows."""
    found = {"klaxon/floor_nats": status.get("floor_nats"), "klaxon/weight_lag_versions": (status.get("weights") or {}).get("lag"),
             "klaxon/incidents_open": incidents_open}
    return Point(t=point.t, at=point.at, step=point.step, values={**point.values, **_finite(found)})


def note(incident: Mapping[str, Any], *, dashboard_url: str) -> Note:
    """What a tracker is told about an incident: its title, cause and address; nothing of the rollouts."""
    over = incident["state"] == "resolved"
    diagnosis = incident.get("diagnosis") or {}
    lines = [f"{incident['title']} (run {incident.get('run', '')}, {incident['state']})"]
    if diagnosis.get("verdict"):
        lines.append(f"Cause: {diagnosis['verdict']}{'' if diagnosis.get('confident') else ' (not sure yet)'}")
    if dashboard_url:
        lines.append(f"{dashboard_url.rstrip('/')}/incident?incident={incident['id']}")
    lines.append(f"klaxon explain {incident['id']}")
    level = "INFO" if over else "ERROR" if incident.get("severity") == "page" else "WARN"
    return Note(incident=incident["id"], state="resolved" if over else "firing", level=level,
                title=f"Klaxon: {'resolved: ' if over else ''}{incident['title']}"[:64], text="\n".join(lines))


def _point(row: tuple[Any, ...]) -> Point:
    t, closed_at, ln_m, ln_a, seen, scored, step, *signals = row
    values = {"klaxon/batch": t, "klaxon/closed_at_seconds": closed_at, "klaxon/trainer_step": step, "klaxon/ln_m": ln_m, "klaxon/ln_a": ln_a,
              **dict(zip(_COLUMNS.values(), signals, strict=True)), "klaxon/coverage": (scored or 0.0) / seen if seen else None}
    return Point(t=t, at=closed_at, step=step, values=_finite(values))


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, (int, float)) and math.isfinite(value)}
