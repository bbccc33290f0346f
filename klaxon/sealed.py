"""A run whose daemon is gone, over the same read API: its files are copied and left as they are.

The daemon keeps its last status beside the store (status.json). A run without one still shows its series, incidents and events.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse

from alerts.config import AlertsConfig
from alerts.lock import StateLock
from alerts.service import Alerts
from collector.errors import Unavailable
from collector.store import Store
from klaxon.alert_routes import add_reads
from klaxon.api import build_api
from klaxon.comparisons import comparisons
from klaxon.verdict import Seen, Verdict, judge

STATUS, STORE, CONTROL = "status.json", "klaxon.duckdb", "control.sqlite"
FILES = (STATUS, STORE, f"{STORE}.wal", CONTROL, f"{CONTROL}-wal")
REPORTS = "compare*.json"


def keep_status(folder: Path, status: Mapping[str, Any]) -> None:
    """Write the daemon's status beside its store, whole or not at all. Raises Unavailable: the file cannot be written."""
    path = folder / STATUS
    fresh = path.with_suffix(".json.new")
    try:
        fresh.write_text(json.dumps(status, default=str), encoding="utf-8")
        os.replace(fresh, path)
    except OSError as error:
        raise Unavailable(f"{path}: the status is not kept ({error.strerror})") from None


def copied(folder: Path, to: Path) -> int:
    """Copy a stopped run's files; returns their bytes.

    Raises:
        Unavailable: there is no store, a daemon still writes it, or it cannot be copied.
    """
    if not (folder / STORE).is_file():
        raise Unavailable(f"{folder}: holds no {STORE}; name a run's folder ([run] dir in its config.toml)")
    lock = StateLock(folder / CONTROL) if os.access(folder, os.W_OK) else None
    try:
        for name in (*FILES, *(path.name for path in folder.glob(REPORTS))):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, to / name)
    except OSError as error:
        raise Unavailable(f"{folder}: cannot be copied to {to} ({error.strerror})") from None
    finally:
        if lock is not None:
            lock.release()
    return sum(path.stat().st_size for path in to.iterdir())


class Sealed:
    """What the API asks of a live daemon, from its last status and its incidents."""

    def __init__(self, folder: Path, store: Store, alerts: Alerts) -> None:
        self._alerts, self._folder = alerts, folder
        try:
            self._status = json.loads((folder / STATUS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._status = {}
        last = store.query("SELECT max(t), max(closed_at), min(opened_at) FROM batches")[0]
        self.ended_at = float(self._status.get("now") or last[1] or 0.0)
        self._status = {**_bare(last, self.ended_at), **self._status, "sealed": True, "verdict": "blind",
                        "verdict_text": "These are the files of a run that Klaxon no longer watches: as they were at the last batch."}

    def status(self) -> dict[str, Any]:
        """The daemon's last, marked `sealed`."""
        return self._status

    def incidents(self, limit: int = 50) -> list[dict[str, Any]]:
        """Newest first."""
        return self._alerts.incidents(limit)

    def storage(self) -> dict[str, Any]:
        """What the daemon last said of its store, [store] tokens among it."""
        return self._status.get("storage") or {}

    def audit(self) -> dict[str, Any]:
        """The engine's settings as the daemon last judged them."""
        return self._status.get("audit") or {"checks": [], "history": [], "preflights": []}

    def reference_band(self) -> dict[str, Any]:
        """The band the daemon last held the trainer's metrics against."""
        return self._status.get("reference_band") or {}

    def comparisons(self) -> list[dict[str, Any]]:
        """What lies beside the store."""
        return comparisons(self._folder)

    def judged(self, run: str, now: float) -> Verdict:
        """No trainer may trust a daemon that is gone."""
        seen = Seen(run=self._status["run"], last_rollout_at=None, last_compared_at=None, last_batch_at=None,
                    batch_seconds=self._status["batch_seconds"], compared_version=None)
        return judge(seen, self._alerts.open_cases(), run=run, now=self.ended_at)


def sealed_api(folder: Path, store: Store, alerts: Alerts) -> FastAPI:
    """The read API over copied files; there is nothing to write to."""
    live = Sealed(folder, store, alerts)
    app = build_api(store, live)
    reads = APIRouter()
    add_reads(reads, alerts, live.judged, lambda: live.ended_at)
    app.include_router(reads)

    @app.post("/v1/{path:path}")
    @app.delete("/v1/{path:path}")
    def refused(path: str) -> JSONResponse:
        return JSONResponse({"error": "these are the files of a stopped run: nothing can be changed here"}, status_code=403)

    return app


def open_alerts(folder: Path, run: str) -> Alerts:
    """The copied incidents; nothing is sent."""
    return Alerts(AlertsConfig(), folder / CONTROL, run=run, budget_text="", batch_seconds=60.0)


def _bare(last: tuple[Any, ...], ended_at: float) -> dict[str, Any]:
    """A status of what the store alone knows."""
    return {"run": "unknown", "tier": 0, "now": ended_at, "started_at": last[2] or 0.0, "heartbeat_at": ended_at, "budget": "", "ln_m": None, "ln_a": None,
            "learning": False, "honesty": {}, "batch_seconds": 60.0, "t": last[0], "taps": [], "engine": {}, "scorer": {"state": "off"}, "weights": {},
            "counts": {}, "populations": {}, "signals": {}, "staleness": {}, "floor_nats": None, "blind_spots": [], "refusals": [], "storage": {},
            "notices": [], "trainer": {}, "alerts_delivered": 0, "receivers": []}
