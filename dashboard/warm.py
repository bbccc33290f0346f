"""`python -m dashboard.warm run …`: Streamlit, started with what every page needs already imported, so that the first visitor does not wait for it."""

from __future__ import annotations

from streamlit.web.cli import main

from dashboard import bars, charts, panels, slice_charts, training_charts
from dashboard.launch import BLUE

IMPORTED = (bars, charts, panels, slice_charts, training_charts)


def warm() -> None:
    """Make one specification: Altair reads its schema for the first one."""
    charts.specification(charts.Look(y_title="nats", series=(("mean", BLUE, False),)))


if __name__ == "__main__":
    warm()
    main(prog_name="streamlit")
