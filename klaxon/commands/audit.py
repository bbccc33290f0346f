"""`klaxon audit ENGINE_URL`: everything a running vLLM engine tells of itself, as a checklist."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from diagnosis.engine_audit import MIGRATION, audit as judge
from diagnosis.engine_told import Assumed, Check
from klaxon.engine_facts import Asked, ask
from klaxon.trainer_file import read_assumed

MARKS = {"ok": "[green]✓[/]", "wrong": "[red]✗[/]", "risky": "[yellow]![/]", "unknown": "[dim]?[/]"}


def audit(engine_url: Annotated[str, typer.Argument(help="Address of the running vLLM engine, e.g. http://127.0.0.1:8000.")],
          trainer: Annotated[str, typer.Option(help="What the trainer assumes: a config.toml of Klaxon, or its [trainer], [contract] and [shadow] sections as TOML or JSON.")] = "",
          model: Annotated[str, typer.Option(help="The model folder the engine was started from, where this machine cannot find it by itself.")] = "",
          klaxon: Annotated[str, typer.Option(help="Address of a Klaxon daemon that hears the engine's tap; adds what the tap tells.")] = "",
          json_: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False) -> None:
    """Ask a running vLLM engine for every setting that matters to RL and print a checklist.

    \b
    Examples:
      klaxon audit http://127.0.0.1:8000
      klaxon audit http://127.0.0.1:8000 --trainer config.toml --klaxon http://127.0.0.1:8765

    Exit codes: 0 nothing is wrong, 1 something is, 2 the engine cannot be asked.
    """
    assumed, unread = read_assumed(trainer) if trainer else (Assumed(), [])
    console = Console(stderr=True)
    with console.status("asking the engine …") as spinner:
        asked = ask(engine_url, model=model, daemon=klaxon, progress=lambda source: spinner.update(f"asking {source} …"))
    checks = judge(asked.told, assumed)
    counts = Counter(check.state for check in checks)
    if json_:
        typer.echo(json.dumps({"engine": engine_url, "vllm_version": asked.told.version, "sources": asked.sources, "trainer_keys_not_read": unread,
                               "counts": {state: counts[state] for state in MARKS}, "checks": [asdict(check) for check in checks]}))
    else:
        _show(engine_url, asked, checks, unread)
    raise typer.Exit(1 if counts["wrong"] else 0)


def _show(url: str, asked: Asked, checks: Sequence[Check], unread: list[str]) -> None:
    console = Console()
    console.print(f"vLLM {asked.told.version or 'of unknown version'} at {url}", style="bold", highlight=False, markup=False)
    for heading, part in (("From V0 to V1", checks[:MIGRATION]), ("Everything else", checks[MIGRATION:])):
        console.print(f"\n{heading}", style="bold", highlight=False)
        table = Table(box=None, show_header=False, padding=(0, 1))
        table.add_column()
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for check in part:
            table.add_row(MARKS[check.state], check.name, _text(check))
        console.print(table)
    for source, answer in asked.sources.items():
        if answer != "answers":
            console.print(f"not told: {source}: {answer}", style="yellow", markup=False, highlight=False)
    if unread:
        console.print(f"not read in the trainer's file: {', '.join(unread)}", style="yellow", markup=False, highlight=False)
    counts = Counter(check.state for check in checks)
    console.print("\n" + ", ".join(f"{counts[state]} {state}" for state in MARKS) + ".", style="bold", highlight=False)


def _text(check: Check) -> Text:
    """What was seen; unless it is fine also why it matters and what to type."""
    text = Text(check.seen)
    if check.state == "ok":
        return text
    if check.state != "unknown":
        text.append(f"\n{check.why}", style="dim")
    if check.do:
        text.append(f"\n→ {check.do}", style="bold")
    return text
