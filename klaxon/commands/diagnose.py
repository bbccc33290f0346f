"""`klaxon diagnose`: which known fault explains the engine's logprobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from klaxon.commands.rollout_files import PATH_HELP, AllowPickle, FileFormat, TokenizerDir, usable
from klaxon.commands.score import BodyDtype, HeadDtype, ModelDir, Temperature

if TYPE_CHECKING:
    from collector.records import Diagnosis

SHOWN_EVIDENCE = 3


def diagnose(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help=PATH_HELP)],
    model: ModelDir,
    previous: Annotated[list[Path] | None, typer.Option("--previous", help="folder of older weights, newest first; repeat it")] = None,
    trainer: Annotated[str, typer.Option("--trainer", help="JSONL of what the trainer says of these rollouts: its token ids are compared exactly")] = "",
    body_dtype: BodyDtype = "bfloat16",
    head_dtype: HeadDtype = "float32",
    temperature: Temperature = None,
    max_rollouts: Annotated[int, typer.Option(help="re-score at most this many rollouts, evenly spread over the file", min=1)] = 64,
    strict: Annotated[bool, typer.Option("--strict", help="exit 2 when any line is refused")] = False,
    json_: Annotated[bool, typer.Option("--json", help="one JSON object instead of the report")] = False,
    format: FileFormat = "",
    tokenizer: TokenizerDir = "",
    allow_pickle: AllowPickle = False,
) -> None:
    """Find out why: every known fault predicts the engine's logprobs, the best prediction wins.

    \b
    Examples:
      klaxon diagnose rollouts.jsonl --model weights/step_40
      klaxon diagnose rollouts.jsonl --model weights/step_40 --previous weights/step_39 --json

    Exit codes: 0 healthy, 1 mismatch, 2 nothing usable or failure.
    """
    from klaxon.commands.look import with_trainer
    from klaxon.scripting.files import diagnose as diagnosed

    contents = usable(file, strict=strict, format=format, tokenizer=tokenizer, allow_pickle=allow_pickle)
    rollouts, refused = contents.rollouts, contents.refused
    if trainer:
        rollouts = with_trainer(rollouts, trainer, refused)
    declared = context.get_parameter_source("head_dtype")
    with _working(f"re-scoring {min(max_rollouts, len(rollouts))} of {len(rollouts)} rollouts"):
        done = diagnosed(rollouts, model=model, previous=previous or (), body_dtype=body_dtype, temperature=temperature, max_rollouts=max_rollouts,
                         head_dtype=head_dtype if declared is not None and declared.name != "DEFAULT" else None)
    verdict = done.verdict
    report = verdict_json(verdict) | {
        "file": file, "model": str(model), "rollouts": done.rollouts, "left_out": [*contents.notes, *done.left_out],
        "refused": {"count": len(refused), "first": [str(error) for error in refused[:5]]}}
    report["next"] = report["next"].replace("FILE", file, 1).replace("--model DIR", f"--model {model}")
    if json_:
        print(json.dumps(report, allow_nan=False))
    else:
        show(report)
    raise typer.Exit(int(verdict.verdict != "healthy"))


def verdict_json(verdict: Diagnosis) -> dict[str, Any]:
    """The public JSON of a diagnosis; causes are ranked, the verdict first."""
    causes = [{"cause": one.cause, "residual_nats": one.residual_nats, "tokens": one.tokens, "evidence": list(one.evidence),
               "parameters": dict(one.parameters)} for one in verdict.causes]
    return {"verdict": verdict.verdict, "confident": verdict.confident, "causes": causes, "floor_nats": verdict.floor_nats,
            "next": verdict.next, "fix": verdict.fix, "tokens": verdict.tokens}


def _working(text: str) -> Any:
    from rich.console import Console

    return Console(stderr=True).status(text)


def show(report: dict[str, Any]) -> None:
    """The report as a person reads it; `klaxon preflight` shows the same."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from diagnosis.causes import CAUSE_TEXTS

    console, cause = Console(highlight=False), report["verdict"]
    colour = "green" if cause == "healthy" else "red"
    word = f" {cause.upper()} " if report["confident"] else f" {cause.upper()}? "
    console.print()
    console.print(Text.assemble((word, f"bold {'black' if colour == 'green' else 'white'} on {colour}"), " ", CAUSE_TEXTS[cause].meaning,
                                ("" if report["confident"] else " (not sure)", "yellow")))
    floor = "unknown" if report["floor_nats"] is None else f"{report['floor_nats']:.4f} nats"
    console.print(Text(f"{report['file']}: {report['tokens']:,} tokens of {report['rollouts']} rollouts, floor {floor}", style="dim"))
    console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("explanation", style="bold", no_wrap=True)
    table.add_column("residual", justify="right", no_wrap=True)
    table.add_column("numbers", overflow="fold")
    for one in report["causes"]:
        residual = "–" if one["residual_nats"] is None else f"{one['residual_nats']:.4f}"
        settings = ", ".join(f"{name} {value}" for name, value in one["parameters"].items())
        shown = [line for number, line in enumerate(one["evidence"]) if number < SHOWN_EVIDENCE or line.startswith("looks like ")]
        table.add_row(one["cause"], residual, Text("\n".join([*([settings] if settings else []), *shown]), style="dim"))
    console.print(table)
    console.print()
    for reason in report["left_out"]:
        console.print(Text(f"left out  {reason}", style="yellow"))
    if report["fix"]:
        console.print(Text.assemble(("fix   ", "bold"), report["fix"]))
    console.print(Text.assemble(("next  ", "bold"), report["next"]))
    console.print()
