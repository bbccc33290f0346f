"""`klaxon rebaseline`: tell a running daemon that something was changed on purpose."""

from __future__ import annotations

from typing import Annotated

import typer

from klaxon.client import DEFAULT_URL, post_message


def rebaseline(reason: Annotated[str, typer.Argument(help="What was changed, in a few words; it stands on the timeline.")],
               url: Annotated[str, typer.Option(help="Address of the daemon.")] = DEFAULT_URL) -> None:
    """After a planned change: let the battery learn again what is normal. Self-bets, explanations and hard facts go on.

    Nothing does this by itself: an engine that restarts with other settings is how mismatches begin (docs/decisions/0004).

    \b
    Examples:
      klaxon rebaseline 'engine upgraded to 0.32 on purpose'

    Exit codes: 0 the daemon learns again, 2 no daemon answers or no reason is given.
    """
    if not reason.strip():
        raise typer.BadParameter("say in a few words what was changed")
    post_message(url, {"kind": "rebaseline", "reason": reason})
    typer.echo("the battery learns again from the next batch on; `klaxon status` shows when it has learnt")
