"""`klaxon reference`: learn from trusted runs what the metrics should look like, and check another run against it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from collector.errors import ConfigError
from collector.sources.metrics.history import History
from detectors import departure
from detectors.reference import Band, learn
from klaxon.run_files import FRAMEWORK_HELP, choose, read_band, read_runs, series_of, tolerances

RUN_HELP = "JSONL file, W&B run folder, TensorBoard folder, or wandb:entity/project/run_id"
reference = typer.Typer(help="Bands from trusted runs (docs/reference-runs.md).", no_args_is_help=True)
Framework = Annotated[str, typer.Option(help=FRAMEWORK_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@reference.command("learn")
def learn_(runs: Annotated[list[str], typer.Argument(help=RUN_HELP)],
           out: Annotated[str, typer.Option("--out", "-o", help="The band file to write (JSON).")] = "band.json",
           metric: Annotated[list[str] | None, typer.Option(help="Only this metric (repeatable); else the standard ones every run logs.")] = None,
           tolerance: Annotated[list[str] | None, typer.Option(help="Least half-width of the band, 10% or reward=5% (repeatable). Needed with one run.")] = None,
           coverage: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Chance that one more healthy run's level stays in the band of a metric.")] = 0.99,
           framework: Framework = "auto", json_: AsJson = False) -> None:
    """Learn a band a metric from trusted runs. With one run the seed variance is unknown, and --tolerance stands in for it.

    \b
    Examples:
      klaxon reference learn runs/seed1 runs/seed2 runs/seed3 -o band.json
      klaxon reference learn metrics.jsonl --tolerance 10% -o band.json

    Exit codes: 0 written, 2 the runs cannot be read or are too few.
    """
    allowed = tolerances(tolerance or [])
    if len(runs) == 1 and not allowed:
        raise ConfigError("one run cannot say how much runs differ by chance (its seed variance is unknown): give more runs, or --tolerance 10%")
    histories = read_runs(runs, framework=framework)
    band = learn(series_of(histories), names=choose(histories.values(), metric or []), coverage=coverage, tolerance=allowed)
    try:
        Path(out).write_text(json.dumps(band.to_json()) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror})") from None
    if json_:
        typer.echo(json.dumps({"out": out, "runs": runs, "metrics": sorted(band.metrics), "left_out": dict(band.left_out),
                               "seed_variance_known": band.seed_variance_known, "notes": notes(band, histories)}))
        return
    console = Console()
    console.print(f"{out}: {len(band.metrics)} metrics from {len(runs)} run{'s' * (len(runs) > 1)}: {', '.join(band.metrics)}", highlight=False, soft_wrap=True)
    _say(console, notes(band, histories))


@reference.command("check")
def check_(run: Annotated[str, typer.Argument(help=RUN_HELP)],
           band: Annotated[str, typer.Option(help="The band file.")] = "band.json",
           alpha: Annotated[float, typer.Option(min=1e-6, max=0.5, help="Accepted chance to accuse a run that stays inside.")] = 0.01,
           html: Annotated[str, typer.Option(help="Also draw run and band into this HTML file.")] = "",
           framework: Framework = "auto", json_: AsJson = False) -> None:
    """Has a run left the band of its reference runs, and since which step?

    \b
    Examples:
      klaxon reference check runs/grpo-7b --band band.json
      klaxon reference check metrics.jsonl --band band.json --html out.html

    Exit codes: 0 inside, 1 a metric has left, 2 nothing usable.
    """
    learnt = read_band(band)
    histories = read_runs([run], framework=framework)
    found = departure.check(learnt, histories[run].series, alpha=alpha)
    if not any(verdict.judged for verdict in found):
        raise ConfigError(f"nothing of {run} can be judged by {band}: {found[0].metric}: {found[0].why}")
    if html:
        from klaxon.band_picture import draw

        draw(learnt, histories[run], found, html)
    left = [verdict for verdict in found if verdict.left]
    said = notes(learnt, histories)
    if json_:
        typer.echo(json.dumps({"run": run, "band": band, "alpha": alpha, "left": [verdict.metric for verdict in left], "notes": said,
                               "metrics": [_plain(asdict(verdict)) for verdict in found]}))
    else:
        _show(found, left, said, alpha, learnt)
    raise typer.Exit(1 if left else 0)


def notes(band: Band, histories: dict[str, History]) -> list[str]:
    """What a reader of the verdict must know."""
    said = []
    if not band.seed_variance_known:
        said.append(f"one reference run: its seed variance is unknown; the band is your tolerance ({band.tolerance}) around it")
    elif len(band.runs) < 4:
        said.append(f"{len(band.runs)} reference runs: few, so the band is wide; more runs narrow it")
    said += [f"{name} has no band: {why}" for name, why in band.left_out.items()]
    for name, history in histories.items():
        if history.refused:
            said.append(f"{name}: {len(history.refused)} lines refused, the first: {history.refused[0]}")
        said += [f"{name}: {count} values of {metric} are NaN or infinite, left out" for metric, count in history.nonfinite.items() if metric in band.metrics]
    return said


def _show(found: list[departure.Verdict], left: list[departure.Verdict], said: list[str], alpha: float, band: Band) -> None:
    console = Console()
    if left:
        head = f"The run left the band: {', '.join(verdict.metric for verdict in left)}."
    else:
        head = f"The run stayed within the band of {len(band.runs)} reference run{'s' * (len(band.runs) > 1)}."
    console.print(head, style="bold", highlight=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("metric", "verdict", "evidence", "steps judged"):
        table.add_column(column, overflow="fold")
    for verdict in found:
        words = (f"left {verdict.side}, since step {verdict.since_step} (sure at {verdict.at_step}), {verdict.excess:.2g} half-widths beyond the edge" if verdict.left
                 else verdict.why or "inside")
        evidence = f"{verdict.log_evidence:.1f} of {verdict.threshold:.1f}" if verdict.judged else "–"
        table.add_row(verdict.metric, words, evidence, str(verdict.judged))
    console.print(table, highlight=False)
    _say(console, said)
    console.print(f"Chance to accuse a run whose level stays inside: at most {alpha:g} over all metrics and steps.", style="dim", highlight=False, soft_wrap=True)


def _say(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(f"  · {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
