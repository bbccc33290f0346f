"""Klaxon's dashboard. Looks, never computes: everything comes from the daemon's read API (KLAXON_API)."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from dashboard import place, runs, signed

_BELL = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path fill="#D55E00" d="M12 22a2.4 2.4 0 0 0 2.4-2.4H9.6A2.4
2.4 0 0 0 12 22Zm7-6v-5.2c0-3.4-1.8-6.2-5-7V3a2 2 0 0 0-4 0v.8c-3.2.8-5 3.6-5 7V16l-2 2v1h18v-1l-2-2Z"/></svg>"""

PAGES = (
    ("now", "Now", ":material/monitor_heart:"), ("incident", "Incident", ":material/notifications_active:"),
    ("slices", "Slices", ":material/grid_view:"), ("tokens", "Tokens", ":material/format_color_text:"),
    ("training", "Training", ":material/trending_up:"), ("engine", "Engine", ":material/memory:"), ("klaxon", "Klaxon", ":material/hearing:"))
"""File in pages/ and address, title, icon; the first is what `/` shows."""

# Streamlit greys out what it is about to redraw; on a busy machine that would flicker every few seconds.
_STYLE = """<style>[data-stale='true'] { opacity: 1 !important; transition: none !important; }
.st-key-navigation { overflow-x: auto; flex-wrap: nowrap !important; border-bottom: 1px solid rgba(128, 128, 128, .25); padding: 2px 0 .3rem; }
@media (max-width: 640px) { .st-key-navigation { flex-wrap: wrap !important; gap: 0 !important; } }
.st-key-navigation > div { flex: 0 0 auto !important; } .st-key-navigation p { white-space: nowrap; }
[data-testid='stMainBlockContainer'] { padding-bottom: 3rem; }
[class*='st-key-navigation-'][class*='-here'] a { background-color: rgba(26, 134, 204, .16); }</style>"""

_folder = Path(__file__).parent / "pages"
_there = {name: (title, icon) for name, title, icon in PAGES if (_folder / f"{name}.py").is_file()}
_pages = {name: st.Page(_folder / f"{name}.py", title=title, url_path="" if name == PAGES[0][0] else name, default=name == PAGES[0][0])
          for name, (title, _) in _there.items()}  # without icons: for those the browser would ask a host of fonts, and the bell is the page's own
_named = st.Page(_folder / f"{PAGES[0][0]}.py", title=PAGES[0][1], url_path=PAGES[0][0], visibility="hidden")  # Streamlit gives a default page no address but /
_chosen = st.navigation([*_pages.values(), _named], position="hidden")  # Streamlit's own links forget everything behind the question mark
st.set_page_config(page_title=f"{_chosen.title} · Klaxon", page_icon=_BELL, layout="wide")
st.html(_STYLE)
place.enter(_pages)
signed.require()
if runs.enter():
    place.navigation(_there, _chosen.title)
    _chosen.run()
