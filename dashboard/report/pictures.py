"""A chart's specification and rows as SVG: the same specifications as on the pages, drawn without a browser.

Text, axes and grid are drawn in `currentColor`, so that one picture serves light, dark and paper. Nothing is fetched while drawing.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import pandas as pd

from dashboard import charts
from dashboard.report.parts import Figure

WIDE, NARROW = 860, 340  # pixels
FONT = "Arial, Liberation Sans, Helvetica, sans-serif"  # as wide as vl-convert takes it to be
_GRID = "#80808045"
CONFIG = {
    "background": "transparent", "font": FONT, "aria": False, "view": {"stroke": None},
    "axis": {"labelColor": "currentColor", "titleColor": "currentColor", "gridColor": _GRID, "domainColor": "#80808090", "tickColor": "#80808090",
             "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"},
    "legend": {"labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"},
}
_HOVER_ONLY = 200  # pixels² of an invisible point: it is there to be hovered over

Svg = Callable[[Mapping[str, Any]], str]
"""Vega-Lite → SVG."""


class Pen:
    """Draws with `svg`, and gives every picture names of its own, for all of them stand in one page."""

    def __init__(self, svg: Svg) -> None:
        self._svg, self._numbers = svg, count(1)
        self.drawn = 0

    def chart(self, chart: charts.Chart, specification: Callable[[charts.Look], dict[str, Any]] = charts.specification) -> Figure:
        """A chart of charts.py or bars.py."""
        if chart.empty:
            return Figure(name=chart.name, title=chart.title, about=chart.help, empty=chart.empty)
        return self.figure(chart.name, chart.title, chart.help, specification(chart.look), chart.rows, numbers=charts.numbers(chart))

    def figure(self, name: str, title: str, about: str, spec: Mapping[str, Any], rows: pd.DataFrame, *, numbers: pd.DataFrame | None = None, empty: str = "") -> Figure:
        """A specification with its rows; `numbers`: what its CSV holds, where not the rows."""
        if not len(rows):
            return Figure(name=name, title=title, about=about, empty=empty or "There is nothing to draw.")
        self.drawn += 1
        wide, narrow = (self._picture(spec, rows, width) for width in (WIDE, NARROW))
        return Figure(name=name, title=title, about=about, wide=wide, narrow=narrow, numbers=rows if numbers is None else numbers)

    def _picture(self, spec: Mapping[str, Any], rows: pd.DataFrame, width: int) -> str:
        drawn = still(spec)
        drawn |= {"data": {"name": "rows", "values": json.loads(rows.to_json(orient="records"))}, "width": width,
                  "autosize": {"type": "fit-x", "contains": "padding"}, "config": CONFIG}
        return _own_names(self._svg(drawn), f"p{next(self._numbers)}-")


def vl_convert_svg(spec: Mapping[str, Any]) -> str:
    """Draws with vl-convert, which is told to fetch nothing. Raises: ImportError where it is not installed."""
    import vl_convert

    return vl_convert.vegalite_to_svg(dict(spec), allowed_base_urls=[])


def still(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A specification without what only a mouse can use."""
    found = copy.deepcopy(dict(spec))
    for part in (found, *found.get("layer", ())):
        part.pop("params", None)
    if "layer" in found:
        found["layer"] = [layer for layer in found["layer"] if not _hover_only(layer.get("mark"))]
    return found


def _hover_only(mark: Any) -> bool:
    return isinstance(mark, Mapping) and mark.get("opacity") == 0 and (mark.get("size") or 0) >= _HOVER_ONLY


def _own_names(svg: str, prefix: str) -> str:
    svg = re.sub(r'(<[^<>]*\bid=")([^"]+)"', rf'\g<1>{prefix}\g<2>"', svg)
    return re.sub(r'(url\(|xlink:href="|href=")#', rf"\g<1>#{prefix}", svg)
