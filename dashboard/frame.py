"""What every page beyond the first has around its charts: the window, the state of the daemon, the box of a chart with its CSV.

A page that shows old or no data says so first, and what to do; a part that cannot be drawn says so in its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import drawing, panels, place, words
from dashboard.asking import CHARTS_SECONDS as REFRESH_SECONDS
from dashboard.asking import UNREADABLE, connection
from dashboard.client import Disconnected, api_url, ask_json, ask_table
from dashboard.drawing import download, nothing, safely, title
from dashboard.trouble import Trouble

__all__ = ["MOST_KEPT", "REFRESH_SECONDS", "Seen", "answer", "ask", "download", "drawn", "header", "look", "nothing", "safely", "table", "tiles", "title"]

MOST_KEPT = 40  # answers a viewer keeps for when the daemon is away
BATCH_KEPT_SECONDS = 60.0  # at most, though no batch has closed
POINTS_ACROSS = 120  # a window's left edge moves by one of so many steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one refresh of a page begins with: the daemon's status and the left edge of the window (UTC seconds; None = all)."""

    status: Mapping[str, Any]
    start: float | None

    @property
    def now(self) -> float:
        """The daemon's clock, UTC seconds."""
        return float(self.status.get("now") or 0.0)

    @property
    def batch(self) -> tuple[Any, ...]:
        """Equal as long as no batch closes: what is drawn of batches alone is the same until then."""
        return (self.status.get("run"), self.status.get("started_at"), self.status.get("t"))


@st.cache_resource(ttl=REFRESH_SECONDS / 2, max_entries=64, show_spinner=False)  # nobody changes an answer: a copy for each would cost more than asking
def _cached_table(base: str, path: str, asked: tuple[tuple[str, Any], ...]) -> pd.DataFrame:
    return ask_table(connection(base), path, **dict(asked))


@st.cache_resource(ttl=BATCH_KEPT_SECONDS, max_entries=64, show_spinner=False)
def _cached_drawing(base: str, path: str, asked: tuple[tuple[str, Any], ...], name: str, given: tuple[Any, ...], batch: tuple[Any, ...],
                    _drawing: Callable[..., Any]) -> tuple[pd.DataFrame, Any]:
    table = ask_table(connection(base), path, **dict(asked))
    return table, None if table.empty else _drawing(table, *given)


@st.cache_resource(ttl=REFRESH_SECONDS / 2, max_entries=64, show_spinner=False)
def _cached_json(base: str, path: str, asked: tuple[tuple[str, Any], ...]) -> Any:
    return ask_json(connection(base), path, **dict(asked))


def table(path: str, **params: Any) -> pd.DataFrame:
    """A table of the daemon; shared by everybody who asks the same within a refresh. None and () are left out.

    While the daemon is away it is the last one that came. Raises: Disconnected, where none has.
    """
    return _kept(path, params, lambda: _cached_table(api_url(), path, _asked(params)))


def drawn(seen: Seen, path: str, drawing: Callable[..., Any], *given: Any, **params: Any) -> tuple[pd.DataFrame, Any]:
    """A table of the daemon that only a closing batch changes, and what `drawing(table, *given)` makes of it (None of an empty one): asked and made once a batch.

    `given` holds no times: it is a part of the name under which the last one is kept for when the daemon is away.

    Raises: Disconnected, where the daemon is away and no table has come.
    """
    name = f"{drawing.__module__}.{drawing.__qualname__}"
    return _kept(path, {**params, "drawn": f"{name} {given}"}, lambda: _cached_drawing(api_url(), path, _asked(params), name, given, seen.batch, drawing))


def answer(path: str, **params: Any) -> Any:
    """A JSON answer of the daemon, shared and kept likewise. Raises: Disconnected."""
    return _kept(path, params, lambda: _cached_json(api_url(), path, _asked(params)))


def _kept(path: str, params: Mapping[str, Any], ask: Callable[[], Any]) -> Any:
    """What the daemon says now, else what it said last in this session. Where this refresh has found it away, it is not asked again and again."""
    memory: dict[Any, Any] = st.session_state.setdefault("kept", {})
    key = (path, _asked({name: value for name, value in params.items() if name != "start"}))
    if st.session_state.get("away") and key in memory:
        return memory[key]
    try:
        found = ask()
    except Disconnected:
        if key in memory:
            return memory[key]
        raise
    memory.pop(key, None)
    memory[key] = found
    while len(memory) > MOST_KEPT:
        del memory[next(iter(memory))]
    return found


def _asked(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((name, value) for name, value in params.items() if value not in (None, ())))


def header(title: str, icon: str, about: str, *, windows: bool = True) -> str:
    """The page's first line, with the window beside it, and what the page answers; returns the window's key in place.WINDOWS."""
    window = drawing.header(f":material/{icon}: {title}", windows=windows)
    st.caption(about)
    return window if windows else "all"


def look(window: str) -> Seen | None:
    """The daemon as it is now, with a band above the page where that is not fine; None where there is nothing to show.

    The last picture stays when the daemon goes away; the band says from when it is.
    """
    slot = st.container()
    found, problem = ask(window)
    with slot:
        _state(None if found is None else found.status, problem)
    return found


def ask(window: str) -> tuple[Seen | None, Trouble | str]:
    """The same without the band: what is known, and what keeps us from knowing more."""
    try:
        status, problem = _cached_json(api_url(), "/v1/status", ()), ""
        if not isinstance(status, Mapping):
            raise Disconnected(UNREADABLE, "odd")
        st.session_state["seen_status"], st.session_state["seen_at"] = status, time.time()
    except Disconnected as error:
        status, problem = st.session_state.get("seen_status"), error.trouble
    st.session_state["away"] = bool(problem)
    if status is None:
        return None, problem
    seconds = place.WINDOWS[window]
    start = None if seconds is None else _quantised(float(status.get("now") or 0.0) - seconds, max(REFRESH_SECONDS, seconds / POINTS_ACROSS))
    return Seen(status=status, start=start), problem


def _quantised(start: float, step: float) -> float:
    """The left edge in whole steps, so that everybody who looks now asks the same."""
    return start // step * step


def _state(status: Mapping[str, Any] | None, problem: str) -> None:
    """One line when all is well; a band with what to do when it is not."""
    if problem and status is None:
        panels.band(None, problem, api_url())
        return
    if problem:
        said = panels.away(status, problem, api_url())
        with st.container(key="verdict-disconnected"):
            st.warning(f"**{said.title}** {said.text}", icon=":material/cloud_off:")
        return
    verdict = words.verdict(status, [])
    if verdict.tone != "good" and verdict.state != "learning":
        box, icon = panels.BANDS[verdict.tone]
        with st.container(key=f"verdict-{verdict.state}"):
            box(f"**{verdict.title}** {verdict.text}", icon=icon)
    now = float(status.get("now") or 0)
    st.caption(f"Run **{words.plain(status.get('run', 'unknown'))}** · {words.TIERS.get(status.get('tier'), 'Tier unknown')} · "
               f"as of {words.clock(now, now=now)}" + (" · still learning what is normal" if verdict.state == "learning" else ""))


def tiles(cells: Iterable[tuple[str, str, str, str]]) -> None:
    """(label, value, note, what it means) of the few numbers worth reading out on the phone."""
    with st.container(horizontal=True, gap="small", key="tiles"):
        for label, value, note, about in cells:
            with st.container(border=True, width="stretch", gap=None):
                st.caption(label, help=about)
                st.markdown(f"### {words.plain(value)}", anchors=False)
                st.caption(words.plain(note))
