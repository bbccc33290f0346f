"""A run drawn over the band of its reference runs: one HTML file that needs nothing else, one chart a metric, on the scale that is compared."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from collector.errors import ConfigError
from collector.sources.metrics.history import History
from detectors.departure import Verdict
from detectors.reference import Band
from detectors.trainer_metrics import of

WIDTH, HEIGHT, LEFT, BELOW = 760, 200, 70, 20
MOST_POINTS = 1000  # of one line
PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body{{font:14px system-ui,sans-serif;margin:2em;max-width:60em}} h2{{font-size:1em;margin:1.5em 0 .3em}} svg text{{font-size:11px;fill:#555}}
.band{{fill:#8ab4d8;opacity:.35}} .center{{stroke:#4a7aa8;stroke-dasharray:4 4;fill:none}} .run{{stroke:#222;fill:none}} .left .run{{stroke:#c0143c}}
.since{{stroke:#c0143c;stroke-dasharray:2 3}}</style>
<h1 style="font-size:1.2em">{title}</h1><p>Shaded: where the level of one more healthy run lies. Dashed: the middle of the reference runs.</p>
{charts}
"""
SCALES = {"level": "{}", "log": "log {}", "logit": "log-odds of {}"}


def draw(band: Band, run: History, verdicts: Sequence[Verdict], out: str) -> None:
    """Write the picture.

    Raises:
        ConfigError: the file cannot be written.
    """
    charts = "\n".join(_chart(band, run, verdict) for verdict in verdicts if verdict.judged)
    title = f"{run.name} against {len(band.runs)} reference run{'s' * (len(band.runs) > 1)}"
    try:
        Path(out).write_text(PAGE.format(title=html.escape(title), charts=charts), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror})") from None


def _chart(band: Band, run: History, verdict: Verdict) -> str:
    one, metric, series = band.metrics[verdict.metric], of(verdict.metric), run.series[verdict.metric]
    every = max(1, series.steps.size // MOST_POINTS)
    points = [(float(step), metric.value(value)) for step, value in zip(series.steps[::every], series.values[::every], strict=True)]
    points = [(x, y) for x, y in points if math.isfinite(y)]
    xs, ys = np.array([x for x, _ in points] + list(one.steps)), np.array([y for _, y in points] + [*one.low, *one.high])
    (x0, x1), (y0, y1) = (xs.min(), xs.max()), (ys.min(), ys.max())

    def place(pairs: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{LEFT + (x - x0) / max(x1 - x0, 1e-12) * (WIDTH - LEFT):.1f},{(1 - (y - y0) / max(y1 - y0, 1e-12)) * HEIGHT:.1f}" for x, y in pairs)

    around = [*zip(one.steps, one.high, strict=True), *reversed(list(zip(one.steps, one.low, strict=True)))]
    parts = [f'<polygon class="band" points="{place(around)}"/>', f'<polyline class="center" points="{place(zip(one.steps, one.center, strict=True))}"/>',
             f'<polyline class="run" points="{place(points)}"/>']
    if verdict.left and verdict.since_step is not None:
        top, bottom = (place([(verdict.since_step, y)]).split(",") for y in (y1, y0))
        parts.append(f'<line class="since" x1="{top[0]}" y1="{top[1]}" x2="{bottom[0]}" y2="{bottom[1]}"/>')
    parts += [f'<text x="0" y="10">{y1:.3g}</text>', f'<text x="0" y="{HEIGHT}">{y0:.3g}</text>',
              f'<text x="{LEFT}" y="{HEIGHT + BELOW - 4}">step {x0:.0f}</text>', f'<text x="{WIDTH}" y="{HEIGHT + BELOW - 4}" text-anchor="end">{x1:.0f}</text>']
    said = f"left {verdict.side} since step {verdict.since_step}" if verdict.left else "inside"
    scale = SCALES[metric.transform].format(verdict.metric)
    return (f'<section class="{"left" if verdict.left else "inside"}"><h2>{html.escape(verdict.metric)}: {said} '
            f'<small>({html.escape(scale)})</small></h2><svg viewBox="0 0 {WIDTH} {HEIGHT + BELOW}" role="img">{"".join(parts)}</svg></section>')
