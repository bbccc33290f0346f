"""What every page draws the same way: the head, a part that may fail, a chart with its words."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import streamlit as st

from dashboard import charts, place, words

log = logging.getLogger("klaxon.dashboard")


def header(title: str, *, windows: bool = True) -> str:
    """The page's name and, where it has one, the time range; returns the chosen key of place.WINDOWS."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"## {title}", anchors=False, width="content")
        return place.window_control() if windows else place.window()


def safely(draw: Callable[..., None], *arguments: Any) -> None:
    """A part that cannot be drawn says so in its place; the rest of the page stays, and the log keeps the details."""
    try:
        draw(*arguments)
    except Exception:
        log.exception("%s could not be drawn", draw.__name__)
        st.warning(f"This part of the page ({draw.__name__.strip('_')}) could not be drawn from what the daemon sent. "
                   "The dashboard's log has the details.", icon=":material/build:")


def plot(chart: charts.Chart, specification: Callable[[charts.Look], dict[str, Any]] = charts.specification) -> None:
    """A chart in its frame: title, one sentence of what it shows, and what to do while there is nothing to draw."""
    with st.container(border=True, key=f"chart-{chart.name}"):
        st.markdown(f"**{chart.title}**")
        st.caption(words.plain(chart.help))
        if chart.empty:
            st.markdown(f":material/hourglass_empty: {words.plain(chart.empty)}")
        else:
            st.vega_lite_chart(chart.rows, specification(chart.look), width="stretch", key=f"plot-{chart.name}",
                               alt=f"{chart.title}: {chart.help}")
