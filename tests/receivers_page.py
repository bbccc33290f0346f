"""The payloads of docs/receivers.md, as the local services of the tests received them over HTTP.

    PYTHONPATH=.:tap:tests python tests/receivers_page.py --write

Each `<!-- received: KIND STATE -->` block of the page is one incident's message in that state; `tests/test_receivers_page.py` holds the page to it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from alerts.notifiers import build
from alerts.receiver_types import TYPES
from receiver_kinds import KINDS, life
from receiver_services import Request, Service, served

PAGE = Path(__file__).parent.parent / "docs" / "receivers.md"
BLOCK = re.compile(r"(<!-- (received: \w+ \w+|types) -->\n).*?(<!-- end -->)", re.DOTALL)
HEADERS = ("content-type", "webhook-id", "webhook-timestamp", "webhook-signature")


def printed(what: str, environ: pytest.MonkeyPatch) -> str:
    """The content of one block."""
    if what == "types":
        return types()
    _, name, state = what.split()
    return "\n".join(f"{shown(request)}\n" for request in received(name, state, environ))


def received(name: str, state: str, environ: pytest.MonkeyPatch) -> list[Request]:
    """The requests that reached the service for the message in this state, after those before it."""
    kind, memory, found = KINDS[name], {}, []
    service = Service() if kind.type == "webhook" else kind.service(secret=kind.secret)  # a signature of that day is too old to be verified now
    with served(service):
        kind.plant(environ, service.url)
        notifier = build(kind.config(), timeout_seconds=10.0)
        for reason, told in life().items():
            before = len(service.seen)
            notifier.send(told, now=told.at, memory=memory)
            found = service.seen[before:]
            if reason == state:
                break
    return found


def shown(request: Request) -> str:
    """A request as Markdown, without what is secret or changes from run to run."""
    body: Any = request.json()
    if "query" in body and "variables" in body:
        body = {"query": f"{body['query'].partition('(')[0]}(…) …", "variables": body["variables"]}
    if "routing_key" in body:
        body = {**body, "routing_key": "…"}
    head = [f"POST {re.sub(r'/hook/.*|/services/.*', '/…', request.path)}"]
    head += [f"{name}: {request.headers[name]}" for name in HEADERS if name.startswith("webhook-") and name in request.headers]
    if "webhook-id" in request.headers:
        head.insert(1, f"content-type: {request.headers['content-type']}")
    return "```\n" + "\n".join(head) + "\n```\n```json\n" + json.dumps(body, ensure_ascii=False, indent=2) + "\n```"


def types() -> str:
    """What each type takes, from its table in the code."""
    rows = ["| type | address | secret | keys of its own |", "|---|---|---|---|"]
    for name, takes in TYPES.items():
        address = {"none": "none", "secret": "`url_env` or `url_file`", "public": "`url`, `url_env` or `url_file`"}[takes.address]
        address += f"; default `{takes.default_address}`" if takes.default_address else ""
        secret = {"none": "–", "may": f"{takes.secret_is}, optional", "must": takes.secret_is}[takes.secret]
        own = ", ".join([f"`{key}`" for key in takes.must] + [f"`{key}` (optional)" for key in takes.may]) or "–"
        rows.append(f"| `{name}` | {address} | {secret} | {own} |")
    return "\n".join(rows) + "\n"


def page_with(text: str, environ: pytest.MonkeyPatch) -> str:
    """The page with every block printed anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{printed(found[2], environ)}{found[3]}", text)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Print or write docs/receivers.md with the payloads of today.")
    parser.add_argument("--write", action="store_true")
    given, before = parser.parse_args(argv), PAGE.read_text(encoding="utf-8")
    with pytest.MonkeyPatch.context() as environ:
        text = page_with(before, environ)
    if given.write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
