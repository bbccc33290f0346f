"""`klaxon backtest`: which pages would another config have sent?"""

from __future__ import annotations

from typing import Annotated

import typer

from klaxon.commands.replay import show


def backtest(source: Annotated[str, typer.Argument(help="A stopped run's folder, or a file of batch JSONL.")],
             config: Annotated[str, typer.Option("--config", "-c", help="The config to try; its [detectors] and batch_seconds count.")] = "config.toml",
             json_: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False) -> None:
    """Show the pages a config would have sent on recorded batches. Exit code 1 when there are any."""
    from klaxon.config import load_config
    from klaxon.replaying import backtest as backtested

    done = backtested(source, load_config(config))
    show(done, json_)
    raise typer.Exit(1 if done.pages else 0)
