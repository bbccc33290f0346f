"""What every page draws the same way: the head, a part that may fail, a chart with its explanation, its numbers and what to do without them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import cells, charts, place, redraw, words
from dashboard.client import Disconnected

log = logging.getLogger("klaxon.dashboard")


def header(title: str, *, windows: bool = True) -> str:
    """The page's name and, where it has one, the time range; returns the chosen key of place.WINDOWS."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"## {title}", anchors=False, width="content")
        return place.window_control() if windows else place.window()


def safely(draw: Callable[..., Any], *arguments: Any) -> Any:
    """A part that cannot be drawn says so in its place; the rest of the page stays, and the log keeps the details."""
    name = getattr(draw, "__name__", "part").strip("_").replace("_", " ")
    try:
        return draw(*arguments)
    except Disconnected as error:
        redraw.missing()
        st.warning(f"This part ({name}) is not there: {words.plain(error)}.", icon=":material/cloud_off:")
    except Exception:
        log.exception("%s could not be drawn", name)
        st.warning(f"This part of the page ({name}) could not be drawn from what the daemon sent. "
                   "The dashboard's log has the details.", icon=":material/build:")
    return None


def title(text: str, about: str) -> Any:
    """A chart's or part's name, and on hover the one sentence that explains it; both may hold text from outside. Returns the place for `download`."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**{words.plain(text)}**", width="content", help=words.plain(about))
        return st.container(width="content")


def nothing(text: str) -> None:
    """Why a chart is empty, and what to do."""
    st.markdown(f":material/hourglass_empty: {words.plain(text)}")


def download(place: Any, rows: Callable[[], pd.DataFrame], name: str) -> None:
    """The numbers behind a chart, made when asked for, in the place its title left. A picture (PNG) comes from the chart's own toolbar."""
    place.download_button("CSV", data=lambda: rows().map(cells.cell).to_csv(index=False).encode(), file_name=f"klaxon-{name}.csv", mime="text/csv",
                          key=f"csv-{name}", on_click="ignore", type="tertiary", icon=":material/download:",
                          help="The numbers behind this chart; the picture (PNG) is in the toolbar at the chart's upper right corner")


def plot(chart: charts.Chart, specification: Callable[[charts.Look], dict[str, Any]] = charts.specification) -> None:
    """A chart in its frame: title, explanation, numbers, and what to do while there is nothing to draw."""
    with st.container(border=True, key=f"chart-{chart.name}"):
        head = title(chart.title, chart.help)
        if chart.empty:
            nothing(chart.empty)
            return
        st.vega_lite_chart(chart.rows, specification(chart.look), width="stretch", key=f"plot-{chart.name}", alt=f"{chart.title}: {chart.help}")
        download(head, lambda: charts.numbers(chart), chart.name)
