"""`klaxon alerts unsent` and `klaxon alerts resend`: messages that wait or were given up, of a running daemon."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer

from alerts import words
from klaxon.client import DEFAULT_URL, get_json, write_json

Url = Annotated[str, typer.Option(help="Address of the daemon.")]
STATES = {"pending": "waits", "leased": "is being sent", "dead": "DEAD"}


def unsent(url: Url = DEFAULT_URL, json_: Annotated[bool, typer.Option("--json", help="One JSON list on standard output.")] = False) -> None:
    """List messages that wait for their receiver, and dead letters with the last error.

    \b
    Examples:
      klaxon alerts unsent
      klaxon alerts unsent --json

    Exit codes: 0 none is dead, 1 one is, 2 no daemon answers.
    """
    found = get_json(url, "/v1/messages/unsent")
    typer.echo(json.dumps(found) if json_ else "\n".join(map(_line, found)) or "every message was delivered")
    raise typer.Exit(1 if any(row["state"] == "dead" for row in found) else 0)


def resend(message: Annotated[str, typer.Argument(help="Id of a dead letter (`klaxon alerts unsent` lists them), or all.")], url: Url = DEFAULT_URL) -> None:
    """Send dead letters again, under their old ids. One that a newer message of its incident has overtaken stays where it is.

    \b
    Examples:
      klaxon alerts resend all

    Exit codes: 0 sent again, 2 no such letter or no daemon.
    """
    chosen = [row["id"] for row in get_json(url, "/v1/messages/unsent") if row["state"] == "dead"] if message == "all" else [message]
    sends = [one for one in chosen if write_json("POST", url, f"/v1/messages/{quote(one, safe='')}/resend", {})["sends"]]
    typer.echo(f"{len(sends)} of {len(chosen)} messages are sent again" + (f"; {len(chosen) - len(sends)} overtaken by newer ones" if len(sends) < len(chosen) else ""))


def _line(row: dict[str, Any]) -> str:
    tries = f"{row['attempts']} {'try' if row['attempts'] == 1 else 'tries'}"
    return f"{row['id']}  {STATES.get(row['state'], row['state']):13}  {words.clock(row['created_at'])}  {row['receiver']}  {row['incident_id']} ({row['reason']}), {tries}: {row['error'] or 'no error yet'}"
