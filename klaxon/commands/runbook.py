"""`klaxon runbook`: what to do about a cause or a hard fact."""

from __future__ import annotations

from typing import Annotated

import typer

from alerts import runbooks


def runbook(name: Annotated[str, typer.Argument(help="Cause or hard fact, as the alert names it; without one: the list.")] = "") -> None:
    """Print what to do about a cause or a hard fact.

    \b
    Examples:
      klaxon runbook
      klaxon runbook stale_weights

    Exit codes: 0 printed, 2 no such cause.
    """
    if name:
        typer.echo(runbooks.page(name))
        return
    for one in runbooks.names():
        typer.echo(f"{one:26}{runbooks.about(one)}")
