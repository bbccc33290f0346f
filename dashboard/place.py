"""Where the reader is: the page's path, and `run`, `incident`, `window`, `slice` and `rollout` in the address. A link shows what its sender saw.

The address is the truth, and only what the reader does writes it: every link between pages carries it whole. A page that completed its
own address after it was entered would leave two steps in the browser's history, and Back would have to be pressed twice.

    /incident?run=grpo-7b&incident=inc_3f2a9d6b1c07
    /slices?window=3h&slice=replica=http://10.0.0.3:8000&slice=position=4-16k
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

WINDOWS = {"5m": 300.0, "30m": 1800.0, "3h": 10_800.0, "24h": 86_400.0, "all": None}
"""`window` in the address → seconds back from now; None = the whole run."""
_SHOWN = {"5m": "5 min", "30m": "30 min", "3h": "3 h", "24h": "24 h", "all": "All"}
DEFAULT_WINDOW = "30m"
KEYS = ("run", "incident", "window", "slice", "rollout")
LONGEST = 512  # characters of one value; the rest of a longer one is no place of ours
_WIDGET, _PAGES, _NEXT = "place-window", "place-pages", "place-next"


def enter(pages: Mapping[str, Any]) -> None:
    """Called once a run, before anything else. `pages`: file name without its ending → st.Page, for links."""
    st.session_state[_PAGES] = dict(pages)
    if (changes := st.session_state.pop(_NEXT, None)) is not None:
        go(**changes)


def navigation(titles: Mapping[str, tuple[str, str]], page: str) -> None:
    """The row of links to every page, at the same place. `titles`: name → title and icon; `page`: the title of the one that is shown."""
    with st.container(horizontal=True, gap="small", key="navigation"):
        for name, (title, icon) in titles.items():
            with st.container(width="content", key=f"navigation-{name}{'-here' if title == page else ''}"):
                link(name, title, icon=icon)


def exists(page: str) -> bool:
    """Is there a page of this name to link to?"""
    return page in st.session_state.get(_PAGES, {})


def window() -> str:
    """The time range, a key of WINDOWS."""
    said = st.query_params.get("window", DEFAULT_WINDOW)
    return said if said in WINDOWS else DEFAULT_WINDOW


def window_control() -> str:
    """The time range to choose from; returns the key of WINDOWS that is chosen."""
    st.session_state[_WIDGET] = window()
    st.segmented_control("Time window", list(WINDOWS), format_func=_SHOWN.__getitem__, required=True, key=_WIDGET, on_change=_choose_window,
                         label_visibility="collapsed", help="How far back the charts and the timeline go")
    return window()


def run() -> str:
    """The run's name, empty where the address names none. `runs.here` finds its daemon."""
    return st.query_params.get("run", "")[:LONGEST]


def incident() -> str | None:
    """The incident's id, or None where the address names none."""
    return st.query_params.get("incident", "")[:LONGEST] or None


def rollout() -> str | None:
    """The keyed hash of the rollout that is looked at, or None where the address names none."""
    return st.query_params.get("rollout", "")[:LONGEST] or None


def slice_() -> dict[str, str]:
    """The slice that is looked at, such as {"replica": "http://10.0.0.3:8000"}; empty = the whole run."""
    pairs = (said[:LONGEST].partition("=") for said in st.query_params.get_all("slice"))
    return {key: value for key, sign, value in pairs if key and sign and value}


def go(**changes: Any) -> None:
    """Write to the address: `run`, `incident`, `window` and `rollout` as text, `slice` as a mapping; None or nothing takes one out.

    Within a fragment, end with st.rerun(): the links around it carry the new address only then."""
    now = {key: st.query_params.get_all(key) for key in st.query_params}
    then = {key: value for key, value in {**now, **_written(changes)}.items() if value}
    if {key: [value] if isinstance(value, str) else value for key, value in then.items()} != now:
        st.query_params.from_dict(then)  # at once: every single write is a step of the browser's history


def later(**changes: Any) -> None:
    """`go`, for a widget's callback: what a callback writes to the address itself reaches the browser one run late. Within a fragment,
    end with st.rerun()."""
    st.session_state[_NEXT] = changes


def link(page: str, label: str, *, icon: str | None = None, help: str | None = None, **changes: Any) -> None:
    """A link to another page of the dashboard, `pages/{page}.py`, at the same place but for `changes`; `label` is Markdown. Without
    that page the label alone."""
    there = st.session_state.get(_PAGES, {}).get(page)
    if there is None:
        st.markdown(label)
        return
    found = {**_said(), **_written(changes)}
    pairs = [(key, item) for key, value in found.items() if value for item in ([value] if isinstance(value, str) else value)]
    st.page_link(there, label=label, icon=icon, help=help, query_params=pairs)


def _said() -> dict[str, str | list[str]]:
    return {key: st.query_params.get_all(key) if key == "slice" else st.query_params[key] for key in KEYS if key in st.query_params}


def _written(changes: Mapping[str, Any]) -> dict[str, str | list[str]]:
    if unknown := set(changes) - set(KEYS):
        raise TypeError(f"no part of a place: {', '.join(sorted(unknown))}")
    found = {key: changes[key] or "" for key in changes}
    if "slice" in found:
        found["slice"] = [f"{key}={value}" for key, value in dict(found["slice"] or {}).items()]
    if found.get("window") == DEFAULT_WINDOW:
        found["window"] = ""
    return found


def _choose_window() -> None:
    later(window=st.session_state[_WIDGET])
