"""What Streamlit is started with where people sign in: the same page, with the guard before it and the provider's settings."""

from __future__ import annotations

from streamlit.starlette import App

from dashboard.launch import guards, provider

app = App("klaxon_page.py", secrets=provider(), middleware=guards())
