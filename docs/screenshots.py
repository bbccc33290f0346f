"""Pictures of every page of the dashboard, over the files of a stopped run: `python docs/screenshots.py RUN_DIR` writes docs/screenshots/."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import httpx
from playwright.sync_api import Page, sync_playwright

OUT = Path(__file__).parent / "screenshots"
SIZES = ((1440, 900, "light"), (390, 844, "dark"))
TALLEST = 6000
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


def picture(page: Page, url: str, path: Path, *, width: int, height: int) -> None:
    """One whole page."""
    page.goto(url)
    page.wait_for_selector(DRAWN, timeout=120_000)
    page.wait_for_timeout(4000)  # the last chart, and the fonts
    tall = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": width, "height": min(int(tall) + 40, TALLEST)})
    page.wait_for_timeout(2000)
    page.screenshot(path=path)
    page.set_viewport_size({"width": width, "height": height})


def main() -> None:
    """Serve, look, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, its daemon stopped")
    parser.add_argument("--chromium", help="a browser of your own (default: Playwright's)")
    parser.add_argument("--port", type=int, default=8910)
    given = parser.parse_args()
    api, base = f"http://127.0.0.1:{given.port}", f"http://127.0.0.1:{given.port + 1}"
    served = subprocess.Popen([sys.executable, "-m", "klaxon", "serve", "--read-only", str(given.run), "--port", str(given.port)])
    shown = subprocess.Popen([sys.executable, "-m", "dashboard.launch", "--api", api, "--port", str(given.port + 1)])
    try:
        until_answers(f"{api}/healthz", served)
        until_answers(base, shown)
        OUT.mkdir(exist_ok=True)
        pages = sorted(path.stem for path in (Path(__file__).parents[1] / "dashboard" / "pages").glob("*.py"))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=given.chromium)
            for width, height, theme in SIZES:
                page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme).new_page()
                for name in pages:
                    picture(page, f"{base}/{name}?window=all", OUT / f"{name}-{width}-{theme}.png", width=width, height=height)
                    print(f"{name}, {width} pixels, {theme}", flush=True)
            browser.close()
    finally:
        for process in (shown, served):
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
