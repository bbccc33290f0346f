"""`klaxon run`: the daemon."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import Annotated

import typer

from klaxon.config_settings import HELP as SETTINGS_HELP


def run(config: Annotated[str, typer.Option("--config", "-c", help="The run's config file.")] = "config.toml",
        settings: Annotated[list[str] | None, typer.Option("--set", help=SETTINGS_HELP)] = None,
        verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every event.")] = False) -> None:
    """Watch a run: take rollouts from taps and files, score them, raise alarms. Stops cleanly on Ctrl-C or SIGTERM.

    \b
    Examples:
      klaxon run
      klaxon run --config runs/grpo-7b.toml --verbose

    Exit codes: 0 stopped by Ctrl-C or SIGTERM, with everything stored that had come in; 2 a configured part cannot start.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the daemon has its own: as process 1 of a container it would be ignored
    from klaxon.app import serve
    from klaxon.config import load_config

    loaded = load_config(config, settings or ())
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING,
                        format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # a busy chore is counted, not news
    logging.getLogger("httpx").setLevel(logging.WARNING)
    typer.echo(f"Klaxon watches run {loaded.run.name}: API http://{loaded.daemon.host}:{loaded.daemon.port}, "
               f"socket {loaded.daemon.socket or loaded.run.dir + '/klaxon.sock'}", err=True)
    asyncio.run(serve(loaded))
