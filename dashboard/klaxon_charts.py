"""Bars of shares: a constant Vega-Lite specification, and rows that change. Rows: label, order, value (a fraction), text, n."""

from __future__ import annotations

from functools import cache
from typing import Any

import pandas as pd

from dashboard.launch import ABOVE_NAMES, BLUE
from dashboard.slice_words import short

MOST_BARS = 16
FULL = 0.8  # a longer bar has its number inside
SHARES = (
    ("replica", "coverage", "Coverage by replica", "Share of each replica's served tokens in this window that were compared with the trainer, the least covered "
            "first. A replica at 0 % is one Klaxon does not see.", "replica", "compared / served tokens"),
    ("stratum", "sample_rate", "Sample rate and coverage by stratum", "Mean probability with which the sampler kept a rollout that was compared, by replica and prompt length in tokens: strata "
        "share the budget, so that long prompts and every replica are seen. On hover: the share of the stratum's tokens that was compared.", "stratum", "inclusion probability"),
)
"""What is drawn of the coverage: level, field, title, explanation, what a bar is, title of the x axis."""


@cache
def bars(what: str, x_title: str) -> dict[str, Any]:
    """One bar a line, from 0 to 100 %, with its number at the end."""
    y = {"field": "label", "type": "nominal", "title": what, "sort": {"field": "order", "op": "min"}, "axis": {"labelLimit": 170, "grid": False, **ABOVE_NAMES}}
    x = {"field": "value", "type": "quantitative", "title": x_title, "scale": {"domain": [0, 1], "clamp": True}, "axis": {"format": ".0%", "tickCount": 5}}
    hover = [{"field": "text", "type": "nominal", "title": what}, {"field": "value", "type": "quantitative", "format": ".1~%", "title": x_title},
             {"field": "n", "type": "quantitative", "format": ",.0f", "title": "tokens compared"},
             {"field": "seen", "type": "quantitative", "format": ",.0f", "title": "tokens served"},
             {"field": "covered", "type": "quantitative", "format": ".1~%", "title": "coverage (of a stratum: estimated)"}]
    return {"height": {"step": 30}, "layer": [
        {"mark": {"type": "bar", "color": BLUE, "height": 16, "tooltip": True}, "encoding": {"x": x, "y": y, "tooltip": hover}},
        *({"transform": [{"filter": f"datum.value {side} {FULL}"}],
           "mark": {"type": "text", "align": align, "dx": dx, "fontSize": 11, "fontWeight": 600, "color": colour},
           "encoding": {"x": x, "y": y, "text": {"field": "value", "type": "quantitative", "format": ".1~%"}}}
          for side, align, dx, colour in (("<=", "left", 5, BLUE), (">", "right", -5, "white")))]}


def shares(table: pd.DataFrame, *, level: str, field: str) -> pd.DataFrame:
    """Rows of `bars` out of the daemon's coverage: the smallest shares first, MOST_BARS of them."""
    part = table[(table["level"] == level) & table[field].notna()].sort_values(field).head(MOST_BARS)
    label = [short(one.replica) + (f" · {one.prompt}" if level == "stratum" else "") for one in part.itertuples()]
    return pd.DataFrame({"label": label, "text": label, "order": range(len(part)), "value": part[field].astype(float).tolist(),
                         "n": part["tokens_scored"].tolist(), "seen": part["tokens_seen"].tolist(), "covered": part["coverage"].astype(float).tolist()})
