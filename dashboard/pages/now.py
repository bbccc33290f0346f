"""Now: what an on-call engineer needs first. Verdict, incidents, heartbeats, mismatch, evidence, what is not seen."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import streamlit as st

from dashboard import charts, panels
from dashboard.asking import CHARTS_SECONDS, REFRESH_SECONDS, all_signals, look, of_signal
from dashboard.client import Disconnected, Snapshot, api_url
from dashboard.drawing import header, plot, safely
from dashboard.redraw import Picture


@st.fragment(run_every=REFRESH_SECONDS)
def _top(window: str, picture: Picture) -> None:
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
    picture.still(_of(shot))


def _of(shot: Snapshot | None) -> Hashable:
    """What the charts rest on: batches, events, weights and the trainer's metrics."""
    if shot is None:
        return None
    status = shot.status
    return (status.get("run"), status.get("started_at"), status.get("t"), len(shot.events), max((event["at"] for event in shot.events), default=None), len(shot.weights),
            tuple((name, len(table), float(table["at"].max())) for name, table in shot.metrics.items()))


@st.fragment
def _drawings(window: str) -> None:
    shot, _ = look(window)
    if shot is None:
        return
    safely(_charts, shot)
    safely(_signal, shot, window)


@st.fragment(run_every=CHARTS_SECONDS)
def _told(window: str) -> None:
    """In words: numbers side by side, timeline, losses."""
    shot, _ = look(window)
    if shot is None:
        return
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
_top(_window, Picture(_of(look(_window)[0])))
_drawings(_window)
_told(_window)
