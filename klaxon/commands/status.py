"""`klaxon status`: what a running daemon knows, in a few lines."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from klaxon.client import DEFAULT_URL, get_json

EXIT = {"mismatch": 1, "blind": 2, "starting": 0, "healthy": 0, "learning": 0}
COLOUR = {"mismatch": "bold white on red", "blind": "bold black on yellow", "healthy": "bold white on green"}


def status(url: Annotated[str, typer.Option(help="Address of the daemon's read API.")] = DEFAULT_URL,
           json_: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False) -> None:
    """Show the verdict, the evidence, the heartbeats and what Klaxon cannot see.

    \b
    Examples:
      klaxon status
      klaxon status --url http://node7:8765 --json

    Exit codes: 0 no mismatch known (healthy, learning or starting), 1 mismatch, 2 Klaxon cannot see, or does not answer.
    """
    found = get_json(url, "/v1/status")
    incidents = get_json(url, "/v1/incidents")
    incidents = incidents.get("incidents", []) if isinstance(incidents, dict) else incidents
    if json_:
        typer.echo(json.dumps({**found, "incidents": incidents}))
    else:
        _show(found, [item for item in incidents if item["state"] != "resolved"])
    raise typer.Exit(EXIT.get(found["verdict"], 2))


def _show(found: dict[str, Any], firing: list[dict[str, Any]]) -> None:
    console = Console()
    verdict = found["verdict"]
    console.print(f" {verdict.upper()} ", style=COLOUR.get(verdict, "bold"), end=" ")
    console.print(f"run {found['run']} · tier {found['tier']} · {found['verdict_text']}", markup=False)
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in _lines(found):
        table.add_row(name, value)
    console.print(table)
    for incident in firing:
        diagnosis = incident.get("diagnosis") or {}
        console.print(f"firing: {incident['title']}", style="red", markup=False)
        if diagnosis:
            sure = "confident" if diagnosis.get("confident") else "not sure yet"
            console.print(f"  cause: {diagnosis.get('verdict')} ({sure})   next: {diagnosis.get('next')}", markup=False)
        console.print(f"  {worth(incident)}", markup=False)
    for spot in found.get("blind_spots", []):
        console.print(f"cannot see: {spot}", style="yellow", markup=False)


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    counts, weights, scorer = found["counts"], found.get("weights", {}), found["scorer"]
    ln_m = found.get("ln_m")
    taps = ", ".join(f"{tap['source']} {'alive' if tap['alive'] else 'SILENT'}" for tap in found["taps"]) or "none heard"
    floor = found.get("floor_nats")
    speed = scorer.get("tokens_per_second")
    return [
        ("evidence", f"ln M {'none yet' if ln_m is None else format(ln_m, '.1f')} of {found['ln_a']:.1f} (budget {found['budget']})"),
        ("promise", _promise(found.get("honesty"))),
        ("rollouts", f"{counts.get('seen', 0)} seen, {counts.get('scored', 0)} scored, {counts.get('refused', 0)} refused"),
        *_odd(counts),
        ("tokens", f"{counts.get('tokens_scored', 0)} scored" + (f", {speed:.0f} a second" if speed else "")),
        ("mean |d|", "no comparison yet" if floor is None else f"{floor:.4f} nats while healthy (median of batches)"),
        *_compared(found.get("populations", {})),
        *_stale(found.get("staleness") or []),
        ("weights", f"engine {weights.get('engine_version')}, trainer {weights.get('trainer_version')}, lag {weights.get('lag')}"),
        ("taps", taps),
    ]


REFUSED = "refused_"
ODD = {
    "duplicates": "repeated", "repeated": "repeated", "clock_skew": "from the future", "out_of_order": "out of order",
    "tail_rotated": "files rotated", "tail_truncated": "files written anew", "token_out_of_range": "tokens of another tokenizer",
    "late": "after their batch",
}
"""End of a count's name → what it means."""


def _odd(counts: dict[str, int]) -> list[tuple[str, str]]:
    """What was refused, by reason, and what was odd on the way in; nothing when all is well."""
    refused = [f"{count} {name.removeprefix(REFUSED).replace('_', ' ')}" for name, count in counts.items() if name.startswith(REFUSED) and count]
    odd: dict[str, int] = {}
    for name, count in counts.items():
        word = next((word for end, word in ODD.items() if name.endswith(end)), None)
        if word and count:
            odd[word] = odd.get(word, 0) + count
    lines = [("refused", ", ".join(refused)), ("odd input", ", ".join(f"{count} {word}" for word, count in odd.items()))]
    return [(name, text) for name, text in lines if text]


def _stale(lags: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What share of the difference to the newest weights is staleness, and what share mismatch."""
    shown = [(f"{one['lag']} behind" if one["lag"] is not None else "all lags", one) for one in lags[-4:]]
    return [(f"stale, {name}", f"staleness {one['staleness_nats']:.4f} nats ({one['staleness_share']:.0%}), "
                               f"mismatch {one['mismatch_nats']:.4f} nats ({one['mismatch_share']:.0%}) of {one['total_nats']:.4f}")
            for name, one in shown if one["staleness_share"] is not None]


def _compared(populations: dict[str, dict[str, float]]) -> list[tuple[str, str]]:
    """What is compared besides what was served."""
    words = {"trained": "trained on", "dropped": "dropped by the trainer", "lagged": "trainer moved on", "stale": "staleness alone", "estimate": "estimate for all", "trainer_check": "trainer against shadow"}
    return [(words[name], f"mean |d| {values['mean_abs_d']:.4f} nats, clip rate {values['clip_rate']:.1%}, {values['n_tokens']:,.0f} tokens")
            for name, values in populations.items() if name in words]


def _promise(honesty: dict[str, Any] | None) -> str:
    """Alarms raised against the false ones the budget allows, and whether the battery had to be widened."""
    if not honesty:
        return "unknown"
    widened = f"; noise taken {honesty['widened']:.2f} times as wide after the audit" if honesty["widened"] > 1 else ""
    return f"{honesty['alarms']} alarms in {honesty['batches']} batches; at most {honesty['promised_false_alarms']:.2g} false ones promised{widened}"


def worth(incident: dict[str, Any]) -> str:
    """What an alarm is worth, in one line; what the diagnosis does not know is left out."""
    impact = (incident.get("diagnosis") or {}).get("impact") or {}
    said = [f"last clean version {impact['last_clean_version']}"] if impact.get("last_clean_version") is not None else []
    gradient = impact.get("gradient_after") or {}
    for name, label in (("uncorrected", "policy gradient off by"), ("tis", "with TIS"), ("icepop", "with IcePop")):
        found = gradient.get(name) or {}
        if found.get("relative_bias") is not None and found.get("angle_degrees") is not None:
            lost = f" (touches {found['truncated_or_masked']:.1%} of the tokens)" if "truncated_or_masked" in found else ""
            said.append(f"{label} {found['relative_bias']:.0%}, {found['angle_degrees']:.0f}°{lost}")
    if gradient.get("correction_needed") is not None:
        said.append(f"a correction is {'' if gradient['correction_needed'] else 'not '}needed")
    return "; ".join([*said, f"tainted rollouts: klaxon quarantine {incident['id']}"])
