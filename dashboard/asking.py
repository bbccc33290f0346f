"""What every page asks the daemon, once for everybody who looks at the same thing."""

from __future__ import annotations

import logging
import time
from typing import Any

import httpx
import streamlit as st

from dashboard.client import TIMEOUT_SECONDS, Disconnected, Snapshot, api_url, signal_series, signals, snapshot
from dashboard.daemons import Daemon, configured, connect
from dashboard.place import WINDOWS
from dashboard.trouble import Trouble

log = logging.getLogger("klaxon.dashboard")

REFRESH_SECONDS = 2.0
CHARTS_SECONDS = 4.0
UNREADABLE = Trouble("the daemon's answer could not be read; is it the same version as this page?", "odd")


@st.cache_resource
def connection(base: str) -> httpx.Client:
    """The connection to the daemon at an address, with its token and certificate (dashboard/daemons.py)."""
    daemon = next((one for one in configured() if one.url == base), Daemon(name="", url=base))
    return connect(daemon, timeout_seconds=TIMEOUT_SECONDS)


@st.cache_resource(ttl=REFRESH_SECONDS / 2, max_entries=16, show_spinner=False)  # nobody changes an answer: a copy for each would cost as much as asking
def shot(base: str, window: str) -> Snapshot:
    """One refresh of a key of WINDOWS. Raises Disconnected."""
    return snapshot(connection(base), window_seconds=WINDOWS[window])


def look(window: str) -> tuple[Snapshot | None, Trouble | None]:
    """The newest snapshot, or the last one that came and why there is no newer."""
    try:
        found = shot(api_url(), window)
    except Disconnected as error:
        return st.session_state.get("last_shot"), error.trouble
    except Exception:  # the page must stay readable whatever the daemon answers; the log keeps the details
        log.exception("the daemon's answer could not be read")
        return st.session_state.get("last_shot"), UNREADABLE
    st.session_state["last_shot"] = found
    st.session_state["seen_at"] = time.time()
    return found, None


@st.cache_data(ttl=3600, max_entries=16, show_spinner=False)
def all_signals(base: str) -> list[dict[str, str]]:
    """The metric table. Raises Disconnected."""
    return signals(connection(base))


@st.cache_resource(ttl=CHARTS_SECONDS / 2, max_entries=64, show_spinner=False)
def of_signal(base: str, name: str, window: str, _start: float) -> Any:
    """One signal over the window. Raises Disconnected."""
    return signal_series(connection(base), name, start=None if WINDOWS[window] is None else _start)
