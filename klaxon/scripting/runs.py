"""A run, read through its API: a running daemon's, or one over a copy of a stopped run's files."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from collector.errors import InputError, Unavailable
from klaxon.client import get_bytes, get_json

SCHEMES = ("http://", "https://", "unix://")
START_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentSummary:
    """One incident as the API tells it. Times in UTC seconds; `effect_nats` the mean shift of d; `details` is everything else."""

    id: str
    title: str
    state: str  # firing, acknowledged, resolved
    severity: str
    opened_at: float
    cause: str | None  # None: not diagnosed yet
    confident: bool
    owner: str | None
    details: dict[str, Any]


class Run:
    """One run. Tables come as Arrow: `.to_pandas()`, or `polars.from_arrow(table)`. Close it, or use it as a context."""

    def __init__(self, url: str, stack: contextlib.ExitStack | None = None) -> None:
        self.url, self._stack = url, stack or contextlib.ExitStack()

    @property
    def name(self) -> str:
        """[run] name."""
        return str(self.status()["run"])

    def status(self) -> dict[str, Any]:
        """GET /v1/status: verdict, evidence against its threshold, coverage, heartbeats, blind spots."""
        return get_json(self.url, "/v1/status")

    def incidents(self) -> list[IncidentSummary]:
        """Incidents, newest first."""
        return [_incident(found) for found in get_json(self.url, "/v1/incidents")]

    def events(self, *, limit: int = 500) -> list[dict[str, Any]]:
        """What happened to run, engine and Klaxon, newest first: at (UTC seconds), kind, text, data."""
        return get_json(self.url, "/v1/events", limit=limit)

    def series(self, *signals: str, start: float | None = None, end: float | None = None, max_points: int = 600, **only: str) -> pa.Table:
        """Mismatch statistics over time; at most `max_points` rows.

        Args:
            signals: names of the metric table (docs/metrics.md); none = the usual ones.
            start, end: UTC seconds.
            only: replica=, position=, version= narrow it to one slice.

        Raises:
            InputError: no such signal or slice key.
        """
        return self._arrow("/v1/series", start=start, end=end, max_points=max_points, signal=list(signals) or None, **only)

    def slices(self, *by: str, start: float | None = None, end: float | None = None) -> pa.Table:
        """The same statistics by slice keys (replica, position, version, cached). Raises InputError: no such key."""
        return self._arrow("/v1/slices", by=",".join(by) or None, start=start, end=end)

    def evidence(self, *, start: float | None = None, end: float | None = None, max_points: int = 600) -> pa.Table:
        """Each stream's sequential evidence (log Shiryaev-Roberts, nats) over time."""
        return self._arrow("/v1/evidence", start=start, end=end, max_points=max_points)

    def metrics(self, *names: str, start: float | None = None, end: float | None = None, max_points: int = 600) -> pa.Table:
        """The trainer's own metrics under their standard names (docs/trainer-metrics.md)."""
        return self._arrow("/v1/metrics", name=list(names) or None, start=start, end=end, max_points=max_points)

    def rollouts(self, *, start: float | None = None, end: float | None = None, limit: int = 10_000) -> pa.Table:
        """Statistics of single rollouts: hashed request id, lengths, mean |d|, reward; no ids, no text."""
        return self._arrow("/v1/rollouts", start=start, end=end, limit=limit)

    def close(self) -> None:
        """Remove the copy of a stopped run; nothing to do for a daemon."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<klaxon.Run {self.url}>"

    def _arrow(self, path: str, **asked: Any) -> pa.Table:
        body = get_bytes(self.url, path, **{key: value for key, value in asked.items() if value is not None})
        with pa.ipc.open_stream(body) as reader:
            return reader.read_all()


def open_run(source: str | Path) -> Run:
    """A run by its folder ([run] dir, the daemon stopped: the files are copied and left as they are) or its daemon's address.

    An address is http://host:port, https://… or unix:///path/klaxon.sock; off the daemon's machine KLAXON_TOKEN holds its token.

    Raises:
        Unavailable: nobody answers there, the folder holds no run, or a daemon still writes it (its address works then).
        InputError: neither an address nor a folder.
    """
    text = str(source)
    if text.startswith(SCHEMES):
        get_json(text, "/v1/status")
        return Run(text)
    if not Path(source).is_dir():
        raise InputError("is no folder and no address (http://…, unix://…): name a run's folder ([run] dir) or its daemon", where=text)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(_served(Path(source)))
        return Run(url, stack.pop_all())
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[str]:
    """The read API over a copy of a stopped run's files, on a socket nobody else can open."""
    import uvicorn

    from collector.store import Store
    from klaxon.sealed import STORE, copied, open_alerts, sealed_api

    with tempfile.TemporaryDirectory(prefix="klaxon-run-") as copy, contextlib.ExitStack() as stack:
        copied(folder, Path(copy))
        store = stack.enter_context(Store(Path(copy) / STORE))
        alerts = open_alerts(Path(copy), run="")
        stack.callback(alerts.stop, drain_seconds=0.0)
        socket = Path(copy) / "api.sock"
        server = uvicorn.Server(uvicorn.Config(sealed_api(Path(copy), store, alerts), uds=str(socket), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, name="klaxon-run-api", daemon=True)
        thread.start()
        stack.callback(_stop, server, thread)
        deadline = time.monotonic() + START_SECONDS
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise Unavailable(f"{folder}: the API over its files did not start")
            time.sleep(0.01)
        yield f"unix://{socket}"


def _stop(server: Any, thread: threading.Thread) -> None:
    server.should_exit = True
    thread.join(timeout=10)


def _incident(found: dict[str, Any]) -> IncidentSummary:
    diagnosis = found.get("diagnosis") or {}
    return IncidentSummary(id=str(found["id"]), title=str(found["title"]), state=str(found["state"]), severity=str(found.get("severity", "")),
                           opened_at=float(found["opened_at"]), cause=diagnosis.get("verdict"), confident=bool(diagnosis.get("confident")),
                           owner=found.get("owner"), details=found)
