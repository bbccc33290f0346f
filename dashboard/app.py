"""Klaxon's dashboard. Looks, never computes: everything comes from the daemon's read API (KLAXON_API)."""

from __future__ import annotations

import streamlit as st

_BELL = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path fill="#D55E00" d="M12 22a2.4 2.4 0 0 0 2.4-2.4H9.6A2.4
2.4 0 0 0 12 22Zm7-6v-5.2c0-3.4-1.8-6.2-5-7V3a2 2 0 0 0-4 0v.8c-3.2.8-5 3.6-5 7V16l-2 2v1h18v-1l-2-2Z"/></svg>"""

st.set_page_config(page_title="Klaxon", page_icon=_BELL, layout="wide")
st.navigation([st.Page("pages/now.py", title="Now", icon=":material/monitor_heart:", default=True)], position="top").run()
