"""Charts that are drawn anew when there is something new to draw, and not every few seconds.

Streamlit sends a fragment whole, and the browser draws every chart of it again whether its rows have changed or not: that costs more than
anything else of a live page. So a small fragment watches, and where what the charts rest on has changed it has the page drawn anew.
"""

from __future__ import annotations

from collections.abc import Hashable

import streamlit as st

_MISSING = "part-missing"


class Picture:
    """A page as it was drawn whole, out of `of`. The script makes one and hands it to the fragment that watches, which keeps it between whole runs."""

    def __init__(self, of: Hashable) -> None:
        self.of, self._new = of, True

    def still(self, of: Hashable) -> None:
        """Called by the fragment whenever it runs: has the page drawn anew where `of` has changed, or a part of the page was missing.

        In the whole run itself nothing is drawn twice, however slow the machine is.
        """
        new, self._new = self._new, False
        if not new and (of != self.of or st.session_state.get(_MISSING)):
            st.session_state.pop(_MISSING, None)
            st.rerun()


def missing() -> None:
    """A part could not be drawn because the daemon did not answer: it is tried again at the next look."""
    st.session_state[_MISSING] = True
