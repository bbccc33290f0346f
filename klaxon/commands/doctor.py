"""`klaxon doctor`: why do I see no data? The chain from the tap to the alerts, and its first broken link."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from klaxon.client import DEFAULT_URL
from klaxon.config import load_config
from klaxon.doctor.link import Link, first_broken, some
from klaxon.doctor.walk import walk

MARKS = {"ok": ("●", "green"), "wait": ("◔", "cyan"), "warn": ("▲", "yellow"), "broken": ("✗", "bold red"), "off": ("○", "dim"), "unknown": ("?", "dim")}
WORDS = {"ok": "", "wait": "wait", "warn": "WRONG", "broken": "BROKEN", "off": "off", "unknown": "unseen"}
FLOW = ("engine", "tap", "daemon", "inbox", "scorer", "detectors", "store", "alerts")


def doctor(config: Annotated[str, typer.Option("--config", "-c", help="The run's config file; config.toml where there is one and no --url is given.")] = "",
           url: Annotated[str, typer.Option(help="Address of the daemon's read API; alone it is all that is looked at, also from another machine.")] = "",
           json_: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False) -> None:
    """Why do I see no data? Walks engine → tap → daemon → scorer → store → alerts and names the first broken link, the evidence and the next command.

    With a running daemon it asks it; with one that is down it looks at the state files, the lock, the port and the config. Nothing is
    changed and nothing is sent. KLAXON_TOKEN holds the token where the daemon asks for one.

    \b
    Examples:
      klaxon doctor
      klaxon doctor -c runs/grpo.toml
      klaxon doctor --url http://10.0.0.3:8765 --json

    Exit codes: 0 all is well, 1 a link is broken or lets something wrong through, 2 it could not look.
    """
    name = config or ("config.toml" if not url and Path("config.toml").is_file() else "")
    loaded = load_config(name) if name else None
    where = url or (f"{'https' if loaded.daemon.tls_cert else 'http'}://{loaded.daemon.host}:{loaded.daemon.port}" if loaded else DEFAULT_URL)
    run = f"klaxon run -c {shlex.quote(name)}" if name and name != "config.toml" else "klaxon run"
    links = walk(loaded, where, run=run)
    culprit = first_broken(links)
    if json_:
        typer.echo(json.dumps({"ok": culprit is None, "broken": culprit.name if culprit else None, "url": where, "at": time.time(),
                               "links": [asdict(link) for link in links]}))
    else:
        show(links, culprit, Console(highlight=False, emoji=False))
    raise typer.Exit(0 if culprit is None else 1)


def show(links: list[Link], culprit: Link | None, console: Console) -> None:
    """The chain in one line, a paragraph a link, then the first broken one. No text is read as markup."""
    known = {link.name: link for link in links}
    chain = Text()
    for number, name in enumerate(FLOW):
        mark, style = MARKS[known[name].state]
        broken = number and any(known[before].state == "broken" for before in FLOW[:number])
        chain.append("" if not number else " ╌╌ " if broken else " ── ", style="dim" if broken else "green")
        chain.append(f"{mark} {name}", style=style)
    console.print(chain, "\n", sep="")
    table = Table.grid(padding=(0, 1))
    for wraps in (False, False, True):
        table.add_column(no_wrap=not wraps)
    for link in links:
        mark, style = MARKS[link.state]
        table.add_row(Text(f"{mark} {link.name}", style=style), Text(WORDS[link.state], style=style), _said(link))
    console.print(table)
    console.print()
    if culprit is None:
        young = [link.name for link in links if link.state == "wait"]
        console.print(Text(f"Nothing is broken; too early to say of {', '.join(young)}: look again in a minute." if young
                           else "Every link that can be seen from here holds.", style="bold cyan" if young else "bold green"))
        return
    head = "First broken link" if culprit.state == "broken" else "Data flow, but something is wrong at"
    console.print(Text(f"{head}: {culprit.name}", style="bold red" if culprit.state == "broken" else "bold yellow"))
    console.print(Text(culprit.text))
    if culprit.next:
        console.print(Text(f"Next: {some(culprit.next)}", style="bold"), soft_wrap=True)


def _said(link: Link) -> Text:
    """Evidence, since when, counts."""
    line = Text(link.text, style="dim" if link.state in ("off", "unknown") else "")
    if link.state in ("broken", "warn") and link.since:
        line.append(f" [since {datetime.fromtimestamp(link.since, UTC):%Y-%m-%d %H:%M:%S} UTC]", style="dim")
    if link.counts and link.state != "ok":
        figures = ", ".join(f"{name} {value}".replace("_", " ") for name, value in link.counts.items())
        line.append(f" ({figures})", style="dim")
    return line
