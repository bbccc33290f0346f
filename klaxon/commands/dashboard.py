"""`klaxon dashboard`: the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from collector.errors import ConfigError


def dashboard(api: Annotated[list[str] | None, typer.Option(metavar="[NAME=]URL", help="Address of a daemon's read API; may be repeated, then with names. Default: KLAXON_API, else http://127.0.0.1:8765.")] = None,
              daemons: Annotated[Path | None, typer.Option(metavar="FILE", help="TOML or JSON file of daemons: name, url, token_file, ca_file.")] = None,
              sign_in: Annotated[Path | None, typer.Option(metavar="FILE", help="TOML file: how people sign in, and who may act. Needed off loopback.")] = None,
              address: Annotated[str, typer.Option(help="Address to listen on; off loopback only with --sign-in.")] = "127.0.0.1",
              port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8501) -> None:
    """Serve the page of one or more daemons. Ctrl-C ends it.

    Off loopback it starts only with --sign-in; docs/dashboard.md has both files.

    \b
    Examples:
      klaxon dashboard
      klaxon dashboard --api grpo-7b=http://127.0.0.1:8765 --api sft=http://127.0.0.1:8766
      klaxon dashboard --daemons daemons.toml --sign-in sign-in.toml --address 0.0.0.0

    Exit codes: 0 ended, 2 it cannot start, 130 after Ctrl-C.
    """
    from dashboard.daemons import Unusable
    from dashboard.launch import start

    try:
        start(apis=api or (), daemons_file=daemons, sign_in=sign_in, address=address, port=port)
    except Unusable as error:
        raise ConfigError(str(error)) from None
