"""A run drawn over the band of its reference runs: one HTML file, one chart a metric, on the scale that is compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import altair as alt
import pandas as pd

from collector.errors import ConfigError
from collector.sources.metrics.history import History
from detectors.departure import Verdict
from detectors.reference import Band
from detectors.trainer_metrics import of

MOST_POINTS = 1000  # of one line


def draw(band: Band, run: History, verdicts: Sequence[Verdict], out: str) -> None:
    """Write the picture; the page loads vega from its usual address.

    Raises:
        ConfigError: the file cannot be written.
    """
    charts = [_chart(band, run, verdict) for verdict in verdicts if verdict.judged]
    try:
        alt.vconcat(*charts).properties(title=f"{run.name} against {len(band.runs)} reference run(s)").save(out, format="html")
    except OSError as error:
        raise ConfigError(f"{Path(out)}: cannot be written ({error.strerror})") from None


def _chart(band: Band, run: History, verdict: Verdict) -> alt.LayerChart:
    one, metric, series = band.metrics[verdict.metric], of(verdict.metric), run.series[verdict.metric]
    area = pd.DataFrame({"step": one.steps, "low": one.low, "high": one.high, "center": one.center})
    every = max(1, series.steps.size // MOST_POINTS)
    line = pd.DataFrame({"step": series.steps[::every], "value": [metric.value(x) for x in series.values[::every]]})
    scale = {"level": verdict.metric, "log": f"log {verdict.metric}", "logit": f"log-odds of {verdict.metric}"}[metric.transform]
    x, axis = alt.X("step:Q"), alt.Scale(zero=False)
    layers = [alt.Chart(area).mark_area(opacity=0.25).encode(x=x, y=alt.Y("low:Q", title=scale, scale=axis), y2="high:Q"),
              alt.Chart(area).mark_line(opacity=0.5, strokeDash=[4, 4]).encode(x=x, y=alt.Y("center:Q", scale=axis)),
              alt.Chart(line).mark_line(color="crimson" if verdict.left else "black", strokeWidth=1).encode(
                  x=x, y=alt.Y("value:Q", scale=axis), tooltip=["step", "value"])]
    if verdict.left:
        layers.append(alt.Chart(pd.DataFrame({"step": [verdict.since_step]})).mark_rule(color="crimson", strokeDash=[2, 2]).encode(x="step:Q"))
    said = f"left {verdict.side} since step {verdict.since_step}" if verdict.left else "inside"
    return alt.layer(*layers).properties(title=f"{verdict.metric}: {said}", width=640, height=180)
