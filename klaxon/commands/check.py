"""`klaxon check`: is the config right, does every part answer, what will Klaxon see and what not?"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from klaxon.checks import Finding, daemon_status, examine, own_status
from klaxon.checks.rollouts import hold_both_sides
from klaxon.config import Config, load_config
from klaxon.config_settings import HELP as SETTINGS_HELP
from klaxon.live import TIER_BLIND

MARKS = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "bad": "[red]✗[/]", "off": "[dim]–[/]"}


def check(config: Annotated[str, typer.Option("--config", "-c", help="The run's config file.")] = "config.toml",
          settings: Annotated[list[str] | None, typer.Option("--set", help=SETTINGS_HELP)] = None,
          json_: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False) -> None:
    """Validate config.toml, probe every part, and say the tier, the coverage and the blind spots.

    \b
    Examples:
      klaxon check
      klaxon check --config runs/grpo-7b.toml --json

    Exit codes: 0 it can work, 2 something configured cannot.
    """
    loaded = load_config(config, settings or ())
    findings = [Finding(part="config", state="ok", text=f"{config} is valid"), *examine(loaded)]
    findings = [replace(item, next=f"klaxon run -c {shlex.quote(config)}") if item.next == "klaxon run" and config != "config.toml" else item for item in findings]
    tier, coverage = _tier(loaded, findings)
    blind = [*TIER_BLIND[tier], *(f"{item.part}: {item.text}" for item in findings if item.state == "warn")]
    if json_:
        typer.echo(json.dumps({"tier": tier, "coverage": coverage, "blind_spots": blind,
                               "parts": [asdict(item) for item in findings]}))
    else:
        _show(findings, tier, coverage, blind)
    raise typer.Exit(2 if any(item.state == "bad" for item in findings) else 0)


def _tier(config: Config, findings: list[Finding]) -> tuple[int, float | None]:
    """The tier this config reaches, and the running daemon's coverage (scored share of tokens), None when not running."""
    states = {item.part: item.state for item in findings}
    status = own_status(config, daemon_status(config))
    coverage = status["scorer"]["coverage"] if status else None
    if states.get("weights") in ("ok", "warn") and states.get("shadow") == "ok":
        return 2, coverage
    return max(status["tier"] if status else 0, 1 if config.sources.trainer_files or hold_both_sides(config) else 0), coverage


def _show(findings: list[Finding], tier: int, coverage: float | None, blind: list[str]) -> None:
    console = Console()
    table = Table(box=None, show_header=False, padding=(0, 1))
    for item in findings:
        table.add_row(MARKS[item.state], item.part, escape(item.text))
    console.print(table)
    for item in findings:
        if item.next and item.state in ("bad", "warn"):
            console.print(f"{item.part}: {item.next}", style="bold", markup=False, highlight=False, soft_wrap=True)
    seen = "" if coverage is None else f", {coverage:.0%} of tokens scored so far"
    console.print(f"\nTier {tier}{seen}.", style="bold", highlight=False)
    console.print("Klaxon cannot see:" if blind else "No known blind spot at this tier.", highlight=False)
    for spot in blind:
        console.print(f"  · {spot}", style="yellow", markup=False, highlight=False)
