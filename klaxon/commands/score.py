"""`klaxon score`: re-score a file of rollouts with the weights and show the mismatch signals."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from klaxon.commands.rollout_files import PATH_HELP, AllowPickle, ConfigFile, FileFormat, TokenizerDir, limits_said, signals_of, usable

WORST = 5

ModelDir = Annotated[Path, typer.Option("--model", help="folder of the weights that should have generated the rollouts")]
BodyDtype = Annotated[str, typer.Option(help="precision of the trainer's forward: bfloat16, float16 or float32")]
HeadDtype = Annotated[str, typer.Option(help="precision of the trainer's head")]
Temperature = Annotated[float | None, typer.Option(help="what the trainer assumes where the file does not say", min=0.0)]


def score(
    file: Annotated[str, typer.Argument(help=PATH_HELP)],
    model: ModelDir,
    body_dtype: BodyDtype = "bfloat16",
    head_dtype: HeadDtype = "float32",
    temperature: Temperature = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit 2 when any line is refused")] = False,
    json_: Annotated[bool, typer.Option("--json", help="one JSON object instead of the report")] = False,
    format: FileFormat = "",
    tokenizer: TokenizerDir = "",
    allow_pickle: AllowPickle = False,
    config: ConfigFile = "",
) -> None:
    """Score rollouts with the trainer's weights: KL, clip rate, ESS and the rest, per rollout and in total.

    \b
    Examples:
      klaxon score rollouts.jsonl --model weights/step_40
      klaxon score outputs/rollouts --model weights/step_40 --head-dtype float32 --json

    Exit codes: 0 within the band of a healthy engine, 1 mismatch, 2 nothing usable or failure.
    """
    from klaxon.scripting.files import finite, per_rollout
    from klaxon.scripting.files import score as scored

    trains = signals_of(config)
    contents = usable(file, strict=strict, format=format, tokenizer=tokenizer, allow_pickle=allow_pickle)
    refused = contents.refused
    done = scored(contents.rollouts, model=model, body_dtype=body_dtype, head_dtype=head_dtype, temperature=temperature, limits=trains.limits(), progress=_bar, name=file)
    report = {"file": file, "model": str(model), "tokens": int(done.signals["n_tokens"]), "signals": finite(done.signals), "problems": list(done.problems),
              "limits": limits_said(trains, config), "band_nats": done.band_nats, "band_of": done.band_of,
              "rollouts": per_rollout(done.rollouts, done.scores, trains.limits()), "left_out": [*contents.notes, *done.left_out],
              "refused": {"count": len(refused), "first": [str(error) for error in refused[:5]]}}
    if json_:
        print(json.dumps(report, allow_nan=False))
    else:
        _print(report)
    raise typer.Exit(int(bool(done.problems)))


def _bar(steps: range) -> Iterable[int]:
    """A progress bar on standard error."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(steps, description="scoring", console=console, transient=True, disable=not console.is_terminal)


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, values = Console(highlight=False), report["signals"]
    style, word = ("bold white on red", "MISMATCH") if report["problems"] else ("bold black on green", "HEALTHY BAND")
    said = "; ".join(report["problems"]) or f"mean |d| within {report['band_nats']:g} nats of a {report['band_of']} engine"
    console.print()
    console.print(Text.assemble((f" {word} ", style), " ", said))
    console.print(Text(f"{report['file']}: {len(report['rollouts'])} rollouts, {report['tokens']:,} scored tokens, weights {report['model']}", style="dim"))
    console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "tokens", "mean d", "mean |d|", "max |d|", "k3", "clip rate", "ESS"):
        table.add_column(heading, justify="left" if not heading else "right", style="bold" if not heading else "")
    table.add_row("all", f"{report['tokens']:,}", *_numbers(values))
    worst = sorted((row for row in report["rollouts"] if row["mean_abs_d"] is not None), key=lambda row: -row["mean_abs_d"])[:WORST]
    for row in worst:
        table.add_row(row["request_id"], f"{row['tokens']:,}", *_numbers(row))
    console.print(table)
    console.print(Text(report["limits"]["text"], style="dim"))
    for reason in report["left_out"]:
        console.print(Text(f"left out  {reason}", style="yellow"))
    if report["refused"]["count"]:
        console.print(Text(f"{report['refused']['count']} lines refused, the first: {report['refused']['first'][0]}", style="yellow"))
    console.print()


def _numbers(values: dict[str, float | None]) -> list[str]:
    formats = {"mean_d": "+.4f", "mean_abs_d": ".4f", "max_abs_d": ".2f", "k3": ".2g", "clip_rate": ".1%", "ess": ".3f"}
    return ["–" if values[name] is None else format(values[name], spec) for name, spec in formats.items()]
