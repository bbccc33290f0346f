"""`klaxon compare`: are these two runs the same within noise?"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from collector.sources.metrics.history import History
from detectors.compare import Answer
from detectors.compare import compare as work_out
from detectors.trainer_metrics import of
from klaxon.run_files import FRAMEWORK_HELP, choose, read_runs, series_of, tolerances

RUN_HELP = "JSONL file, W&B run folder, TensorBoard folder, or wandb:entity/project/run_id"
ONE_EACH = "one run a side: seeds are unknown, so \"different\" says that these two runs differ, not that the change did it"


def compare(a: Annotated[str, typer.Argument(help=RUN_HELP)], b: Annotated[str, typer.Argument(help="The other run, of the same kinds.")],
            more_a: Annotated[list[str] | None, typer.Option("--a", help="One more run of the first side (repeatable).")] = None,
            more_b: Annotated[list[str] | None, typer.Option("--b", help="One more run of the second side (repeatable).")] = None,
            metric: Annotated[list[str] | None, typer.Option(help="Only this metric (repeatable); else the standard ones every run logs.")] = None,
            margin: Annotated[list[str] | None, typer.Option(help="A difference up to this counts as the same: 10%, or reward=5% (repeatable).")] = None,
            alpha: Annotated[float, typer.Option(min=1e-6, max=0.5, help="Accepted chance of a wrong answer, over all metrics.")] = 0.05,
            framework: Annotated[str, typer.Option(help=FRAMEWORK_HELP)] = "auto",
            json_: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False) -> None:
    """Are two runs (V0 and V1, before and after an upgrade) the same within noise? Per metric: same, different, or cannot tell and how much more is needed.

    \b
    Examples:
      klaxon compare runs/v0 runs/v1
      klaxon compare runs/v0 runs/v1 --a runs/v0b --b runs/v1b --margin 10%

    Exit codes: 0 no metric is different, 1 one is, 2 nothing usable.
    """
    sides = [a, *(more_a or [])], [b, *(more_b or [])]
    histories = read_runs([*sides[0], *sides[1]], framework=framework)
    series = series_of(histories)
    answers = work_out([series[run] for run in sides[0]], [series[run] for run in sides[1]], names=choose(histories.values(), metric or []),
                       alpha=alpha, margin={"": 0.1} | tolerances(margin or [], option="--margin"))
    said = _notes(histories, answers)
    if json_:
        typer.echo(json.dumps({"a": sides[0], "b": sides[1], "alpha": alpha, "verdict": verdict(answers), "notes": said,
                               "metrics": [_plain(answer) for answer in answers]}))
    else:
        _show(answers, said, alpha)
    raise typer.Exit(1 if any(answer.answer == "different" for answer in answers) else 0)


def verdict(answers: list[Answer]) -> str:
    """The answer for all metrics at once, in one sentence."""
    different = [answer.metric for answer in answers if answer.answer == "different"]
    open_ = [answer.metric for answer in answers if answer.answer == "cannot tell"]
    if different:
        return f"Different in {', '.join(different)}."
    if open_:
        same = f"; the other {len(answers) - len(open_)} are the same" if len(open_) < len(answers) else ""
        return f"No difference found, but {', '.join(open_)} cannot be told yet{same}."
    return f"The same within noise in all {len(answers)} metrics."


def words(answer: Answer) -> str:
    """One metric in plain words."""
    if answer.answer == "cannot tell":
        unit = "runs a side" if max(answer.runs) > 1 else "steps"
        more = f"; about {_times(answer.times_more)} the {unit} would settle it" if answer.times_more else ""
        return f"cannot tell{f': {answer.why}' if answer.why else ''}{more}"
    if answer.answer == "same":
        return "same: any difference is smaller than the margin"
    return f"different: the second is {'higher' if answer.difference > 0 else 'lower'}, {abs(answer.effect):.2g} of a step's own scatter"


def span(answer: Answer) -> str:
    """The difference with its interval."""
    if not math.isfinite(answer.difference):
        return "–"
    known = math.isfinite(answer.high - answer.low)
    if (ratio := answer.ratio) is not None:
        return f"× {ratio[0]:.3g}" + (f" ({ratio[1]:.3g} to {ratio[2]:.3g})" if known else " (no interval)")
    unit = " log-odds" if of(answer.metric).transform == "logit" else ""
    return f"{answer.difference:+.3g}{unit}" + (f" ({answer.low:+.3g} to {answer.high:+.3g})" if known else " (no interval)")


def _times(value: float) -> str:
    return f"{value:.1f} times" if value < 10 else f"{value:.0f} times" if value < 1000 else "over 1000 times"


def _notes(histories: dict[str, History], answers: list[Answer]) -> list[str]:
    said = [ONE_EACH] if answers and max(answers[0].runs) == 1 else []
    for name, history in histories.items():
        if history.refused:
            said.append(f"{name}: {len(history.refused)} lines refused, the first: {history.refused[0]}")
        said += [f"{name}: {count} values of {metric} are NaN or infinite, left out" for metric, count in history.nonfinite.items()
                 if metric in {answer.metric for answer in answers}]
    return said


def _plain(answer: Answer) -> dict[str, Any]:
    row = {**asdict(answer), "ratio": answer.ratio, "words": words(answer)}
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()} | {
        "ratio": [value if math.isfinite(value) else None for value in answer.ratio] if answer.ratio else None}


def _show(answers: list[Answer], said: list[str], alpha: float) -> None:
    console = Console()
    console.print(verdict(answers), style="bold", highlight=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("metric", "second against first", "answer", "steps"):
        table.add_column(column, overflow="fold")
    for answer in answers:
        table.add_row(answer.metric, span(answer), words(answer), str(answer.steps))
    console.print(table, highlight=False)
    for line in said:
        console.print(f"  · {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Intervals hold together with {1 - alpha:.0%} for a finished pair of runs looked at once; to watch a live run use `klaxon reference`.",
                  style="dim", highlight=False, soft_wrap=True)
