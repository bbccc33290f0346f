"""The read API: what the dashboard, the command line and Prometheus see. JSON for state, Arrow IPC streams for series.

Reads only; the daemon serves it on loopback next to POST /v1/ingest. Times are UTC seconds throughout.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Protocol

import pyarrow as pa
from fastapi import Body, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from collector import series
from collector.errors import InputError, KlaxonError
from collector.metric_table import METRICS
from collector.records import Population
from collector.store import Store
from klaxon import quarantine
from klaxon.answers import Answers, arrow_bytes
from klaxon.api_metrics import RunCollector
from klaxon.slice_routes import slices_router
from klaxon.token_routes import token_router

log = logging.getLogger("klaxon.api")

ARROW = "application/vnd.apache.arrow.stream"

Time = Annotated[float | None, Query(allow_inf_nan=False, description="UTC seconds")]
Points = Annotated[int, Query(ge=1, le=series.MAX_POINTS, description="most points a series")]
MOST_IDS = 10_000  # of one question for hashes
Name = Annotated[str | None, Query(max_length=512)]
Signals = Annotated[list[str] | None, Query(max_length=256, description="names of the metric table (docs/metrics.md), from exact sums")]
Compared = Annotated[Population, Query(description="which comparison")]


class Live(Protocol):
    """What only the running daemon knows."""

    def status(self) -> dict[str, Any]:
        """The status object of GET /v1/status; its `heartbeat_at` (or else `now`) is the daemon's own heartbeat."""
        ...

    def incidents(self) -> list[dict[str, Any]]:
        """Incidents, newest first."""
        ...


def build_api(store: Store, live: Live) -> FastAPI:
    """The read API over a store and a running daemon. A fault answers JSON {"error": text}, never a traceback."""
    app = FastAPI(title="Klaxon read API", docs_url=None, redoc_url=None)
    app.state.faults = 0
    answers = app.state.answers = Answers(store)
    _add_state(app, store, live)
    _add_series(app, store, answers)
    _add_quarantine(app, store, live)
    app.include_router(slices_router(store, live, answers))
    app.include_router(token_router(store, live))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunCollector(store, live, faults=lambda: app.state.faults))

    @app.get("/metrics")
    def prometheus() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(KlaxonError)
    def klaxon_error(request: Request, error: KlaxonError) -> JSONResponse:
        return _fault(app, request, error, code=400 if isinstance(error, InputError) else 503, text=str(error))

    @app.exception_handler(Exception)
    def any_error(request: Request, error: Exception) -> JSONResponse:
        return _fault(app, request, error, code=500, text="internal error; the daemon's log has the details")

    return app


def _add_state(app: FastAPI, store: Store, live: Live) -> None:
    @app.get("/healthz")
    def healthz() -> Response:
        return as_json({"ok": True, "batches": store.next_t()})

    @app.get("/v1/status")
    def status() -> Response:
        return as_json(live.status())

    @app.get("/v1/incidents")
    def incidents() -> Response:
        return as_json(live.incidents())

    @app.get("/v1/events")
    def events(since: Time = None, limit: Annotated[int, Query(ge=1, le=5000)] = 500) -> Response:
        rows = store.query('SELECT "at", kind, text, data FROM events WHERE "at" >= ? ORDER BY "at" DESC LIMIT ?',
                           [-1e18 if since is None else since, limit])
        return as_json([{"at": at, "kind": kind, "text": text, "data": json.loads(data)} for at, kind, text, data in rows])

    @app.get("/v1/weights")
    def weights(limit: Annotated[int, Query(ge=1, le=5000)] = 200) -> Response:
        columns = ("version", "path", "published_at", "digest", "seen_at", "engine_at")
        rows = store.query(
            "SELECT version, any_value(path), min(published_at), any_value(digest), min(seen_at), min(engine_at) "
            "FROM weights GROUP BY version ORDER BY max(coalesce(seen_at, engine_at)) DESC LIMIT ?", [limit])
        return as_json([dict(zip(columns, row, strict=True)) for row in rows])


def _add_series(app: FastAPI, store: Store, answers: Answers) -> None:
    @app.get("/v1/series")
    def read_series(start: Time = None, end: Time = None, max_points: Points = 600, replica: Name = None,
                    position: Name = None, version: Name = None, population: Compared = "served", signal: Signals = None) -> Response:
        asked = {"max_points": max_points, "replica": replica, "position": position, "version": version, "population": population,
                 "names": tuple(signal or ())}
        with _refusing():
            return _kept(answers.table(("series", *asked.values()), ("batches", "series", "slices"), (start, end),
                                       lambda: series.read_series(store, start=start, end=end, **asked)))

    @app.get("/v1/signals")
    def read_signals() -> Response:
        return as_json([{"name": metric.name, "formula": metric.formula, "direction": metric.direction, "level": metric.level,
                       "unit": metric.unit} for metric in METRICS])

    @app.get("/v1/slices")
    def read_slices(start: Time = None, end: Time = None, by: str = ",".join(series.SLICE_KEYS),
                    population: Compared = "served", signal: Signals = None) -> Response:
        asked = {"by": tuple(by.split(",")), "population": population, "names": tuple(signal or ())}
        with _refusing():
            return _kept(answers.table(("slices", start is None, *asked.values()), ("batches", "slices"), (start, end),
                                       lambda: series.read_slices(store, start=start, end=end, **asked)))

    @app.get("/v1/evidence")
    def read_evidence(start: Time = None, end: Time = None, max_points: Points = 600, latest: bool = False) -> Response:
        return _kept(answers.table(("evidence", max_points, latest), ("batches", "evidence"), (start, end), lambda: series.read_evidence(
            store, start=start, end=end, max_points=max_points, latest=latest)))

    @app.get("/v1/metrics")
    def read_metrics(name: Annotated[list[str] | None, Query()] = None, start: Time = None, end: Time = None,
                     max_points: Points = 600) -> Response:
        names = tuple(name or ())
        return _kept(answers.table(("metrics", names, max_points), ("metrics",), (start, end), lambda: series.read_metrics(
            store, names=names, start=start, end=end, max_points=max_points), over="metrics"))

    @app.get("/v1/rollouts")
    def read_rollouts(start: Time = None, end: Time = None,
                      limit: Annotated[int, Query(ge=1, le=1_000_000)] = 10_000) -> Response:
        return _arrow(series.read_rollouts(store, start=start, end=end, limit=limit))


def _add_quarantine(app: FastAPI, store: Store, live: Live) -> None:
    """What an incident taints (docs/quarantine.md). `incident`: an id, a unique beginning of one, or "last"."""
    @app.get("/v1/quarantine/{incident}")
    def summary(incident: str) -> Response:
        return as_json(quarantine.summary(store, quarantine.choose(live.incidents(), incident)))

    @app.get("/v1/quarantine/{incident}/rollouts")
    def rollouts(incident: str) -> Response:
        return _arrow(quarantine.tainted(store, quarantine.choose(live.incidents(), incident)))

    @app.post("/v1/request-hashes")
    def request_hashes(ids: Annotated[list[str], Body(embed=True, max_length=MOST_IDS)]) -> Response:
        return as_json([store.request_hash(one) for one in ids])


@contextmanager
def _refusing() -> Iterator[None]:
    """A parameter with an impossible value is the asker's mistake: 400, with the reason."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from None


def _fault(app: FastAPI, request: Request, error: Exception, *, code: int, text: str) -> JSONResponse:
    app.state.faults += 1
    log.warning("%s: %s", request.url.path, error, exc_info=code == 500)
    return JSONResponse({"error": text}, status_code=code)


def as_json(value: Any) -> Response:
    """Any plain value as a JSON answer; what JSON does not know is null."""
    return Response(json.dumps(_plain(value)), media_type="application/json")


def _plain(value: Any, *, other: Callable[[Any], Any] = str) -> Any:
    """JSON knows no NaN or infinity: null stands for them. Mappings and sequences of any kind are walked."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return _plain(value.item()) if hasattr(value, "item") else other(value)


def _arrow(table: pa.Table) -> Response:
    return _kept(arrow_bytes(table))


def _kept(stream: bytes) -> Response:
    return Response(stream, media_type=ARROW)
