"""`klaxon explain`: why each message about an incident was sent, or was not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer

from klaxon.client import DEFAULT_URL, get_json


def explain(incident: Annotated[str, typer.Argument(help="Id of the incident (`klaxon incidents` lists them), a unique beginning of it, or last.")],
            url: Annotated[str, typer.Option(help="Address of the daemon's read API.")] = DEFAULT_URL,
            json_: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False) -> None:
    """Show an incident's history and every decision about it in order: who was told or not, why, and what became of the message.

    \b
    Examples:
      klaxon explain last
      klaxon explain 7f3a --json

    Exit codes: 0 explained, 2 no such incident or no daemon.
    """
    found = get_json(url, f"/v1/incidents/{quote(incident, safe='')}")
    if json_:
        typer.echo(json.dumps(found))
        return
    for line in lines(found):
        typer.echo(line)


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The explanation, readable."""
    from alerts import words

    diagnosis = found["diagnosis"] or {}
    lasted = words.duration((found["resolved_at"] or found["explained_at"]) - found["opened_at"])
    yield f"{found['id']} · {found['state']} · {found['severity']} · {words.clean(found['title'])}"
    yield f"run {words.clean(found['run'])} · {found['fingerprint']} · {'lasted' if found['resolved_at'] else 'open for'} {lasted}"
    if diagnosis:
        yield f"cause {diagnosis['verdict']} ({'confident' if diagnosis['confident'] else 'not sure'})"
    for one in found["silences"]:
        yield f"silenced by {words.clean(one['author'])} until {words.clock(one['ends_at'])}: {words.clean(one['reason'])} ({one['id']}, {one['state']})"
    yield ""
    yield "What happened (times are UTC)"
    for step in found["history"]:
        yield f"  {_time(step['at'])}  {step['from_state'] or 'new'} → {step['to_state']}: {words.clean(step['why'])}"
    yield ""
    yield "Who was told, and why"
    width = max((len(one["receiver"]) for one in found["decisions"]), default=0)
    for one in found["decisions"]:
        detail = words.clean(one["detail"])
        because = detail if detail.startswith(one["reason"]) else f"{one['reason']}: {detail}"
        yield f"  {_time(one['at'])}  {one['receiver']:<{width}}  {'told' if one['sends'] else 'not told':<8}  {because}{_often(one)}"
        if one["message"] is not None:
            yield f"{'':{width + 29}}{_fate(one['message'])}"
    if not found["decisions"]:
        yield "  nothing was decided yet"


def _time(at: float) -> str:
    moment = datetime.fromtimestamp(at, UTC)
    return f"{moment.day:2} {moment:%b %H:%M:%S}"


def _often(one: dict[str, Any]) -> str:
    return f" ({one['times']} times, last {_time(one['last_at'])})" if one["times"] > 1 else ""


def _fate(message: dict[str, Any]) -> str:
    """What became of the message."""
    from alerts import words

    said = words.clean(message["error"] or "no reason noted")
    attempts = f"{message['attempts']} attempt{'' if message['attempts'] == 1 else 's'}"
    if message["state"] == "sent":
        return f"delivered {_time(message['sent_at'])}" + (f" after {attempts}" if message["attempts"] > 1 else "")
    if message["state"] == "dead":
        return f"never delivered, a dead letter after {attempts}: {said}"
    if message["state"] == "superseded":
        return "replaced by a newer message before it left"
    return f"waits to be delivered, after {attempts}" + (f": {said}" if message["error"] else "")
