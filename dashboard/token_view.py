"""The token view: a component whose script sets textContent only (assets/tokens.js), so that nothing a model wrote can act on the page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

_ASSETS = Path(__file__).parent / "assets"


@cache
def _source(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def draw(data: Mapping[str, Any], *, key: str) -> None:
    """Draw what `token_words.view` made."""
    st.components.v2.component("klaxon_tokens", css=_source("tokens.css"), js=_source("tokens.js"))(data=dict(data), key=key)
