"""Now: what an on-call engineer needs first. Verdict, incidents, heartbeats, mismatch, evidence, what is not seen."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import httpx
import streamlit as st

from dashboard import charts, panels, words
from dashboard.client import TIMEOUT_SECONDS, Disconnected, Snapshot, api_url, signal_series, signals, snapshot

log = logging.getLogger("klaxon.dashboard")

REFRESH_SECONDS = 2.0
CHARTS_SECONDS = 4.0
# Streamlit greys out what it is about to redraw; on a busy machine that would flicker every few seconds.
_NO_DIMMING = "<style>[data-stale='true'] { opacity: 1 !important; transition: none !important; }</style>"
WINDOWS = {"5 min": 300.0, "30 min": 1800.0, "3 h": 10_800.0, "24 h": 86_400.0, "All": None}


@st.cache_resource
def _http(base: str) -> httpx.Client:
    token = os.environ.get("KLAXON_TOKEN", "")  # the daemon asks for it where the page is on another machine
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=base, timeout=TIMEOUT_SECONDS, trust_env=False, headers=headers)


@st.cache_data(ttl=REFRESH_SECONDS / 2, max_entries=16, show_spinner=False)
def _shot(base: str, window: str) -> Snapshot:
    """One refresh, shared by everybody who looks at the same window."""
    return snapshot(_http(base), window_seconds=WINDOWS[window])


def _look(window: str) -> tuple[Snapshot | None, str]:
    """The newest snapshot, or the last one that came and why there is no newer."""
    try:
        shot = _shot(api_url(), window)
    except Disconnected as error:
        return st.session_state.get("last_shot"), str(error)
    except Exception:  # the page must stay readable whatever the daemon answers; the log keeps the details
        log.exception("the daemon's answer could not be read")
        return st.session_state.get("last_shot"), "the daemon's answer could not be read; is it the same version as this page?"
    st.session_state["last_shot"] = shot
    return shot, ""


@st.fragment(run_every=REFRESH_SECONDS)
def _top(window: str) -> None:
    """Verdict, incidents, heartbeats, numbers. The slots keep their order, so nothing jumps or loses its place."""
    band, cards, pulses = (st.container() for _ in range(3))
    shot, problem = _look(window)
    with band:
        _safely(panels.band, shot, problem, api_url())
    if shot is None:
        return
    with cards:
        _safely(panels.incidents, shot)
    with pulses:
        _safely(panels.pulses, shot)
        _safely(panels.tiles, shot)


@st.fragment(run_every=CHARTS_SECONDS)
def _below(window: str) -> None:
    """What changes once a batch: charts, timeline, losses."""
    shot, _ = _look(window)
    if shot is None:
        return
    _safely(_charts, shot)
    _safely(_signal, shot, window)
    _safely(panels.compared, shot)
    left, right = st.columns(2, gap="medium")
    with left:
        _safely(panels.events, shot)
    with right:
        _safely(panels.unseen, shot)


def _safely(draw: Callable[..., None], *arguments: Any) -> None:
    """A part that cannot be drawn says so in its place; the rest of the page stays, and the log keeps the details."""
    try:
        draw(*arguments)
    except Exception:
        log.exception("%s could not be drawn", draw.__name__)
        st.warning(f"This part of the page ({draw.__name__.strip('_')}) could not be drawn from what the daemon sent. "
                   "The dashboard's log has the details.", icon=":material/build:")


def _header() -> str:
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown("## :material/notifications_active: Klaxon", anchors=False, width="content")
        chosen = st.segmented_control("Time window", list(WINDOWS), default="30 min", required=True, key="window", bind="query-params",
                                      label_visibility="collapsed", help="How far back the charts and the timeline go")
    return chosen or "30 min"


def _charts(shot: Snapshot) -> None:
    _plot(charts.mismatch(shot))
    pairs: list[tuple[Any, Any]] = [
        (charts.evidence(shot), charts.clip(shot)), (charts.k3(shot), charts.weights(shot)),
        (charts.trainer_metric(shot, "reward", "Reward", y_title="reward, trainer's units",
                               help="The trainer's mean reward: a mismatch often shows here late, or not at all."),
         charts.trainer_metric(shot, "entropy", "Entropy", y_title="entropy, nats",
                               help="The policy's entropy as the trainer logs it: the healthy floor falls as the policy grows sure."))]
    for pair in pairs:
        for column, chart in zip(st.columns(2, gap="medium"), pair, strict=True):
            with column:
                _plot(chart)


def _signal(shot: Snapshot, window: str) -> None:
    """Any signal of the metric table, chosen by name."""
    table = {row["name"]: row for row in _signals(api_url())}
    chosen = st.selectbox("Another signal", list(table), index=None, key="signal", bind="query-params", placeholder="Choose one of all signals",
                          help="Every signal Klaxon computes from what it stores; docs/metrics.md defines each")
    if chosen:
        _plot(charts.any_signal(shot, table[chosen], _of_signal(api_url(), chosen, window, shot.start)))


@st.cache_data(ttl=3600, max_entries=16, show_spinner=False)
def _signals(base: str) -> list[dict[str, str]]:
    return signals(_http(base))


@st.cache_data(ttl=CHARTS_SECONDS / 2, max_entries=64, show_spinner=False)
def _of_signal(base: str, name: str, window: str, _start: float) -> Any:
    return signal_series(_http(base), name, start=None if WINDOWS[window] is None else _start)


def _plot(chart: charts.Chart) -> None:
    with st.container(border=True, key=f"chart-{chart.name}"):
        st.markdown(f"**{chart.title}**")
        st.caption(words.plain(chart.help))
        if chart.empty:
            st.markdown(f":material/hourglass_empty: {words.plain(chart.empty)}")
        else:
            st.vega_lite_chart(chart.rows, charts.specification(chart.look), width="stretch", key=f"plot-{chart.name}",
                               alt=f"{chart.title}: {chart.help}")


st.html(_NO_DIMMING)
_window = _header()
_top(_window)
_below(_window)
