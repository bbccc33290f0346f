"""Pictures of every page of the dashboard: `python docs/screenshots.py RUN` writes docs/screenshots/.

RUN is the folder of a stopped run, or the address of a page that is up (http://127.0.0.1:8501, as while `make demo` runs).

Each page four times: on a laptop (1440 pixels) and on a phone (390), in the light and in the dark theme, named PAGE-WIDTH-THEME.png.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from playwright.sync_api import Page, sync_playwright

OUT = Path(__file__).parent / "screenshots"
SIZES = ((1440, 900), (390, 844))
THEMES = ("light", "dark")
TALLEST = 8000
STILL_ROUNDS = 5  # seconds
SIGNATURE = """() => ({height: document.querySelector('[data-testid=stMain]').scrollHeight,
    elements: document.querySelectorAll('[data-testid=stMain] [data-testid=stElementContainer]').length,
    drawn: document.querySelectorAll('[data-testid=stVegaLiteChart] :is(canvas, svg)').length,
    waiting: document.querySelectorAll('[data-testid=stSkeleton]').length})"""
DRAWN = "[data-testid=stVegaLiteChart], [data-testid=stAlert]"


def until_answers(url: str, process: subprocess.Popen, *, seconds: float = 120.0) -> None:
    """Wait for a server. Raises SystemExit when it ends or stays silent."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(url, trust_env=False)
            return
        except httpx.TransportError:
            time.sleep(0.2)
    sys.exit(f"nothing answers at {url}")


def settle(page: Page, *, seconds: float = 90.0) -> None:
    """Wait until nothing has been added for a while and no chart is still to be drawn; a page that never rests is taken as it is."""
    before, quiet, deadline = None, 0, time.monotonic() + seconds
    while quiet < STILL_ROUNDS and time.monotonic() < deadline:
        page.wait_for_timeout(1000)
        now = page.evaluate(SIGNATURE)
        quiet = quiet + 1 if now == before and not now["waiting"] else 0
        before = now


def picture(page: Page, url: str, path: Path, *, width: int, height: int) -> None:
    """One whole page."""
    page.goto(url)
    page.wait_for_selector(DRAWN, timeout=120_000)
    settle(page)
    tall = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": width, "height": min(int(tall) + 40, TALLEST)})
    settle(page)
    page.screenshot(path=path)
    page.set_viewport_size({"width": width, "height": height})


def take(base: str, out: Path, names: list[str], *, chromium: str | None, window: str) -> None:
    """Every page in every size and theme."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width, height in SIZES:
            for theme in THEMES:
                page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme).new_page()
                for name in names:
                    picture(page, f"{base}/{name}?window={window}", out / f"{name}-{width}-{theme}.png", width=width, height=height)
                    print(f"{name}, {width} pixels, {theme}", flush=True)
                page.context.close()
        browser.close()


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    """Serve, look, write."""
    pages = sorted(path.stem for path in (Path(__file__).parents[1] / "dashboard" / "pages").glob("*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's folder, its daemon stopped; or the address of a page")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the pictures (default: %(default)s)")
    parser.add_argument("--page", action="append", choices=pages, help="only this page (may be repeated)")
    parser.add_argument("--window", default="all", help="time range, as in the page's address")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="a browser of your own (default: chromium, else Playwright's)")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.run.startswith("http"):
        take(given.run.rstrip("/"), given.out, given.page or pages, chromium=given.chromium, window=given.window)
        return
    if not Path(given.run).is_dir():
        parser.error(f"{given.run}: there is no such folder")
    ports = free_port(), free_port()
    api, base = (f"http://127.0.0.1:{port}" for port in ports)
    served = subprocess.Popen([sys.executable, "-m", "klaxon", "serve", "--read-only", given.run, "--port", str(ports[0])])
    shown = subprocess.Popen([sys.executable, "-m", "dashboard.launch", "--api", api, "--port", str(ports[1])])
    try:
        until_answers(f"{api}/healthz", served)
        until_answers(base, shown)
        take(base, given.out, given.page or pages, chromium=given.chromium, window=given.window)
    finally:
        for process in (shown, served):
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
