"""A small local receiver of alerts: Slack's incoming-webhook contract, and signed webhooks. For the demo and for trying
a config out; it is not Slack.

    python -m klaxon.demo.receiver --port 8330 --out alerts.jsonl

POST /services/…  as Slack: 200 "ok"; 400 invalid_payload, no_text, invalid_blocks; 429 with Retry-After (--fail-first N).
POST /webhook     Standard Webhooks: 204; 401 when a secret is known and the signature is not right. The secret comes from
                  the environment variable KLAXON_RECEIVER_SECRET or from --secret-file.
GET /             the messages as a page; GET /messages as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from klaxon.demo.receiver_page import plain, render, slack_blocks

MAX_BODY_BYTES = 1024 * 1024
KEEP = 500  # messages shown; the file keeps all


@dataclass(kw_only=True)
class Inbox:
    """What arrived, and how the next requests are answered."""

    out: Path | None = None
    secret: str | None = None
    fail_first: int = 0  # answer this many POSTs with 429
    retry_after: float = 1.0  # seconds, what those say
    messages: list[dict[str, Any]] = field(default_factory=list)
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, message: dict[str, Any]) -> None:
        """Remember, append to the file, print."""
        with self.lock:
            self.messages = [*self.messages[-(KEEP - 1):], message]
            if self.out is not None:
                with self.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(message, ensure_ascii=False) + "\n")
            print(f"\n── {message['kind']} · {message['path']} " + "─" * 40 + f"\n{plain(message)}", flush=True)

    def busy(self) -> bool:
        """Should this request be told to come back later?"""
        with self.lock:
            if self.fail_first <= 0:
                return False
            self.fail_first -= 1
            self.refused += 1
            return True


class Receiver(ThreadingHTTPServer):
    """The server; port 0 picks a free one."""

    daemon_threads = True

    def __init__(self, inbox: Inbox, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.inbox = inbox
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Base address."""
        return f"http://{self.server_address[0]}:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver
    timeout = 10

    def do_GET(self) -> None:
        with self.server.inbox.lock:
            messages = list(self.server.inbox.messages)
        if self.path == "/messages":
            self._answer(200, json.dumps(messages, ensure_ascii=False), "application/json")
        elif self.path == "/":
            self._answer(200, render(messages), "text/html; charset=utf-8")
        else:
            self._answer(404, "not found")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            return self._answer(411, "length required")
        if int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            return self._answer(413, "too large")
        body = self.rfile.read(int(length))
        if self.server.inbox.busy():
            return self._answer(429, "rate_limited", headers={"Retry-After": f"{self.server.inbox.retry_after:g}"})
        if self.path.startswith("/services/"):
            return self._slack(body)
        if self.path.startswith("/webhook"):
            return self._webhook(body)
        return self._answer(404, "no_team")

    def _slack(self, body: bytes) -> None:
        payload = _parsed(body)
        wrong = "invalid_payload" if payload is None else _slack_fault(payload)
        if wrong is not None:
            return self._answer(400, wrong)
        self.server.inbox.keep({"at": time.time(), "kind": "slack", "path": "/services/…", "body": payload})
        self._answer(200, "ok")

    def _webhook(self, body: bytes) -> None:
        payload, secret = _parsed(body), self.server.inbox.secret
        if payload is None:
            return self._answer(400, "invalid JSON")
        if secret is not None:
            try:
                Webhook(secret).verify(body, dict(self.headers.items()), json_parse=False)
            except (WebhookVerificationError, ValueError):
                return self._answer(401, "invalid signature")
        self.server.inbox.keep({"at": time.time(), "kind": "webhook", "path": self.path, "id": self.headers.get("webhook-id"),
                                "verified": secret is not None, "body": payload})
        self._answer(204, "")

    def _answer(self, status: int, text: str, kind: str = "text/plain; charset=utf-8", headers: dict[str, str] | None = None) -> None:
        try:
            self._write(status, text.encode(), kind, headers or {})
        except OSError:
            self.close_connection = True  # the sender has gone and will come again

    def _write(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), "X-Content-Type-Options": "nosniff",
                            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: what arrived is printed by the inbox; a request line would show the webhook's address."""


def _parsed(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _slack_fault(payload: dict[str, Any]) -> str | None:
    """The error Slack would answer with, for the limits it documents."""
    attachments = payload.get("attachments", [])
    if not isinstance(payload.get("blocks", []), list) or not isinstance(attachments, list) or not all(isinstance(each, dict) for each in attachments):
        return "invalid_blocks"
    blocks = slack_blocks(payload)
    if not (payload.get("text") or blocks or attachments):
        return "no_text"
    if len(blocks) > 50 or not all(isinstance(block, dict) and _block_fits(block) for block in blocks):
        return "invalid_blocks"
    return None


def _block_fits(block: dict[str, Any]) -> bool:
    limits = {"header": 150, "section": 3000, "context": 2000, "divider": 0, "actions": 0, "image": 0}
    if block.get("type") not in limits:
        return False
    fields = block.get("fields", []) or block.get("elements", [])
    texts = [block["text"]] if "text" in block else []
    return len(fields) <= 10 and all(_fits(each, limits[block["type"]]) for each in texts) and all(_fits(each, 2000) for each in fields)


def _fits(text: Any, limit: int) -> bool:
    return isinstance(text, dict) and isinstance(text.get("text"), str) and 0 < len(text["text"]) <= limit


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m klaxon.demo.receiver", description="Local receiver of Klaxon's alerts.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8330, help="0 picks a free one")
    parser.add_argument("--out", type=Path, help="append every message to this JSONL file")
    parser.add_argument("--secret-file", type=Path, help="signing secret of /webhook (default: $KLAXON_RECEIVER_SECRET)")
    parser.add_argument("--fail-first", type=int, default=0, metavar="N", help="answer the first N messages with 429")
    parser.add_argument("--retry-after", type=float, default=1.0, metavar="SECONDS", help="what those 429 ask for")
    given = parser.parse_args(argv)
    try:
        secret = given.secret_file.read_text(encoding="utf-8").strip() if given.secret_file else os.environ.get("KLAXON_RECEIVER_SECRET")
        if given.out is not None:
            given.out.parent.mkdir(parents=True, exist_ok=True)
        inbox = Inbox(out=given.out, secret=secret or None, fail_first=given.fail_first, retry_after=given.retry_after)
        server = Receiver(inbox, host=given.host, port=given.port)
    except OSError as error:
        print(f"receiver: cannot start ({error}); try another --port", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"receiver: page {server.url}/ · Slack webhook {server.url}/services/demo · signed webhook {server.url}/webhook", flush=True)
    with server:
        server.serve_forever(poll_interval=0.2)
    print(f"receiver: {len(inbox.messages)} messages; stopped", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
