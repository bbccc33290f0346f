"""`klaxon backtest`: which pages would another config have sent?"""

from __future__ import annotations

from typing import Annotated

import typer

from klaxon.commands.replay import show


def backtest(source: Annotated[str, typer.Argument(help="A stopped run's folder, or a file of batch JSONL.")],
             config: Annotated[str, typer.Option("--config", "-c", help="The config to try; its [detectors] and batch_seconds count.")] = "config.toml",
             json_: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False) -> None:
    """Show the pages a config would have sent on recorded batches.

    \b
    Examples:
      klaxon backtest runs/grpo-7b --config stricter.toml
      klaxon backtest batches.jsonl --json

    Exit codes: 0 no page, 1 there are some, 2 nothing usable.
    """
    from klaxon.config import load_config
    from klaxon.replaying import backtest as backtested

    done = backtested(source, load_config(config))
    show(done, json_)
    raise typer.Exit(1 if done.pages else 0)
