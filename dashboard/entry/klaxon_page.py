"""What Streamlit is started with. It lies in a folder of its own: Streamlit takes a folder `pages` beside its main script for the
whole of the app, and runs the first deep link after a start without ours."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import streamlit as st

from dashboard.access import is_loopback
from dashboard.launch import SETTINGS

if not os.environ.get(SETTINGS) and not is_loopback(str(st.get_option("server.address") or "")):
    st.error("## Closed\n\nThis page can be reached from outside and nobody signs in. Start it on 127.0.0.1, or with `klaxon dashboard --sign-in FILE` "
             "(docs/dashboard.md).", icon=":material/lock:")
    st.stop()

runpy.run_path(str(Path(__file__).parents[1] / "app.py"), run_name="__main__")
