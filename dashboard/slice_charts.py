"""Charts of slices: a constant Vega-Lite specification each, and rows that change (dashboard/charts.py says why).

A mark carries `slice` (text as in the page's address); a click on it picks that slice. Values are mean |d|, nats; times ms since 1970.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd
import pyarrow as pa

from dashboard.launch import ABOVE_NAMES, BLUE, GREEN, GREY, VERMILLION
from dashboard.slice_words import short, write

VALUE = "mean |d| per token, nats"
SMALLEST = 1e-7  # a log scale has no zero
_PICK = {"name": "pick", "select": {"type": "point", "fields": ["slice"], "on": "click"}}
_TIME = {"type": "temporal", "title": "time, UTC", "scale": {"type": "utc"},
         "axis": {"grid": False, "labelOverlap": True, "tickCount": 5,
                  "labelExpr": "utcFormat(datum.value, utcseconds(datum.value) ? '%H:%M:%S' : "
                               "utchours(datum.value) || utcminutes(datum.value) ? '%H:%M' : '%d %b')"}}
_HOVER = [{"field": "text", "type": "nominal", "title": "slice"}, {"field": "value", "type": "quantitative", "format": ".4~g", "title": VALUE},
          {"field": "low", "type": "quantitative", "format": ".4~g", "title": "− 2 standard errors"},
          {"field": "high", "type": "quantitative", "format": ".4~g", "title": "+ 2 standard errors"},
          {"field": "n", "type": "quantitative", "format": ",.0f", "title": "tokens"}]
_WHEN = {"field": "at", "type": "temporal", "timeUnit": "utcyearmonthdatehoursminutesseconds", "title": "until, UTC"}
_COLOUR = {"field": "value", "type": "quantitative", "scale": {"type": "log", "scheme": "viridis"},
           "legend": {"title": VALUE, "orient": "top", "format": ".2~g", "gradientLength": 220, "tickCount": 4, "labelOverlap": True, "titleLimit": 260}}


def _only(row: str) -> list[dict[str, str]]:
    return [{"filter": f"datum.row === '{row}'"}]


@cache
def small() -> dict[str, Any]:
    """One replica over time with its band of two standard errors; grey: all replicas together. Rows `frame` give all the same axes."""
    x = {"field": "at", **_TIME, "axis": {**_TIME["axis"], "tickCount": 3}}
    y = {"field": "value", "type": "quantitative", "title": "mean |d|, nats", "scale": {"zero": True, "nice": True}, "axis": {"tickCount": 3, "format": ".2~g", "titlePadding": 4}}
    return {"height": 170, "layer": [
        {"transform": _only("frame"), "mark": {"type": "point", "opacity": 0, "tooltip": None}, "encoding": {"x": x, "y": y}},
        {"transform": _only("own"), "mark": {"type": "area", "opacity": 0.2, "color": BLUE},
         "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}},
        {"transform": _only("all"), "mark": {"type": "line", "strokeWidth": 1.5, "color": GREY, "strokeDash": [4, 3]}, "encoding": {"x": x, "y": y}},
        {"transform": _only("own"), "mark": {"type": "line", "strokeWidth": 2, "color": BLUE, "point": {"size": 12, "filled": True}}, "encoding": {"x": x, "y": y}},
        {"transform": _only("own"), "mark": {"type": "point", "size": 220, "opacity": 0, "filled": True},
         "encoding": {"x": x, "y": y, "tooltip": [_WHEN, *_HOVER]}}]}


@cache
def heat_time(what: str) -> dict[str, Any]:
    """Rows: one a cell, from `at0` to `at`; `label` is its line, `order` the lines' order, the first at the bottom."""
    return {"height": {"step": 44}, "params": [_PICK], "mark": {"type": "rect", "cursor": "pointer", "strokeWidth": 0.4},
            "encoding": {
                "x": {"field": "at0", **_TIME}, "x2": {"field": "at"},
                "y": {"field": "label", "type": "nominal", "title": what, "sort": {"field": "order", "order": "descending"}, "axis": {"labelLimit": 130, **ABOVE_NAMES}},
                "color": _COLOUR, "tooltip": [_WHEN, *_HOVER]}}


@cache
def heat_grid(x_title: str, y_title: str) -> dict[str, Any]:
    """Rows: one a cell of two ordered keys, `x` and `label`."""
    return {"height": {"step": 26}, "params": [_PICK], "mark": {"type": "rect", "cursor": "pointer"},
            "encoding": {
                "x": {"field": "x", "type": "ordinal", "title": x_title, "sort": {"field": "x_order"}, "axis": {"labelAngle": 0, "labelOverlap": True}},
                "y": {"field": "label", "type": "nominal", "title": y_title, "sort": {"field": "order", "order": "descending"}, "axis": {"labelLimit": 130, "labelOverlap": True, **ABOVE_NAMES}},
                "color": _COLOUR, "tooltip": _HOVER}}


@cache
def dots(what: str) -> dict[str, Any]:
    """One line a value of the key: its mean with two standard errors to either side; the dashed line is the healthy floor."""
    y = {"field": "label", "type": "nominal", "title": what, "sort": {"field": "order", "op": "min"}, "axis": {"labelLimit": 210, "grid": False, **ABOVE_NAMES}}
    x = {"type": "quantitative", "title": VALUE, "scale": {"zero": True, "nice": True}, "axis": {"tickCount": 5, "format": ".2~g"}}
    colour = {"condition": {"test": "datum.picked", "value": VERMILLION}, "value": BLUE}
    return {"height": {"step": 32}, "layer": [
        {"transform": _only("limit"), "mark": {"type": "rule", "color": GREEN, "strokeDash": [6, 4], "strokeWidth": 1.6},
         "encoding": {"x": {"field": "value", **x}, "tooltip": [{"field": "text", "type": "nominal", "title": "line"}, _HOVER[1]]}},
        {"transform": _only("own"), "mark": {"type": "rule", "strokeWidth": 3, "opacity": 0.45},
         "encoding": {"x": {"field": "low", **x}, "x2": {"field": "high"}, "y": y, "color": colour}},
        {"transform": _only("own"), "params": [_PICK], "mark": {"type": "point", "filled": True, "size": 130, "opacity": 1, "cursor": "pointer"},
         "encoding": {"x": {"field": "value", **x}, "y": y, "color": colour, "tooltip": _HOVER,
                      "shape": {"condition": {"test": "datum.picked", "value": "diamond"}, "value": "circle"}}}]}


def cells(table: pd.DataFrame, key: str, *, order: Mapping[str, int] | None = None, picked: str | None = None) -> pd.DataFrame:
    """Rows of any of these charts out of the daemon's breakdown: label, value, low, high, n, slice, text, order, picked, at, at0."""
    keys = [None if value is None or value != value else str(value) for value in table[key]]
    order = order or {}
    made = pd.DataFrame({
        "row": "own", "label": [short(one) for one in keys], "text": [short(one) for one in keys], "n": table["n_tokens"].astype(float),
        "value": table["mean_abs_d"].clip(lower=SMALLEST), "slice": ["" if one is None else write(key, one) for one in keys],
        "order": [order.get(one or "", -1) for one in keys], "picked": [one is not None and one == picked for one in keys]})
    error = 2 * table["mean_abs_d_se"].fillna(0.0)
    made["low"], made["high"] = (table["mean_abs_d"] - error).clip(lower=0.0), table["mean_abs_d"] + error
    made["at"] = 1000 * table["at"]
    made["at0"] = made["at"] - _step(made["at"])
    return made


def by_lag(table: pd.DataFrame, *, most: int, picked: str | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The breakdown by version and lag, of the `most` newest versions, and its rows of `heat_grid`."""
    table = table.dropna(subset=["version", "lag"])
    table = table[table["version"].astype(str).str.isdecimal()]
    newest = sorted({int(one) for one in table["version"]})[-most:]
    table = table[table["version"].astype(int).isin(newest)]
    rows = cells(table, "version", order={str(one): one for one in newest}, picked=picked)
    rows["x"], rows["x_order"] = table["lag"], table["lag"].astype(float)
    rows["text"] = [f"version {one}, lag {lag}" for one, lag in zip(table["version"], table["lag"], strict=True)]
    return table, rows


def in_turn(turns: pd.Series) -> dict[str, int]:
    """Turns by number, names after them: each with its place."""
    names = sorted(map(str, turns), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    return {name: number for number, name in enumerate(names)}


def _step(at_ms: pd.Series) -> float:
    """The width of a window, ms: the smallest step between neighbours."""
    steps = pd.Series(sorted(at_ms.dropna().unique())).diff().dropna()
    return float(steps.min()) if len(steps) else 60_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One small chart: its mean |d|, nats, over so many tokens, and the rows of `small`."""

    name: str
    mean: float | None
    tokens: float
    rows: pa.Table


def replicas(table: pd.DataFrame) -> list[Replica]:
    """A small chart a replica, the one furthest off first; axes and the grey line are shared."""
    rows = cells(table, "replica")
    names = table["replica"].astype(str)
    weighed = (rows["value"] * rows["n"]).groupby(rows["at"]).sum() / rows.groupby("at")["n"].sum()
    together = pd.DataFrame({"row": "all", "at": weighed.index, "value": weighed.to_numpy()})
    frame = pd.DataFrame({"row": "frame", "at": [rows["at"].min(), rows["at"].max()], "value": [0.0, float(rows["high"].max())]})
    shared = arrow(pd.concat([frame, together], ignore_index=True))
    own = arrow(rows[["row", "at", "value", "low", "high", "n", "text"]])
    tokens = rows.groupby(names)["n"].sum()
    means = ((rows["value"] * rows["n"]).groupby(names).sum() / tokens).sort_values(ascending=False)
    return [Replica(name=str(name), mean=None if mean != mean else float(mean), tokens=float(tokens[name]),
                    rows=pa.concat_tables([shared, own.filter(pa.array((names == name).to_numpy()))], promote_options="default"))
            for name, mean in means.items()]


def arrow(rows: pd.DataFrame) -> pa.Table:
    """Rows as Streamlit sends them, so that a drawing that is kept is turned into them once."""
    return pa.Table.from_pandas(rows, preserve_index=False)


def lines(table: pd.DataFrame, key: str, *, floor: float | None, picked: str | None, order: Mapping[str, int] | None = None) -> pd.DataFrame:
    """Rows of `dots`: the furthest off on top unless `order` says otherwise; the label tells the number of tokens."""
    rows = cells(table, key, order=order, picked=picked)
    rows["label"] = [f"{label} · {n:,.0f} tok" for label, n in zip(rows["label"], rows["n"], strict=True)]
    if not order:
        rows["order"] = rows["value"].rank(ascending=False)
    if floor:
        rows = pd.concat([rows, pd.DataFrame([{"row": "limit", "value": floor, "text": "healthy floor", "picked": False}])], ignore_index=True)
    return rows
