"""How the dashboard is started: one command line, with the theme, on loopback, telling nobody.

`klaxon-dashboard` or `python -m dashboard.launch`, e.g. `klaxon-dashboard --api http://127.0.0.1:8765 --port 8501`
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

APP = Path(__file__).parent / "entry" / "klaxon_page.py"

# Okabe and Ito's colours, told apart by every kind of colour vision; the blue a little lighter, to be read on black too.
BLUE, ORANGE, VERMILLION, GREEN, SKY, PURPLE, GREY = (
    "#1A86CC", "#E69F00", "#D55E00", "#009E73", "#56B4E9", "#CC79A7", "#8A8F98")

_THEME = {
    "theme.light.primaryColor": BLUE, "theme.light.backgroundColor": "#FFFFFF",
    "theme.light.secondaryBackgroundColor": "#F3F5F8", "theme.light.textColor": "#15202B",
    "theme.light.borderColor": "#D9DEE5", "theme.light.redColor": "#C94F00", "theme.light.redBackgroundColor": "#FFDCC2",
    "theme.light.redTextColor": "#7A2E00", "theme.light.greenColor": "#00805C", "theme.light.greenBackgroundColor": "#CDEFE2",
    "theme.light.greenTextColor": "#00543D", "theme.light.yellowBackgroundColor": "#FFEDB8", "theme.light.yellowTextColor": "#654400",
    "theme.light.blueBackgroundColor": "#D8EBF8", "theme.light.blueTextColor": "#004C78",
    "theme.dark.primaryColor": BLUE, "theme.dark.backgroundColor": "#0E1318", "theme.dark.secondaryBackgroundColor": "#182028",
    "theme.dark.textColor": "#E8EDF2", "theme.dark.borderColor": "#2C3742", "theme.dark.redColor": "#FF8A3D",
    "theme.dark.redBackgroundColor": "#4A2108", "theme.dark.redTextColor": "#FFC9A3", "theme.dark.greenColor": "#2CCB9B",
    "theme.dark.greenBackgroundColor": "#0B3A2D", "theme.dark.greenTextColor": "#9DF0D6",
    "theme.dark.yellowBackgroundColor": "#43330A", "theme.dark.yellowTextColor": "#FFDF94",
    "theme.dark.blueBackgroundColor": "#0D3350", "theme.dark.blueTextColor": "#A9DCFA",
    "theme.paddingTop": "2.2rem", "theme.baseRadius": "0.6rem", "theme.metricValueFontSize": "1.55rem", "theme.metricValueFontWeight": "600",
    "theme.headingFontSizes": '["1.7rem", "1.35rem", "1.1rem"]',
}


def command(*, port: int = 8501, address: str = "127.0.0.1") -> list[str]:
    """The argv that serves the page. Set KLAXON_API in its environment to the daemon's address."""
    options = {
        "server.port": str(port), "server.address": address, "server.headless": "true", "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false", "client.toolbarMode": "minimal", "client.showErrorDetails": "none",
        "runner.magicEnabled": "false", **_THEME,
    }
    return [sys.executable, "-m", "streamlit", "run", str(APP), *(f"--{name}={value}" for name, value in options.items())]


def main() -> None:
    """Serve the page in this process."""
    parser = argparse.ArgumentParser(prog="klaxon-dashboard", description="Serve Klaxon's dashboard.", epilog="Example: klaxon-dashboard --api http://127.0.0.1:8765 --port 8501")
    parser.add_argument("--api", default=os.environ.get("KLAXON_API", "http://127.0.0.1:8765"), help="address of the daemon's read API")
    parser.add_argument("--port", type=int, default=8501)
    parser.add_argument("--address", default="127.0.0.1", help="keep it on loopback: the page asks nobody for a password")
    given = parser.parse_args()
    os.environ["KLAXON_API"] = given.api
    argv = command(port=given.port, address=given.address)
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main()
