"""`klaxon detect`: the sequential detectors on a stream of batch statistics or plain metrics, no daemon needed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Annotated, TextIO

import typer

from collector.errors import ConfigError, Unavailable
from klaxon.detecting import Detecting, parse_cadence_seconds

SHOWN_REFUSALS = 20


def detect(file: Annotated[str, typer.Argument(help="Batch JSONL or plain series (docs/detection.md); - is standard input.")] = "-",
           false_alarms: Annotated[str, typer.Option(help="The false alarms you accept.")] = "1 per 30 days",
           cadence: Annotated[str | None, typer.Option(help='Time between batches, e.g. "2 min"; needed where lines have no `minute`.')] = None,
           no_latch: Annotated[bool, typer.Option("--no-latch", help="`alarm` says whether M is above A at this line; by default it stays true after the first.")] = False,
           json_: Annotated[bool, typer.Option("--json", help="The summary at the end, too, as one JSON object on standard error.")] = False) -> None:
    """Print one JSON line for every input line: evidence, alarm, slice, feature, first changed batch.

    \b
    Examples:
      klaxon detect batches.jsonl --cadence '2 min'
      tail -f series.jsonl | klaxon detect - --cadence '2 min' --false-alarms '1 per 7 days'

    Exit codes: 0 no alarm, 1 an alarm, 2 nothing usable.
    """
    watching = Detecting(false_alarms, cadence_seconds=None if cadence is None else parse_cadence_seconds(cadence), latch=not no_latch)
    with ExitStack() as stack:
        try:
            source = sys.stdin if file == "-" else stack.enter_context(open(file, encoding="utf-8", errors="replace"))
        except OSError as error:
            raise Unavailable(f"{file}: cannot be read ({error.strerror})") from None
        try:
            _watch(watching, source, "standard input" if file == "-" else file)
        except KeyboardInterrupt:
            _summary(watching, json_)
            raise
    _summary(watching, json_)
    if not watching.used:
        raise ConfigError(f"{file}: no usable line")
    raise typer.Exit(1 if watching.first_alarm is not None else 0)


def _watch(watching: Detecting, source: TextIO, name: str) -> None:
    for number, text in _lines(source):
        answer, error = watching.take(text, where=f"{name}, line {number}")
        print(json.dumps(answer), flush=True)
        if error is not None and sum(watching.refused.values()) <= SHOWN_REFUSALS:
            print(f"klaxon: refused: {error}", file=sys.stderr)
        while watching.notices:
            print(f"klaxon: {watching.notices.pop(0)}", file=sys.stderr)


def _lines(source: TextIO) -> Iterator[tuple[int, str]]:
    for number, text in enumerate(iter(source.readline, ""), start=1):
        if text.strip():
            yield number, text


def _summary(watching: Detecting, as_json: bool) -> None:
    refused = sum(watching.refused.values())
    found = {"lines": watching.used, "refused": dict(watching.refused), "ln_a": watching.ln_a, "learning": watching.learning,
             "alarm": watching.first_alarm}
    if as_json:
        print(json.dumps(found), file=sys.stderr)
        return
    text = f"{watching.used} lines used, {refused} refused" + (f" ({', '.join(f'{k} {n}' for k, n in watching.refused.items())})" if refused else "")
    first = watching.first_alarm
    state = "still learning what normal looks like" if watching.learning else "no alarm"
    verdict = f"alarm at t {first['t']}: {first['feature']}, slice {first['slice']}, since t {first['started_at']}" if first else state
    print(f"klaxon: {text}; threshold ln A = {watching.ln_a:.1f}; {verdict}", file=sys.stderr)
