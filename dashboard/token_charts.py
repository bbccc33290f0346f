"""Charts of the Tokens page: a constant Vega-Lite specification each, and rows that change (dashboard/charts.py says why). Text from outside stands
in rows as data only; of what a model wrote nothing is drawn here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pandas as pd

from dashboard.launch import BLUE, GREY, VERMILLION
from dashboard.slice_words import short
from dashboard.token_words import EDGES, versions

_PICK = {"name": "pick", "select": {"type": "point", "fields": ["rollout"], "on": "click"}}
_SHADES = ["#0F5F94", BLUE, "#6FB4E0", "#B5D7EE", "#B9BEC6", "#F3C7A6", "#E8945A", VERMILLION, "#9C4500"]
"""Blue to orange over grey: the same order as the token view's, told apart by every kind of colour vision."""
_D = {"field": "d", "type": "quantitative", "title": "d = log q − log p, nats"}


@cache
def worst() -> dict[str, Any]:
    """Rows: rollout (picked by a click), label, value, order, picked and what the hover tells; one bar each."""
    y = {"field": "label", "type": "nominal", "title": None, "sort": {"field": "order", "op": "min"}, "axis": {"labelLimit": 190, "grid": False, "ticks": False}}
    x = {"field": "value", "type": "quantitative", "title": "shrunk mean |d|, nats", "scale": {"zero": True, "nice": True}, "axis": {"tickCount": 4, "format": ".2~g"}}
    hover = [{"field": "text", "type": "nominal", "title": "rollout"}, {"field": "replica", "type": "nominal", "title": "replica"},
             {"field": "versions", "type": "nominal", "title": "weight version"},
             *({"field": name, "type": "quantitative", "format": ".4~g", "title": title} for name, title in (
                 ("value", "shrunk mean |d|, nats"), ("mean_abs_d", "mean |d|, nats"), ("max_abs_d", "largest |d|, nats"))),
             {"field": "n_scored", "type": "quantitative", "format": ",.0f", "title": "scored tokens"},
             {"field": "at", "type": "temporal", "timeUnit": "utcyearmonthdatehoursminutesseconds", "title": "finished, UTC"}]
    return {"height": {"step": 25}, "params": [_PICK], "mark": {"type": "bar", "cornerRadiusEnd": 3, "cursor": "pointer"},
            "encoding": {"x": x, "y": y, "tooltip": hover, "color": {"condition": {"test": "datum.picked", "value": VERMILLION}, "value": BLUE},
                         "opacity": {"condition": {"test": "datum.picked", "value": 1}, "value": 0.75}}}


@cache
def along() -> dict[str, Any]:
    """d of each token by its place. Rows: row (own, span), x, d, engine, trainer, entropy, rank, version."""
    domain = [-edge for edge in reversed(EDGES)] + list(EDGES)
    x = {"field": "x", "type": "quantitative", "title": "token of the completion, counted from 0", "scale": {"nice": False, "zero": False}, "axis": {"grid": False, "tickMinStep": 1}}
    hover = [{"field": "x", "type": "quantitative", "title": "token"}, {**_D, "format": ".4~g"},
             {"field": "engine", "type": "quantitative", "format": ".4~g", "title": "engine, log p, nats"},
             {"field": "trainer", "type": "quantitative", "format": ".4~g", "title": "trainer, log q, nats"},
             {"field": "entropy", "type": "quantitative", "format": ".4~g", "title": "entropy, nats"}, {"field": "rank", "type": "nominal", "title": "rank"},
             {"field": "version", "type": "nominal", "title": "weight version"}]
    colour = {"field": "d", "type": "quantitative", "scale": {"type": "threshold", "domain": domain, "range": _SHADES}, "legend": None}
    return {"height": 190, "layer": [
        {"transform": [{"filter": "datum.row === 'span'"}], "mark": {"type": "rule", "strokeDash": [5, 4], "color": GREY, "strokeWidth": 1.4},
         "encoding": {"x": x, "tooltip": [{"field": "version", "type": "nominal", "title": "from here on weight version"}]}},
        {"transform": [{"filter": "datum.row === 'own'"}], "mark": {"type": "rule", "strokeWidth": 2.5},
         "encoding": {"x": x, "y": {**_D, "title": "d, nats", "axis": {"tickCount": 5, "format": ".2~g"}}, "y2": {"datum": 0}, "color": colour, "tooltip": hover}},
        {"transform": [{"filter": "datum.row === 'own'"}], "mark": {"type": "point", "filled": True, "size": 34, "opacity": 1},
         "encoding": {"x": x, "y": {**_D, "title": "d, nats"}, "color": colour, "tooltip": hover}}]}


def worst_rows(table: pd.DataFrame, chosen: str | None) -> pd.DataFrame:
    """Rows of `worst`."""
    names = [str(one) for one in table["request"]]
    return pd.DataFrame({
        "rollout": names, "text": [one[:8] for one in names], "label": [f"{one[:6]} · {short(replica)} · {tokens:,} tok" for one, replica, tokens in
                                                                       zip(names, table["replica"], table["n_tokens"], strict=True)],
        "value": table["badness"], "order": range(len(names)), "picked": [one == chosen for one in names], "replica": [short(one) for one in table["replica"]],
        "versions": [", ".join(map(str, one)) or "unknown" for one in table["versions"]], "mean_abs_d": table["mean_abs_d"], "max_abs_d": table["max_abs_d"],
        "n_scored": table["n_scored"], "at": 1000 * table["finished_at"]})


def along_rows(found: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of `along`; tokens without a d are left out."""
    first, version = int(found["first"]), versions(found)
    size = len(found["engine"])
    entropy, rank = found.get("entropy") or [None] * size, found.get("rank") or [None] * size
    own = [{"row": "own", "x": first + i, "d": found["d"][i], "engine": found["engine"][i], "trainer": found["trainer"][i], "entropy": entropy[i],
            "rank": "–" if rank[i] is None else str(rank[i]), "version": version[i] or "unknown"} for i in range(size) if found["d"][i] is not None]
    changes = [{"row": "span", "x": first + i - 0.5, "version": version[i]} for i in range(1, size) if version[i] != version[i - 1]]
    return pd.DataFrame([*own, *changes], columns=["row", "x", "d", "engine", "trainer", "entropy", "rank", "version"])
