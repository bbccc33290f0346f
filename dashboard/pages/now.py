"""Now: what an on-call engineer needs first. Verdict, incidents, heartbeats, mismatch, evidence, what is not seen."""

from __future__ import annotations

from typing import Any

import streamlit as st

from dashboard import charts, panels
from dashboard.asking import CHARTS_SECONDS, REFRESH_SECONDS, all_signals, look, of_signal
from dashboard.client import Disconnected, Snapshot, api_url
from dashboard.drawing import header, plot, safely


@st.fragment(run_every=REFRESH_SECONDS)
def _top(window: str) -> None:
    """Verdict, incidents, heartbeats, numbers. The slots keep their order, so nothing jumps or loses its place."""
    band, cards, pulses = (st.container() for _ in range(3))
    shot, problem = look(window)
    with band:
        safely(panels.band, shot, problem, api_url())
    if shot is None:
        return
    with cards:
        safely(panels.incidents, shot)
    with pulses:
        safely(panels.pulses, shot)
        safely(panels.tiles, shot)


@st.fragment(run_every=CHARTS_SECONDS)
def _below(window: str) -> None:
    """What changes once a batch: charts, timeline, losses."""
    shot, _ = look(window)
    if shot is None:
        return
    safely(_charts, shot)
    safely(_signal, shot, window)
    safely(panels.compared, shot)
    left, right = st.columns(2, gap="medium")
    with left:
        safely(panels.events, shot)
    with right:
        safely(panels.unseen, shot)


def _charts(shot: Snapshot) -> None:
    plot(charts.mismatch(shot))
    pairs: list[tuple[Any, Any]] = [
        (charts.evidence(shot), charts.clip(shot)), (charts.k3(shot), charts.weights(shot)),
        (charts.trainer_metric(shot, "reward", "Reward", y_title="reward, trainer's units",
                               help="The trainer's mean reward: a mismatch often shows here late, or not at all."),
         charts.trainer_metric(shot, "entropy", "Entropy", y_title="entropy, nats",
                               help="The policy's entropy as the trainer logs it: the healthy floor falls as the policy grows sure."))]
    for pair in pairs:
        for column, chart in zip(st.columns(2, gap="medium"), pair, strict=True):
            with column:
                plot(chart)


def _signal(shot: Snapshot, window: str) -> None:
    """Any signal of the metric table, chosen by name."""
    try:
        table = {row["name"]: row for row in all_signals(api_url())}
    except Disconnected:
        return  # the band above says so, and what to do
    chosen = st.selectbox("Another signal", list(table), index=None, key="signal", bind="query-params", placeholder="Choose one of all signals",
                          help="Every signal Klaxon computes from what it stores; docs/metrics.md defines each")
    if chosen:
        plot(charts.any_signal(shot, table[chosen], of_signal(api_url(), chosen, window, shot.start)))


_window = header(":material/notifications_active: Klaxon")
_top(_window)
_below(_window)
