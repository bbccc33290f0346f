"""GET /v1/health: what the daemon knows of its own parts and of those that feed it, for `klaxon doctor`. Reads only; times are UTC seconds."""

from __future__ import annotations

import os
import socket
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Response

from klaxon.api import as_json
from klaxon.checks.places import cannot_read
from klaxon.shadow import why_no_shadow

if TYPE_CHECKING:
    from klaxon.app import Daemon


def health_router(daemon: Daemon) -> APIRouter:
    """The route over a running daemon."""
    router = APIRouter()

    @router.get("/v1/health")
    def health() -> Response:
        return as_json(health_of(daemon, time.time()))

    return router


def health_of(daemon: Daemon, now: float) -> dict[str, Any]:
    """One picture of every link of the chain, fit for JSON."""
    config, worker, watch = daemon.config, daemon.worker, daemon.watch
    return {
        "now": now, "started_at": daemon.started_at, "pid": os.getpid(), "host": socket.gethostname(), "klaxon": _klaxon(),
        "dir": str(Path(config.run.dir).absolute()), "socket": str(daemon.socket.absolute()), "token_asked": daemon.token is not None,
        "startup_seconds": config.detectors.facts.startup_seconds,
        "sources": {"tap": config.sources.tap, "files": [_file(source.path) for source in config.sources.tailed],
                    "trainer_files": [_file(path) for path in config.sources.trainer_files]},
        "unauthorised": daemon.ingest.unauthorised, "last_rollout_at": worker.last_rollout_at,
        "taps": daemon.taps.processes(now), "engine": {"url": config.engine.url, "probed": bool(config.engine.url), "reachable_at": daemon.probe.reachable_at,
                                                       "reachable_since": daemon.probe.reachable_since, "trouble": daemon.probe.trouble},
        "inbox": {"waiting": len(daemon.inbox), "capacity": daemon.inbox.capacity, "oldest_at": daemon.inbox.oldest_at},
        "threads": {thread.name: thread.is_alive() for thread in (worker, watch)},
        "worker": {"round_at": worker.round_at, "busy_since": worker.busy_since, "trouble": worker.trouble, "last_scored_at": worker.last_scored_at,
                   "oldest_unscored_at": worker.oldest_unscored_at, "scorer_behind_seconds": config.detectors.facts.scorer_behind_seconds},
        "watch": {"ticked_at": watch.ticked_at, "last_batch_at": watch.last_batch.closed_at if watch.last_batch else None,
                  "batch_seconds": config.daemon.batch_seconds, "watermark_seconds": config.daemon.watermark_seconds},
        "shadow": {"wanted": bool(config.weights.dir) and config.shadow.enabled, "why_not": why_no_shadow(config)},
        "weights": _weights(daemon), "trainer": _trainer(daemon), "store": _store(daemon),
    }


def _file(path: str) -> dict[str, Any]:
    if "://" in path:
        return {"path": path, "here": True, "why": None}
    place = Path(path)
    return {"path": path, "here": place.exists(), "why": cannot_read(place)}


def _weights(daemon: Daemon) -> dict[str, Any]:
    place = daemon.config.weights.dir
    newest = daemon.shadow.published[-1] if daemon.shadow is not None and daemon.shadow.published else None
    return {"dir": place, "why": cannot_read(Path(place)) if place and not any(mark in place for mark in "*?[") else None,
            "here": bool(place) and Path(place).exists(), "newest": newest.version if newest else None,
            "newest_at": newest.published_at if newest else None, "announced": daemon.trainer.announced}


def _trainer(daemon: Daemon) -> dict[str, Any]:
    trainer = daemon.trainer
    return {"sources": [source.name for source in trainer.sources], "failing": dict(trainer.counts), "refused": trainer.refused,
            "latest_at": trainer.latest.get("at"), "latest_step": trainer.latest.get("step")}


def _store(daemon: Daemon) -> dict[str, Any]:
    store, config = daemon.store, daemon.config
    (first, rows), = store.query("SELECT min(opened_at), count(*) FROM batches")
    return {"path": str(store.path.absolute()), "bytes": store.size_bytes(), "free_bytes": store.free_bytes(), "first_at": first, "batches": rows,
            "bound_bytes": config.detectors.facts.disk_free_mb * 2**20, "refusing_since": daemon.watch.store_refusing_since,
            "max_bytes": config.store.max_gb * 1e9 or None, "notices": store.notices}


def _klaxon() -> str:
    try:
        return version("klaxon-rl")
    except PackageNotFoundError:
        return "unknown"
