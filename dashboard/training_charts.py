"""Charts against the trainer's step, and throughput against time: constant Vega-Lite specifications, and rows that change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd

from dashboard import trainer_names
from dashboard.launch import ABOVE_NAMES, BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION
from dashboard.slice_charts import _TIME
from dashboard.words import number


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One metric of the trainer: its standard name, its unit, and what it tells."""

    name: str
    title: str
    unit: str
    about: str


WATCHED = (
    Watched(name="reward", title="Reward", unit="reward, own units",
            about="The trainer's mean reward. A mismatch shows here late, or not at all; a sudden jump is more often a leak or a hacked verifier."),
    Watched(name="kl", title="KL of the update", unit="nats a token",
            about="Current policy against the one that generated, as the trainer logs it: it holds the engine's mismatch, the staleness and the step itself together."),
    Watched(name="kl_ref", title="KL to the reference model", unit="nats a token",
            about="Current policy against the reference model, as the trainer logs it; it grows with training, a burst is an explosion."),
    Watched(name="clip_rate", title="Clip rate", unit="share of tokens",
            about="Share of tokens the trainer's clip or mask acts on. Mismatch alone raises it; near 0 for long, the weights may not move."),
    Watched(name="entropy", title="Entropy", unit="nats a token",
            about="Entropy of the policy: falling to 0 is collapse, rising without end is noise. The healthy floor of |d| falls with it."),
    Watched(name="response_length", title="Length", unit="tokens a response",
            about="Mean length of a response. Long contexts are where position-dependent faults live; a jump may be a lost stop token."),
    Watched(name="grad_norm", title="Gradient norm", unit="norm, own units",
            about="Norm of the gradient before clipping: spikes follow batches with large importance weights."),
    Watched(name="loss", title="Loss", unit="loss, own units", about="The policy loss. Its level means little in RL; a step or a value that is no number does."),
)
NAMES = tuple(name for watched in WATCHED for name in trainer_names.names(watched.name))


@cache
def against_step(unit: str) -> dict[str, Any]:
    """Rows: row (line, band), step, value, low, high, center, source. Green: where one more run of the reference kind lies."""
    x = {"field": "step", "type": "quantitative", "title": "trainer's step", "scale": {"zero": False, "nice": False}, "axis": {"grid": False, "tickCount": 6, "format": ",.0f"}}
    y = {"field": "value", "type": "quantitative", "title": unit, "scale": {"zero": False, "nice": True}, "axis": {"tickCount": 4, "format": ",.4~g"}}

    def only(row: str) -> list[dict[str, str]]:
        return [{"filter": f"datum.row === '{row}'"}]

    hover = [{"field": "step", "type": "quantitative", "title": "step"}, {"field": "value", "type": "quantitative", "format": ".4~g", "title": unit},
             {"field": "low", "type": "quantitative", "format": ".4~g", "title": "lowest behind this point"},
             {"field": "high", "type": "quantitative", "format": ".4~g", "title": "highest behind this point"}, {"field": "source", "type": "nominal"}]
    detail = {"field": "source", "type": "nominal"}
    return {"height": 190, "layer": [
        {"transform": only("band"), "mark": {"type": "area", "opacity": 0.22, "color": GREEN}, "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}},
        {"transform": only("band"), "mark": {"type": "line", "strokeWidth": 1.3, "color": GREEN, "strokeDash": [5, 4]}, "encoding": {"x": x, "y": {**y, "field": "center"}}},
        {"transform": only("line"), "mark": {"type": "area", "opacity": 0.22, "color": SKY}, "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "detail": detail}},
        {"transform": only("line"), "mark": {"type": "line", "strokeWidth": 2, "color": BLUE, "point": {"size": 12, "filled": True}}, "encoding": {"x": x, "y": y, "detail": detail}},
        {"transform": only("line"), "mark": {"type": "point", "size": 220, "opacity": 0, "filled": True}, "encoding": {"x": x, "y": y, "tooltip": hover}}]}


@cache
def against_time(unit: str, *, orange: bool = False) -> dict[str, Any]:
    """Rows: at (ms), value."""
    colour = ORANGE if orange else BLUE
    x = {"field": "at", **_TIME}
    y = {"field": "value", "type": "quantitative", "title": unit, "scale": {"zero": True, "nice": True}, "axis": {"tickCount": 4, "format": ",.4~g", "minExtent": 44}}
    hover = [{"field": "at", "type": "temporal", "timeUnit": "utcyearmonthdatehoursminutesseconds", "title": "until, UTC"},
             {"field": "value", "type": "quantitative", "format": ",.4~g", "title": unit}]
    return {"height": 185, "layer": [
        {"mark": {"type": "line", "strokeWidth": 2, "color": colour, "point": {"size": 12, "filled": True, "color": colour}}, "encoding": {"x": x, "y": y}},
        {"mark": {"type": "point", "size": 220, "opacity": 0, "filled": True}, "encoding": {"x": x, "y": y, "tooltip": hover}}]}


COMPARED = {"same": (GREEN, "circle"), "different": (VERMILLION, "diamond"), "cannot tell": (GREY, "square")}
"""Answer of a comparison → colour and shape."""
_FAR = 5.0  # margins; what lies beyond is drawn at the edge


@cache
def differences() -> dict[str, Any]:
    """Rows of `compared`. Shaded: differences that count as none."""
    x = {"type": "quantitative", "title": "difference, in units of the margin", "scale": {"domain": [-_FAR, _FAR], "clamp": True}, "axis": {"tickCount": 5, "format": "+.2~g"}}
    y = {"field": "label", "type": "nominal", "title": "metric", "sort": None, "axis": {"labelLimit": 150, "grid": False, **ABOVE_NAMES}}
    scale = {"domain": list(COMPARED), "range": [colour for colour, _ in COMPARED.values()]}
    legend = {"orient": "top", "title": None}
    colour = {"field": "answer", "type": "nominal", "scale": scale, "legend": legend}
    shape = {"field": "answer", "type": "nominal", "scale": {"domain": list(COMPARED), "range": [mark for _, mark in COMPARED.values()]}, "legend": legend}
    hover = [{"field": name, "type": "nominal", "title": said} for name, said in (("label", "metric"), ("words", "answer"), ("said", "second against first"))]
    return {"height": {"step": 28}, "layer": [
        {"mark": {"type": "rect", "color": GREEN, "opacity": 0.1}, "encoding": {"x": {"datum": -1, **x}, "x2": {"datum": 1}, "y": y}},
        {"mark": {"type": "rule", "color": GREY, "strokeDash": [2, 3]}, "encoding": {"x": {"datum": 0, **x}}},
        {"mark": {"type": "rule", "strokeWidth": 3, "opacity": 0.5}, "encoding": {"x": {"field": "low", **x}, "x2": {"field": "high"}, "y": y, "color": colour}},
        {"mark": {"type": "point", "filled": True, "size": 130, "opacity": 1}, "encoding": {"x": {"field": "value", **x}, "y": y, "color": colour, "shape": shape, "tooltip": hover}}]}


def compared(report: Mapping[str, Any]) -> pd.DataFrame:
    """One row a metric of a comparison: label, answer, words, said (the difference in its own unit), value, low, high (margins). Without an
    interval a metric is left out of the picture by its missing numbers."""
    rows = []
    for one in report.get("metrics") or ():
        margin = one.get("margin") or math.nan
        low, high = (math.nan if one.get(edge) is None else min(max(one[edge] / margin, -_FAR), _FAR) for edge in ("low", "high"))
        value = math.nan if one.get("difference") is None else min(max(one["difference"] / margin, -_FAR), _FAR)
        ratio = one.get("ratio")
        said = f"× {number(ratio[0])} ({number(ratio[1])} to {number(ratio[2])})" if ratio else f"{number(one.get('difference'))} ({number(one.get('low'))} to {number(one.get('high'))})"
        rows.append({"label": one["metric"], "answer": one["answer"], "words": one["words"], "said": said, "value": value, "low": low, "high": high, "steps": one.get("steps")})
    return pd.DataFrame(rows, columns=["label", "answer", "words", "said", "value", "low", "high", "steps"])


def found(table: pd.DataFrame, watched: Watched) -> pd.DataFrame:
    """The metric's rows under the first of its names that is there."""
    part = table[table["value"].notna()]
    return part[part["name"] == trainer_names.first(watched.name, part["name"])].sort_values(["source", "step"])


def rows(part: pd.DataFrame, band: Mapping[str, Any] | None) -> pd.DataFrame:
    """Rows of `against_step`: the run's, and of the band what lies beside it."""
    line = pd.DataFrame({"row": "line", "step": part["step"].astype(float), "value": part["value"], "low": part["value_min"], "high": part["value_max"],
                         "source": part["source"]})
    if not band:
        return line
    first, last = float(part["step"].min()), float(part["step"].max())
    margin = max((last - first) * 0.05, 1.0)
    beside = pd.DataFrame({"row": "band", "step": band["steps"], "low": band["low"], "high": band["high"], "center": band["center"]})
    beside = beside[(beside["step"] >= first - margin) & (beside["step"] <= last + margin)]
    return pd.concat([line, beside], ignore_index=True) if len(beside) else line


def verdict(part: pd.DataFrame, band: Mapping[str, Any] | None) -> str:
    """The newest value, and where it lies against the band, in words."""
    newest = part.loc[part["step"].idxmax()]
    said = f"Step {int(newest['step']):,}: {number(float(newest['value']))}"
    if not band or not band.get("steps"):
        return f"{said}."
    step = float(newest["step"])
    if not band["steps"][0] <= step <= band["steps"][-1]:
        return f"{said}; the band ends at step {band['steps'][-1]:,.0f} and does not judge this one."
    low, high = _at(band["steps"], band["low"], step), _at(band["steps"], band["high"], step)
    where = "inside" if low <= newest["value"] <= high else "above" if newest["value"] > high else "below"
    return f"{said}, {where} the band ({number(low)} to {number(high)})."


def _at(steps: list[float], values: list[float], step: float) -> float:
    """Linear in between, as the daemon judges it."""
    for place in range(len(steps) - 1):
        if steps[place] <= step <= steps[place + 1]:
            share = (step - steps[place]) / ((steps[place + 1] - steps[place]) or math.inf)
            return values[place] + share * (values[place + 1] - values[place])
    return values[-1]
