"""`klaxon look`: what a file (or folder) of rollouts says by itself. No torch, no model, no engine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from collector.errors import InputError
from collector.records import Rollout
from klaxon.commands.rollout_files import PATH_HELP, AllowPickle, ConfigFile, FileFormat, TokenizerDir, limits_said, nothing_usable, read_contents, signals_of

if TYPE_CHECKING:
    from collector.sources.trainer_logprobs import TrainerWord


def look(
    file: Annotated[str, typer.Argument(help=PATH_HELP)],
    trainer: Annotated[str, typer.Option(help="JSONL of the trainer's own logprobs, joined by request id or by tokens")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="exit 2 when any line is refused")] = False,
    json_: Annotated[bool, typer.Option("--json", help="one JSON object instead of the report")] = False,
    false_alarms: Annotated[str, typer.Option(help="how many false alarms you accept")] = "1 per 30 days",
    format: FileFormat = "",
    tokenizer: TokenizerDir = "",
    allow_pickle: AllowPickle = False,
    config: ConfigFile = "",
) -> None:
    """Look at a file of rollouts: what is wrong, what is fine, what it cannot see.

    Needs no torch, no model and no engine.

    \b
    Examples:
      klaxon look rollouts.jsonl
      klaxon look outputs/token_exports --format prime-rl --trainer logprobs.jsonl
      tail -n 1000 rollouts.jsonl | klaxon look - --json

    Exit codes: 0 nothing wrong found, 1 mismatch, 2 nothing usable.
    """
    from detectors.config import DetectorsConfig
    from diagnosis.look import look as examine
    from diagnosis.signatures import library_of
    from klaxon.commands.look_text import print_report, report_json
    from klaxon.spine_config import DaemonConfig

    detectors = DetectorsConfig.model_validate({"false_alarms": _readable(false_alarms)})
    trains, library = signals_of(config), library_of(_signatures(config))
    contents = read_contents(file, format=format, tokenizer=tokenizer, allow_pickle=allow_pickle)
    refused = contents.refused
    if not contents.rollouts:
        raise nothing_usable(file, contents)
    rollouts = with_trainer(contents.rollouts, trainer, refused) if trainer else contents.rollouts
    report = examine(rollouts, config=detectors, batch_seconds=DaemonConfig().batch_seconds, signals_config=trains, library=library)
    code = 2 if strict and refused else int(report.verdict == "mismatch")
    if json_:
        print(json.dumps(report_json(report, file=file, refused=refused, exit_code=code) | {"left_out": contents.counts, "limits": limits_said(trains, config)}, allow_nan=False))
    else:
        print_report(report, file=file, refused=refused, strict=strict, notes=contents.notes,
                     limits=limits_said(trains, config)["text"] if report.signals else "")
    raise typer.Exit(code)


def _signatures(config: str) -> str:
    """[diagnosis] signatures of the config, "" without one."""
    from klaxon.config import load_config

    return load_config(config).diagnosis.signatures if config else ""


def with_trainer(rollouts: list[Rollout], trainer: str, refused: list[InputError]) -> list[Rollout]:
    """The rollouts with the trainer's word on them; refused lines are added to `refused`.

    Raises:
        InputError: no line of the trainer's file speaks of these rollouts.
    """
    from collector.join import join_all
    from collector.sources.trainer_logprobs import read_trainer_file

    sides: list[TrainerWord] = []
    for item in read_trainer_file(trainer):
        (refused if isinstance(item, InputError) else sides).append(item)
    joined, mismatched, counts = join_all(rollouts, sides)
    refused += mismatched
    if unmatched := counts["trainer_unmatched"]:
        refused.append(InputError(f"{unmatched} of {len(sides)} lines speak of no rollout of this file", where=trainer))
    if not counts["trainer_joined"]:
        raise InputError(f"none of its {len(sides)} lines speaks of these rollouts: request_id, or prompt_token_ids and "
                         "token_ids, must be those of the rollout file", where=trainer)
    return joined


def read_file(file: str) -> tuple[list[Rollout], list[InputError]]:
    """Every rollout of the file and every refused line.

    Raises:
        InputError: the file cannot be read at all.
    """
    contents = read_contents(file)
    return contents.rollouts, contents.refused


def _readable(false_alarms: str) -> str:
    from detectors.budget import parse_period_seconds

    parse_period_seconds(false_alarms)
    return false_alarms
