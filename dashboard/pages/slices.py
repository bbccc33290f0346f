"""Slices: which replica, position, weight version, cache state, environment, turn or kind of token the mismatch sits in. Click to filter."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
import streamlit as st

from dashboard import frame, place, slice_charts, slice_words
from dashboard.frame import REFRESH_SECONDS, Seen, download, nothing, safely, title
from dashboard.redraw import Picture
from dashboard.slice_about import ABOUT, DOTS, POSITIONS
from dashboard.words import number, plain

Drawn = tuple[pd.DataFrame, Any]
POINTS = 60
REPLICAS_SHOWN = 16
VERSIONS_SHOWN = 16
LABEL_HINT = {
    "env": "No rollout of this window carries the label “env”: send it with the rollout (labels.env) and it appears here.",
    "turn": "No rollout of this window carries the label “turn”: send it with the rollout (labels.turn) and it appears here.",
}
UNSCORED = {0: "Tier 0 has no trainer logprobs to compare with: set [weights] for the shadow scorer, or let the trainer push its logprobs."}


def _slice() -> dict[str, str]:
    """The slice in the page's address, which is the only memory, so that a link shows what was looked at.

    A callback leaves its choice for the run that follows: an address set in a callback reaches the browser one run late. That run ends
    with one of the whole page, whose links carry the new slice.
    """
    if (chosen := st.session_state.pop("slice_next", None)) is not None:
        place.go(slice=chosen)
        st.rerun()
    return slice_words.known(place.slice_())


def _choose(slice_: Mapping[str, str], *, afresh: bool = True) -> None:
    """Look at this slice from the next run on; `afresh`: what was clicked in the charts before is forgotten, and can be clicked again."""
    st.session_state["slice_next"] = dict(slice_)
    if afresh:
        st.session_state["slice_round"] = st.session_state.get("slice_round", 0) + 1


def _clicked(key: str) -> None:
    """A mark was clicked: its slice replaces the one of the same key. A click beside the marks changes nothing."""
    picked = ((st.session_state.get(key) or {}).get("selection") or {}).get("pick") or []
    if found := slice_words.read(str(picked[0].get("slice", "")) if picked else ""):
        _choose({**_slice(), **found}, afresh=False)


def _boxed() -> None:
    _choose(st.session_state.get("slice_choices", {}).get(st.session_state.get("slice_box"), {}))


@st.fragment(run_every=REFRESH_SECONDS)
def _watch(window: str, picture: Picture) -> None:
    picture.still(_of(frame.look(window)))


def _of(seen: Seen | None) -> Hashable:
    """What the charts rest on."""
    return None if seen is None else (seen.batch, bool(st.session_state.get("away")))


@st.fragment
def _body(window: str) -> None:
    seen, _ = frame.ask(window)
    if seen is None:
        return
    slice_ = _slice()
    whole = safely(_by_replica, seen, slice_)
    _filter(slice_, None if whole is None else whole[0])
    place.link("tokens", "Worst rollouts of this slice, token by token" if slice_ else "Worst rollouts, token by token", icon=":material/format_color_text:",
               slice=slice_, incident=None, rollout=None)
    _replicas(whole, seen, slice_)
    safely(_position, seen, slice_)
    left, right = st.columns(2, gap="medium")
    with left:
        safely(_lag, seen, slice_)
        safely(_dots, "env", seen, slice_)
    with right:
        safely(_dots, "cached", seen, slice_)
        safely(_dots, "probability", seen, slice_)
        safely(_dots, "turn", seen, slice_)


def _by_replica(seen: Seen, slice_: Mapping[str, str]) -> Drawn | None:
    return _ask(seen, slice_, "replica", points=POINTS, drawing=slice_charts.replicas)


def _ask(seen: Seen, slice_: Mapping[str, str], *by: str, drawing: Callable[..., Any], given: tuple[Any, ...] = (), points: int = 0, most: int | None = None) -> Drawn | None:
    """The daemon's breakdown under the other keys of the slice, and its drawing; None where it is not known for them together."""
    only = slice_words.filters(slice_, by=by)
    if only is None:
        return None
    return frame.drawn(seen, "/v1/breakdown", drawing, *given, by=",".join(by), start=seen.start, points=points, only=only, most=most)


def _filter(slice_: Mapping[str, str], whole: pd.DataFrame | None) -> None:
    """What is looked at, a box to choose from, and the way back."""
    offered = [] if whole is None else [{"replica": str(name)} for name in dict.fromkeys(whole["replica"].dropna())]
    offered += [{"position": name} for name in POSITIONS] + [{"cached": "hit"}, {"cached": "none"}]
    chosen = dict(slice_)
    choices = {slice_words.say(one): one for one in ([] if chosen in offered or not chosen else [chosen]) + offered}
    st.session_state["slice_choices"] = choices
    said = slice_words.say(chosen) if chosen else None
    if st.session_state.get("slice_box") != said:
        st.session_state["slice_box"] = said
    st.selectbox("Slice", list(choices), index=None, key="slice_box", on_change=_boxed, placeholder="Everything. Click a mark in any chart, or choose a slice here",
                 label_visibility="collapsed", help="Every other chart shows this slice alone; the address of the page keeps it")
    if slice_:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f":material/filter_alt: Only **{plain(slice_words.say(slice_))}**. Charts of that key itself still show all its values.", width="content")
            st.button("Show everything", key="slice_off", icon=":material/filter_alt_off:", on_click=_choose, args=({},), type="tertiary")


def _replicas(whole: Drawn | None, seen: Seen, slice_: Mapping[str, str]) -> None:
    with st.container(border=True, key="chart-replicas"):
        head = title(*ABOUT["replica"])
        if whole is None or whole[1] is None:
            nothing(_why_empty(seen, slice_))
            return
        table, drawn = whole
        shown = drawn[:REPLICAS_SHOWN]
        known = int(table["of"].iloc[0])
        if known > len(shown):
            st.caption(f"{len(shown)} of {known} replicas: those furthest off.")
        across = min(4, max(2, len(shown)))
        for first in range(0, len(shown), across):
            for column, one in zip(st.columns(across, gap="small"), shown[first:first + across], strict=False):
                with column:
                    _replica(one, chosen=slice_.get("replica") == one.name)
        download(head, lambda: table, "replicas")


def _replica(one: slice_charts.Replica, *, chosen: bool) -> None:
    name = one.name
    with st.container(gap=None):
        st.button(plain(slice_words.short(name)), key=f"replica-{name}", type="tertiary", icon=":material/filter_alt_off:" if chosen else ":material/filter_alt:",
                  on_click=_choose_replica, args=(name,), help="Show everything again" if chosen else "Show this replica alone in the other charts")
        st.caption(f"{'**chosen** · ' if chosen else ''}{number(one.mean)} nats · n = {one.tokens:,.0f} tokens")
        st.vega_lite_chart(one.rows, slice_charts.small(), width="stretch", key=f"plot-replica-{name}", alt=f"Mean |d| of replica {name} over time, nats")


def _choose_replica(name: str) -> None:
    now = _slice()
    _choose({key: value for key, value in now.items() if key != "replica"} if now.get("replica") == name else {**now, "replica": name})


def _position(seen: Seen, slice_: Mapping[str, str]) -> None:
    with st.container(border=True, key="chart-position"):
        head = title(*ABOUT["position"])
        found = _ask(seen, slice_, "position", points=POINTS, drawing=_over_time, given=(slice_.get("position"),))
        if found is None or found[1] is None:
            nothing(_why_empty(seen, slice_, together=found is None))
            return
        table, rows = found
        _plot(rows, slice_charts.heat_time("position, tokens"), "position", "Mean |d| by position and time, nats")
        download(head, lambda: table, "position-time")


def _lag(seen: Seen, slice_: Mapping[str, str]) -> None:
    with st.container(border=True, key="chart-lag"):
        head = title(*ABOUT["lag"])
        found = _ask(seen, slice_, "version", "lag", drawing=_by_lag, given=(slice_.get("version"),))
        if found is None or found[1] is None:
            nothing("The tokens' weight versions are not numbered or not known in this window: let the trainer announce versions, or name them in "
                    "the rollouts." if found is not None else _why_empty(seen, slice_, together=True))
            return
        table, rows = found[1]
        _plot(rows, slice_charts.heat_grid("lag, weight versions", "weight version"), "lag", "Mean |d| by weight version and lag, nats")
        download(head, lambda: table, "version-lag")


def _dots(key: str, seen: Seen, slice_: Mapping[str, str]) -> None:
    name, about, _ = DOTS[key]
    with st.container(border=True, key=f"chart-{key}"):
        head = title(name, about)
        floor = None if key == "probability" else seen.status.get("floor_nats")
        found = _ask(seen, slice_, key, most=24, drawing=_lines, given=(key, floor, slice_.get(key)))
        if found is None or found[1] is None:
            nothing(_why_empty(seen, slice_, together=found is None) if found is None or key not in LABEL_HINT else LABEL_HINT[key])
            return
        table, rows = found
        _plot(rows, slice_charts.dots(name.lower()), key, f"Mean |d| by {name.lower()}, nats")
        download(head, lambda: table.dropna(subset=[key]), key)


def _over_time(table: pd.DataFrame, picked: str | None) -> pa.Table:
    return slice_charts.arrow(slice_charts.cells(table, "position", order=POSITIONS, picked=picked))


def _by_lag(table: pd.DataFrame, picked: str | None) -> tuple[pd.DataFrame, pa.Table] | None:
    """What its CSV holds, and the rows; None where no version is numbered."""
    table, rows = slice_charts.by_lag(table, most=VERSIONS_SHOWN, picked=picked)
    return None if table.empty else (table, slice_charts.arrow(rows))


def _lines(table: pd.DataFrame, key: str, floor: float | None, picked: str | None) -> pa.Table | None:
    """None where no token carries the key."""
    table = table.dropna(subset=[key])
    order = slice_charts.in_turn(table["turn"]) if key == "turn" else DOTS[key][2]
    return None if table.empty else slice_charts.arrow(slice_charts.lines(table, key, floor=floor, picked=picked, order=order))


def _plot(rows: pa.Table, spec: dict[str, Any], name: str, alt: str) -> None:
    key = f"plot-{name}-{st.session_state.get('slice_round', 0)}"
    st.vega_lite_chart(rows, spec, width="stretch", key=key, alt=alt, on_select=lambda: _clicked(key), selection_mode="pick")


def _why_empty(seen: Seen, slice_: Mapping[str, str], *, together: bool = False) -> str:
    if together:
        return (f"Not known for {slice_words.say(slice_)}: environment, turn and probability are kept of whole rollouts; position, cache and lag of "
                "tokens. Show everything to see it.")
    if slice_:
        return f"No token of {slice_words.say(slice_)} was scored in this window. Take the slice away, or look further back."
    return UNSCORED.get(seen.status.get("tier"), "No token was scored in this window yet: look further back, or see on Now what Klaxon waits for.")


_window = frame.header("Slices", "grid_view", "Where does the mismatch sit? q is the trainer's probability of the sampled token, p the engine's; d = log q − log p in nats, |d| its size.")
_watch(_window, Picture(_of(frame.ask(_window)[0])))
_body(_window)
