"""The sequential detectors over a stream in hand: batch statistics, or a plain series (docs/detection.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collector.errors import InputError
from klaxon.detecting import Detecting

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """Evidence a line, and the first alarm.

    answers: a dict a line: t, score (ln M, nats), alarm, slice, feature, started_at. ln_a: the threshold the score is held against.
    """

    answers: tuple[dict[str, Any], ...]
    first_alarm: dict[str, Any] | None
    ln_a: float
    learning: bool  # True: not one bet yet, silence says nothing
    refused: tuple[InputError, ...]

    def table(self) -> pa.Table:
        """The answers as Arrow; `slice` as JSON text."""
        import pyarrow as pa

        return pa.Table.from_pylist([{**row, "slice": json.dumps(row["slice"]) if row["slice"] else None} for row in self.answers])


def detect(lines: Iterable[Mapping[str, Any] | str] | str | Path, *, false_alarms: str = "1 per 30 days", cadence_seconds: float | None = None,
           latch: bool = True) -> Detected:
    """Run the detectors over lines (dicts, or JSON text; a path is read as JSONL) within a false-alarm budget.

    Args:
        cadence_seconds: time between batches, where lines have no `minute`.
        latch: `alarm` stays true after the first one.

    Raises:
        ConfigError: the budget cannot be read, or is too generous for the cadence.
        InputError: the file cannot be read, or no line is usable.
    """
    watching = Detecting(false_alarms, cadence_seconds=cadence_seconds, latch=latch)
    name, source = ("lines", lines) if not isinstance(lines, (str, Path)) else (str(lines), _read(Path(lines)))
    answers, refused = [], []
    for number, line in enumerate(source, 1):
        answer, error = watching.take(line if isinstance(line, str) else json.dumps(dict(line)), where=f"{name}, line {number}")
        if error is None:
            answers.append(answer)
        else:
            refused.append(error)
    if not answers:
        raise InputError(f"no usable line{f', the first: {refused[0]}' if refused else ''}", where=name)
    return Detected(answers=tuple(answers), first_alarm=watching.first_alarm, ln_a=watching.ln_a, learning=watching.learning, refused=tuple(refused))


def _read(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
