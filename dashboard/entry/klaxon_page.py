"""What Streamlit is started with. It lies in a folder of its own: Streamlit takes a folder `pages` beside its main script for the
whole of the app, and runs the first deep link after a start without ours."""

from __future__ import annotations

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "app.py"), run_name="__main__")
