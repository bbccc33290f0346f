"""What one scrape sees: the status, the open incidents, the newest compared batch and the newest evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from collector.store import Store

SIGNALS = ("mean_abs_d", "mean_d", "k3", "p50_abs_d", "p99_abs_d", "clip_rate", "ess", "n_tokens", "closed_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Everything a metric is read from."""

    run: str
    status: Mapping[str, Any]
    incidents: list[dict[str, Any]] = field(default_factory=list)  # firing and acknowledged
    newest: Mapping[str, Any] = field(default_factory=dict)  # SIGNALS of the newest batch in which something was compared
    streams: Mapping[str, float] = field(default_factory=dict)  # stream → ln(weight · SR), its share of M
    faults: int = 0

    def get(self, *path: str) -> Any:
        """A value deep in the status; None where it is unknown."""
        value: Any = self.status
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def picture_of(store: Store, live: Any, *, faults: int) -> Picture:
    """One scrape's picture."""
    status = live.status()
    rows = store.query(f"SELECT {', '.join(SIGNALS)} FROM series WHERE n_tokens > 0 ORDER BY t DESC LIMIT 1")
    streams = store.query("SELECT stream, weight, log_sr FROM evidence WHERE t = (SELECT max(t) FROM batches)")
    return Picture(
        run=str(status.get("run")), status=status, incidents=[item for item in live.incidents() if item.get("state") != "resolved"],
        newest=dict(zip(SIGNALS, rows[0], strict=True)) if rows else {}, faults=faults,
        streams={stream: math.log(weight) + log_sr for stream, weight, log_sr in streams if weight and log_sr is not None})
