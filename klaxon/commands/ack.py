"""`klaxon ack`: somebody has taken it."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from klaxon.client import DEFAULT_URL, write_json
from klaxon.commands.silence import AUTHOR_HELP, author_of


def ack(incident: Annotated[str, typer.Argument(help="Id of the incident (`klaxon incidents` lists them), a unique beginning of it, or last.")],
        reason: Annotated[str, typer.Option("--reason", "-m", help="What you are doing about it; it stands in the history and is told.")] = "",
        author: Annotated[str, typer.Option(help=AUTHOR_HELP)] = "",
        url: Annotated[str, typer.Option(help="Address of the daemon.")] = DEFAULT_URL) -> None:
    """Acknowledge an incident: it is repeated no more and does not escalate; those who were told hear who has it.

    What gets worse, the verdict and the end are told all the same. A daemon with a token asks for it in KLAXON_TOKEN.

    \b
    Examples:
      klaxon ack last --reason 'restarting the engine'

    Exit codes: 0 taken, 2 no such incident or no daemon.
    """
    found = write_json("POST", url, f"/v1/incidents/{quote(incident, safe='')}/ack", {"author": author_of(author), "reason": reason})
    typer.echo(f"{found['id']} is {found['state']}: {found['title']}")
