"""What the demo shows while it runs: one line for everything that happened, and a live bar under them on a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

TELL_SECONDS = 15.0
"""How often a long wait is told where no live bar can be drawn."""


class Screen:
    """Progress on `console`. As a context manager it owns the live bar."""

    def __init__(self, console: Console) -> None:
        self._console, self._began = console, time.monotonic()
        self._progress = Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24),
                                  TextColumn("{task.fields[state]}"), TimeElapsedColumn(), console=console, transient=True)
        self._steps: TaskID | None = None

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str, style: str = "") -> None:
        """One line, with the time since the start."""
        passed = int(time.monotonic() - self._began)
        self._console.print(f"{passed // 60:3d}:{passed % 60:02d}  {text}", style=style, markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def wait(self, text: str, *, typical_seconds: float) -> Iterator[Waiting]:
        """A wait of known typical length, as a bar of its own."""
        self.say(f"{text} (about {typical_seconds:.0f} s)")
        task = self._progress.add_task(text, total=typical_seconds, state="")
        waiting = Waiting(self, task, text)
        try:
            yield waiting
        finally:
            self._progress.remove_task(task)

    def advance(self, task: TaskID, seconds: float) -> None:
        """Move a waiting bar."""
        self._progress.update(task, completed=seconds)

    def step(self, row: Mapping[str, Any], total: int | None, klaxon: Mapping[str, Any] | None) -> None:
        """One GRPO step of the trainer, beside what Klaxon knows."""
        number = row["step"] + 1
        of = f"/{total}" if total and number <= total else ""
        line = (f"step {number}{of}  reward {row['reward']:.2f}  clip rate {row['clip_rate']:.3f}  "
                f"mean |d| {row['mean_abs_d']:.4f} nats  {row['step_seconds']:.1f} s")
        self.say(line + watching(klaxon))
        if self._steps is None:
            self._steps = self._progress.add_task("GRPO", total=total, state="")
        self._progress.update(self._steps, completed=number, state=f"step {number}{of}, reward {row['reward']:.2f}")


class Waiting:
    """One wait on the screen."""

    def __init__(self, screen: Screen, task: TaskID, text: str) -> None:
        self._screen, self._task, self._text, self._told = screen, task, text, 0.0

    def __call__(self, seconds: float) -> None:
        """Tell how long it has been waiting by now."""
        self._screen.advance(self._task, seconds)
        if seconds - self._told >= TELL_SECONDS:
            self._told = seconds
            self._screen.say(f"… {self._text}: {seconds:.0f} s")


def watching(status: Mapping[str, Any] | None) -> str:
    """What Klaxon has seen, for the end of a step's line."""
    if status is None:
        return ""
    evidence = status.get("ln_m")
    shown = "" if evidence is None else f", evidence {evidence:+.1f} of {status['ln_a']:.1f}"
    return f"  ·  Klaxon: {status['counts'].get('scored', 0)} rollouts scored{shown}"
