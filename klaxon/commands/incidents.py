"""`klaxon incidents`: what is open, and what was."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from klaxon.client import DEFAULT_URL, get_json


def incidents(all_: Annotated[bool, typer.Option("--all", "-a", help="Those that are over as well, the newest 50.")] = False,
              url: Annotated[str, typer.Option(help="Address of the daemon's read API.")] = DEFAULT_URL,
              json_: Annotated[bool, typer.Option("--json", help="One JSON array on standard output.")] = False) -> None:
    """List the incidents of a running daemon, the newest first.

    \b
    Examples:
      klaxon incidents
      klaxon incidents --all --json

    Exit codes: 0 nothing fires, 1 something fires that nobody acknowledged, 2 no daemon answers.
    """
    found = get_json(url, "/v1/incidents" if all_ else "/v1/incidents/open")
    if json_:
        typer.echo(json.dumps(found))
    else:
        for line in lines(found, now=time.time()):
            typer.echo(line)
    raise typer.Exit(int(any(item["state"] == "firing" for item in found)))


def lines(found: list[dict[str, Any]], *, now: float) -> list[str]:
    """One incident in two lines: what it is, and how it stands."""
    from alerts import words

    if not found:
        return ["no incident is open"]
    said = []
    for item in found:
        diagnosis = item.get("diagnosis") or {}
        cause = f" · {diagnosis['verdict']}{'' if diagnosis['confident'] else ' (not sure)'}" if diagnosis else ""
        lasted = words.duration((item["resolved_at"] or now) - item["opened_at"])
        taken = f" · {words.clean(item['acknowledgement'])}" if item["acknowledgement"] else ""
        back = f" · came back {item['returns']} times" if item["returns"] else ""
        said += [f"{item['id']}  {item['state']:<12}  {item['severity']}  {words.clean(item['title'])}{cause}",
                 f"{'':18}{words.where(item['drifts'][0]['slice'])} · {'lasted' if item['resolved_at'] else 'for'} {lasted}{back}{taken}"]
    return said
