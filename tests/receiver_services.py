"""Local servers that behave as the documentation of Slack, PagerDuty, W&B and Alertmanager says, over real HTTP.

Each checks what its service checks, keeps what it accepted in `accepted`, and answers in the service's own words and codes.
`script` holds replies that are given first, whatever was asked.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from standardwebhooks import Webhook, WebhookVerificationError

from klaxon.demo.receiver import _slack_fault


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What is answered; `act` replaces the writing of it."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    act: Callable[[BaseHTTPRequestHandler], None] | None = None


def jsoned(body: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(status=status, body=json.dumps(body).encode(), headers={"Content-Type": "application/json", **headers})


@dataclass(kw_only=True)
class Service:
    """Takes everything."""

    secret: str = ""
    url: str = ""
    script: list[Reply | Callable[[Request], Reply]] = field(default_factory=list)
    seen: list[Request] = field(default_factory=list)
    accepted: list[Any] = field(default_factory=list)

    def answer(self, request: Request) -> Reply:
        self.seen.append(request)
        if self.script:
            first = self.script.pop(0)
            return first(request) if callable(first) else first
        return self.reply(request)

    def reply(self, request: Request) -> Reply:
        self.accepted.append(request.json())
        return Reply()


@dataclass(kw_only=True)
class SlackWebhook(Service):
    def reply(self, request: Request) -> Reply:
        fault = _slack_fault(request.json())
        if fault is not None:
            return Reply(status=400, body=fault.encode())
        self.accepted.append(request.json())
        return Reply(body=b"ok")


@dataclass(kw_only=True)
class SignedWebhook(Service):
    """Refuses what is not signed as Standard Webhooks asks."""

    def reply(self, request: Request) -> Reply:
        try:
            Webhook(self.secret).verify(request.body, request.headers, json_parse=False)
        except WebhookVerificationError:
            return Reply(status=401, body=b"invalid signature")
        self.accepted.append(request.json())
        return Reply(status=204)


@dataclass(kw_only=True)
class SlackApi(Service):
    """chat.postMessage, chat.update and the three steps of an upload, as api.slack.com documents them."""

    channel: str = "C0ONCALL"
    messages: dict[str, dict[str, Any]] = field(default_factory=dict)  # ts → message
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    refuse: dict[str, str] = field(default_factory=dict)  # method → error
    upload_host: str = ""

    def reply(self, request: Request) -> Reply:
        method = request.path.removeprefix("/api/")
        if method.startswith("/upload/"):
            self.files[method.removeprefix("/upload/")]["content"] = request.body
            return Reply(body=f"OK - {len(request.body)}".encode())
        if request.headers.get("authorization") != f"Bearer {self.secret}":
            return jsoned({"ok": False, "error": "invalid_auth"})
        if method in self.refuse:
            return jsoned({"ok": False, "error": self.refuse[method]})
        if request.headers["content-type"].startswith("application/json"):
            given = request.json()
        else:
            given = {key: values[0] for key, values in parse_qs(request.body.decode()).items()}
        found = {"chat.postMessage": self._post, "chat.update": self._update, "files.getUploadURLExternal": self._upload,
                 "files.completeUploadExternal": self._complete}.get(method, lambda _: "unknown_method")(given)
        if isinstance(found, str):
            return jsoned({"ok": False, "error": found})
        self.accepted.append({"method": method, **given})
        return jsoned({"ok": True, **found})

    def _post(self, given: dict[str, Any]) -> dict[str, Any] | str:
        if given.get("channel") not in (self.channel, "#oncall"):
            return "channel_not_found"
        if (fault := _slack_fault(given)) is not None:
            return fault
        if "thread_ts" in given and given["thread_ts"] not in self.messages:
            return "thread_not_found"
        ts = f"1795238400.{len(self.messages) + 1:06d}"
        self.messages[ts] = given
        return {"channel": self.channel, "ts": ts, "message": {"text": given["text"]}}

    def _update(self, given: dict[str, Any]) -> dict[str, Any] | str:
        if given.get("channel") != self.channel:  # an id, never a name
            return "channel_not_found"
        if given.get("ts") not in self.messages:
            return "message_not_found"
        if (fault := _slack_fault(given)) is not None:
            return fault
        self.messages[given["ts"]] = given
        return {"channel": self.channel, "ts": given["ts"], "text": given["text"]}

    def _upload(self, given: dict[str, Any]) -> dict[str, Any] | str:
        if not given.get("filename") or not str(given.get("length", "")).isdigit():
            return "invalid_arguments"
        name = f"F{len(self.files) + 1}"
        self.files[name] = {"length": int(given["length"]), "content": None}
        return {"upload_url": f"{self.upload_host or self.url}/upload/{name}", "file_id": name}

    def _complete(self, given: dict[str, Any]) -> dict[str, Any] | str:
        known = [self.files.get(each["id"]) for each in given["files"]]
        if any(each is None or len(each["content"] or b"") != each["length"] for each in known):
            return "file_not_found"
        return {"files": given["files"]} if given.get("channel_id") == self.channel else "channel_not_found"


@dataclass(kw_only=True)
class PagerDuty(Service):
    """Events API v2; `incidents` holds dedup_key → status."""

    incidents: dict[str, str] = field(default_factory=dict)

    def reply(self, request: Request) -> Reply:
        event = request.json()
        faults = list(self._faults(event))
        if request.path != "/v2/enqueue" or faults:
            return jsoned({"status": "invalid event", "message": "Event object is invalid", "errors": faults}, 400)
        status = {"trigger": "triggered", "acknowledge": "acknowledged", "resolve": "resolved"}[event["event_action"]]
        before = self.incidents.get(event["dedup_key"])
        if status == "triggered" and before == "acknowledged":
            status = before  # a trigger of a known key only lengthens its log
        if status == "triggered" or before is not None:
            self.incidents[event["dedup_key"]] = status
        self.accepted.append(event)
        return jsoned({"status": "success", "message": "Event processed", "dedup_key": event["dedup_key"]}, 202)

    def _faults(self, event: dict[str, Any]) -> Iterator[str]:
        if event.get("routing_key") != self.secret:
            yield "Invalid routing key"
        if event.get("event_action") not in ("trigger", "acknowledge", "resolve"):
            yield "'event_action' is invalid"
        if not 0 < len(event.get("dedup_key", "")) <= 255:
            yield "'dedup_key' is invalid"
        if event.get("event_action") == "trigger":
            payload = event.get("payload", {})
            if not 0 < len(payload.get("summary", "")) <= 1024 or not payload.get("source"):
                yield "'payload.summary' or 'payload.source' is missing or blank"
            if payload.get("severity") not in ("critical", "error", "warning", "info"):
                yield "'payload.severity' is invalid"
            datetime.fromisoformat(payload["timestamp"])
            if any(set(link) - {"href", "text"} or not link["href"].startswith("http") for link in event.get("links", [])):
                yield "'links' is invalid"


@dataclass(kw_only=True)
class AlertmanagerApi(Service):
    """POST /api/v2/alerts with the checks of its OpenAPI description."""

    def reply(self, request: Request) -> Reply:
        alerts = request.json()
        right = request.headers.get("authorization") == f"Bearer {self.secret}" if self.secret else True
        if request.path != "/api/v2/alerts" or not right:
            return Reply(status=404)
        for alert in alerts:
            names = [*alert["labels"], *alert["annotations"]]
            wrong = [name for name in names if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name)]
            if wrong or "" in alert["labels"].values() or datetime.fromisoformat(alert["startsAt"]) > datetime.fromisoformat(alert["endsAt"]):
                return jsoned(f"invalid alert {wrong}", 400)
        self.accepted.append(alerts)
        return Reply()


@dataclass(kw_only=True)
class WandbApi(Service):
    """The GraphQL endpoint, for the two mutations of wandb-core; `runs` are known."""

    runs: set[str] = field(default_factory=lambda: {"team/grpo/run7"})

    def reply(self, request: Request) -> Reply:
        if request.headers.get("authorization") != "Basic " + base64.b64encode(f"api:{self.secret}".encode()).decode():
            return jsoned({"errors": [{"message": "permission denied"}]}, 401)
        if request.path != "/graphql":
            return Reply(status=404)
        given = request.json()
        variables, name = given["variables"], re.match(r"mutation (\w+)\(", given["query"])[1]
        declared = set(re.findall(r"\$(\w+):", given["query"]))
        if declared != set(variables):
            return jsoned({"errors": [{"message": f"variables {declared ^ set(variables)}"}]})
        if name == "UpsertBucket":
            self.runs.add(f"{variables['entity']}/{variables['project']}/{variables['name']}")
            self.accepted.append(variables)
            return jsoned({"data": {"upsertBucket": {"bucket": {"id": "x", "name": variables["name"]}, "inserted": True}}})
        if "/".join(variables[key] for key in ("entityName", "projectName", "runName")) not in self.runs:
            return jsoned({"data": {"notifyScriptableRunAlert": None}, "errors": [{"message": "could not find run", "path": ["notifyScriptableRunAlert"]}]})
        if len(variables["title"]) >= 64 + variables["title"].count(";") * 4 or variables["severity"] not in ("INFO", "WARN", "ERROR"):
            return jsoned({"errors": [{"message": "bad alert"}]})
        self.accepted.append(variables)
        return jsoned({"data": {"notifyScriptableRunAlert": {"success": True}}})


@contextmanager
def served(service: Service) -> Iterator[Service]:
    """The service on a free port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            reply = service.answer(Request(path=self.path, headers={name.lower(): value for name, value in self.headers.items()}, body=body))
            try:
                if reply.act is not None:
                    return reply.act(self)
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)
            except OSError:
                self.close_connection = True  # the client has gone, as some tests want

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        service.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()
