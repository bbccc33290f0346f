"""How `klaxon look` shows its report: a short page for people, one object for scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from collector.errors import InputError
from diagnosis.file_report import FileReport, Finding

HEADLINES = {
    "mismatch": ("MISMATCH", "bold white on red", "the engine's logprobs do not mean what the trainer thinks they mean"),
    "nothing_wrong_found": ("NOTHING WRONG FOUND", "bold black on green", "which is not a clean bill of health"),
    "untested": ("NOT TESTED", "bold black on yellow", "the file holds too little to test its logprobs against"),
}
STYLES = {"wrong": "bold red", "fine": "green", "unknown": "yellow", "blind": "dim"}
TIERS = {0: "tier 0: the engine's report alone, blind to stale weights and hidden temperature", 1: "tier 1: engine and trainer"}
SHOWN_REFUSALS = 5


def print_report(report: FileReport, *, file: str, refused: Sequence[InputError], strict: bool, notes: Sequence[str] = (),
                 limits: str = "", console: Console | None = None) -> None:
    """Print the report; lines wrap at the width of the terminal."""
    console = console or Console(highlight=False)
    word, style, meaning = HEADLINES[report.verdict]
    headline = Text.assemble((f" {word} ", style), " ", meaning)
    if report.looks_like:
        headline.append(f"; looks like {report.looks_like}", style="bold")
    console.print()
    console.print(headline)
    engines = f"{report.engines} engine{'s' if report.engines > 1 else ''}"
    console.print(Text(f"{file}: {report.rollouts:,} rollout{'s' if report.rollouts > 1 else ''}, {report.tokens:,} sampled tokens, {engines} · {TIERS[report.tier]}", style="dim"))
    console.print()
    console.print(_table(report.findings))
    _print_refused(console, refused, strict)
    for note in notes:
        console.print(Text(note, style="yellow"))
    if limits:
        console.print(Text(limits, style="dim"))
    if report.bank.betting_rollouts:
        chance = f"A healthy file of this length alarms with probability at most {report.bank.false_alarm_chance:.2g}."
        console.print(Text(chance, style="dim"))
    console.print(Text.assemble(("next  ", "bold"), report.next.replace("FILE", file)))
    console.print()


def report_json(report: FileReport, *, file: str, refused: Sequence[InputError], exit_code: int) -> dict[str, Any]:
    """The same for scripts; numbers that are undefined are null."""
    return {
        "file": file, "verdict": report.verdict, "looks_like": report.looks_like or None, "confident": False, "tier": report.tier,
        "rollouts": report.rollouts, "tokens": report.tokens, "exit_code": exit_code,
        "findings": [asdict(finding) for finding in report.findings if finding.state != "blind"],
        "cannot_see": [finding.text for finding in report.findings if finding.state == "blind"],
        "self_bets": report.numbers, "facts": list(report.bank.fact_names),
        "signals": {name: value if math.isfinite(value) else None for name, value in report.signals.items()} or None,
        "refused": {"count": len(refused), "first": [str(error) for error in refused[:SHOWN_REFUSALS]]}, "next": report.next.replace("FILE", file),
    }


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    shown = ""
    for finding in sorted(findings, key=lambda f: list(STYLES).index(f.state)):
        label = finding.topic if (finding.state, finding.topic) != shown else ""
        shown = (finding.state, finding.topic)
        state = "" if finding.state == "blind" else finding.state
        body = Text(finding.text, style="dim" if finding.state == "blind" else "")
        for detail in finding.details:
            body.append(f"\n{detail}", style="dim")
        table.add_row(Text(state, style=STYLES[finding.state]), Text(label, style="dim" if finding.state == "blind" else ""), body)
    return table


def _print_refused(console: Console, refused: Sequence[InputError], strict: bool) -> None:
    console.print()
    if not refused:
        return
    verb = "refused (--strict: exit 2)" if strict else "refused and left out"
    console.print(Text.assemble((f"{len(refused)} line{'s' if len(refused) > 1 else ''} {verb}", "yellow")))
    for error in refused[:SHOWN_REFUSALS]:
        console.print(Text(f"  {error}", style="dim"))
    if len(refused) > SHOWN_REFUSALS:
        console.print(Text(f"  … and {len(refused) - SHOWN_REFUSALS} more", style="dim"))
    console.print()
