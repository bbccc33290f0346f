"""`klaxon replay`: a stopped run's stored batches through the detectors again; the same alarms, bit for bit."""

from __future__ import annotations

import json
import math
from typing import Annotated

import typer

from klaxon.replaying import Replayed


def replay(run: Annotated[str, typer.Argument(help="The run's folder ([run] dir), its daemon stopped.")],
           config: Annotated[str, typer.Option("--config", "-c", help="The config the run was watched with.")] = "config.toml",
           json_: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False) -> None:
    """Replay a recorded run and compare with what was stored.

    \b
    Examples:
      klaxon replay runs/grpo-7b --config runs/grpo-7b.toml

    Exit codes: 0 the same, 1 a batch's evidence differs, 2 the run cannot be read.
    """
    from klaxon.config import load_config
    from klaxon.replaying import replay as replayed

    done = replayed(run, load_config(config))
    show(done, json_)
    if not json_:
        typer.echo(f"{len(done.differ)} of {done.batches} batches differ from what was stored"
                   + (f", the first is batch {done.differ[0]}: another Klaxon, or another config" if done.differ else ""))
    raise typer.Exit(1 if done.differ else 0)


def show(done: Replayed, as_json: bool) -> None:
    """Pages and recoveries, for people or for scripts."""
    pages = [{"t": page.alarm_t, "kind": page.kind, "stream": page.stream, "slice": dict(page.slice), "change_t": list(page.change_t),
              "text": page.text} for page in done.pages]
    if as_json:
        typer.echo(json.dumps({"batches": done.batches, "ln_a": done.ln_a, "highest_ln_m": done.highest if math.isfinite(done.highest) else None,
                               "pages": pages, "resolved": done.resolved, "differ": done.differ, "refused": done.refused}))
        return
    for page in pages:
        typer.echo(f"batch {page['t']}: {page['text']}")
    for error in done.refused[:20]:
        typer.echo(f"refused: {error}", err=True)
    highest = f"{done.highest:.1f}" if math.isfinite(done.highest) else "none"
    typer.echo(f"{done.batches} batches, {len(pages)} pages, {len(done.resolved)} recoveries, {len(done.refused)} refused lines; "
               f"highest ln M {highest} of {done.ln_a:.1f}")
