"""A local server that behaves like W&B's as far as its real client asks: GraphQL, the file stream, uploads. Keeps what it was told."""

from __future__ import annotations

import base64
import gzip
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class WandbServer(http.server.ThreadingHTTPServer):
    """`rows`: run id → logged history; `runs`: run id → newest UpsertBucket variables; `alerts`, `keys`, `asked` in order of arrival.

    `fault`: an HTTP status to answer everything with, or None; `key`: the one that is let in, or None for any.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rows: dict[str, dict[int, dict[str, Any]]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.alerts: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.asked: list[str] = []
        self.streamed: list[dict[str, Any]] = []
        self.fault: int | None = None
        self.key: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client may go at any time."""

    def history(self, run: str) -> list[dict[str, Any]]:
        """The logged rows that carry Klaxon's numbers, in order."""
        return [row for _, row in sorted(self.rows.get(run, {}).items()) if "klaxon/batch" in row]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.keys.add(self.headers.get("Authorization", ""))
        if self.server.fault is not None:
            return self._answer({"error": "out of order"}, code=self.server.fault)
        if self.path == "/graphql":
            return self._graphql(json.loads(body))
        if found := re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", self.path):
            return self._stream(found[3], json.loads(body))
        self._answer({})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer({})

    def do_GET(self) -> None:
        self._answer({})

    def _graphql(self, asked: dict[str, Any]) -> None:
        query, given = asked["query"], asked.get("variables") or {}
        name = next((word for word in ("UpsertBucket", "RunResumeStatus", "NotifyScriptableRunAlert", "CreateRunFiles", "Viewer") if word in query), "other")
        self.server.asked.append(name)
        if self.server.key is not None and not self._is_let_in():
            return self._answer({"errors": [{"message": "user is not logged in"}]}, code=401)
        if name == "UpsertBucket":
            known = {key: value for key, value in given.items() if value is not None}
            self.server.runs.setdefault(given["name"], {}).update(known)
            place = {"id": "P", "name": given["project"], "entity": {"id": "E", "name": given.get("entity") or "team"}}
            bucket = {"id": "R", "name": given["name"], "displayName": given.get("displayName") or given["name"], "historyLineCount": 0,
                      "sweepName": None, "config": given.get("config"), "project": place}
            return self._answer({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})
        if name == "NotifyScriptableRunAlert":
            self.server.alerts.append(given)
            return self._answer({"data": {"notifyScriptableRunAlert": {"success": True}}})
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.server.url}/upload/{file}"} for file in given["files"]]
            return self._answer({"data": {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files}}})
        if name == "Viewer":
            return self._answer({"data": {"viewer": {"id": "V", "username": "klaxon", "entity": "team", "flags": "{}", "teams": {"edges": []}}}})
        self._answer({"data": {"model": None}})

    def _stream(self, run: str, sent: dict[str, Any]) -> None:
        self.server.streamed.append(sent)
        history = (sent.get("files") or {}).get("wandb-history.jsonl")
        if history:
            rows = self.server.rows.setdefault(run, {})
            rows.update({history["offset"] + number: json.loads(line) for number, line in enumerate(history["content"])})
        self._answer({})

    def _is_let_in(self) -> bool:
        wanted = base64.b64encode(f"api:{self.server.key}".encode()).decode()
        return self.headers.get("Authorization") == f"Basic {wanted}"

    def _answer(self, value: dict[str, Any], *, code: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A running one."""
    server = WandbServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
