"""Klaxon's dashboard. Looks, never computes: everything comes from the daemon's read API (KLAXON_API)."""

from __future__ import annotations

import streamlit as st

st.set_page_config(page_title="Klaxon", page_icon=":material/notifications_active:", layout="wide")
st.navigation([st.Page("pages/now.py", title="Now", icon=":material/monitor_heart:", default=True)], position="top").run()
