"""Every page of the dashboard in a browser, during a real demo with a real fault: what an engineer does after the link in the alert."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from playwright.sync_api import Page, expect

from test_dashboard_browser import PATIENCE_MS, browser  # noqa: F401
from test_dashboard_incident_browser import silences_it, takes_it

ROOT = Path(__file__).parent.parent
PAGES = sorted(path.stem for path in (ROOT / "dashboard" / "pages").glob("*.py"))
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=document.title='owned'>[click](javascript:document.title='owned')"
ALARM_SECONDS = 1500.0
pytestmark = [pytest.mark.engine, pytest.mark.browser, pytest.mark.alone]


@contextlib.contextmanager
def demo(folder: Path) -> Iterator[psutil.Process]:
    """`klaxon demo` with its page, until the test is over."""
    command = [sys.executable, "-m", "klaxon", "demo", "--fault", "raw-logprobs", "--steps", "14", "--dir", str(folder)]
    with (folder.parent / "demo.log").open("wb") as log, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT) as process:
        demo_process = psutil.Process(process.pid)
        try:
            yield demo_process
        finally:
            children = demo_process.children(recursive=True) if process.poll() is None else []
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=120)
            for child in (*children, *([demo_process] if process.poll() is None else [])):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()


def until(found: Callable[[], Any], what: str, *, seconds: float, log: Path, process: psutil.Process | None = None) -> Any:
    """What `found` returns once it is something. The log's end is in the error."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        gone = process is not None and process.status() == psutil.STATUS_ZOMBIE
        assert not gone and time.monotonic() < deadline, f"{what} did not come{' and the demo ended' if gone else ''}:\n{log.read_text(errors='replace')[-4000:]}"
        time.sleep(1.0)
    return result


def link_of(received: Path) -> str:
    """The dashboard's link in the first Slack message that names the cause."""
    lines = received.read_text().splitlines() if received.exists() else []
    told = [line for line in lines if json.loads(line)["kind"] == "slack" and "raw_logprobs" in line]
    found = re.findall(r"<(http[^|>]+)\|Dashboard>", told[0]) if told else []
    return html.unescape(found[0]) if found else ""


def test_an_engineer_follows_the_link_of_a_real_alert_through_every_page(browser, tmp_path):  # noqa: F811
    folder, log = tmp_path / "run", tmp_path / "demo.log"
    with demo(folder) as process:
        link = until(lambda: link_of(folder / "received.jsonl"), "a Slack message with the cause", seconds=ALARM_SECONDS, log=log, process=process)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        page.goto(link, wait_until="domcontentloaded")
        reads_the_cause(page)
        takes_it(page)
        silences_it(page)
        page.keyboard.press("Escape")
        for name in PAGES:
            opens(page, name)
        filters_a_slice(page)
        reads_hostile_tokens(page, folder, log)
        loses_the_daemon_and_finds_it_again(page, folder, process, log)


def reads_the_cause(page: Page) -> None:
    expect(page.locator(".st-key-state-firing")).to_contain_text("nobody has taken it")
    expect(page.locator(".st-key-state-firing, [class*=st-key-badges]").first).to_be_visible()
    expect(page.locator(".st-key-next")).to_contain_text("--logprobs-mode processed_logprobs")
    for name in ("timeline", "explanations"):
        expect(page.locator(f".st-key-chart-{name}").locator("canvas, svg.marks").first).to_be_visible()
    expect(page.get_by_text("raw_logprobs").first).to_be_visible()


def opens(page: Page, name: str) -> None:
    """By the row of links; every part of it could be drawn."""
    page.locator(f".st-key-navigation-{name}, .st-key-navigation-{name}-here").get_by_role("link").click()
    expect(page).to_have_title(f"{name.capitalize()} · Klaxon")
    expect(page.locator("[class*='st-key-chart-']").first).to_be_visible()
    expect(page.get_by_text("could not be drawn")).to_have_count(0)


def filters_a_slice(page: Page) -> None:
    opens(page, "slices")
    page.locator("[class*='st-key-replica-']").get_by_role("button").first.click()
    expect(page).to_have_url(re.compile(r"slice=replica"))
    expect(page.locator(".st-key-slice_off")).to_be_visible()
    page.locator(".st-key-slice_off").get_by_role("button").click()
    expect(page).not_to_have_url(re.compile(r"slice=replica"))


def reads_hostile_tokens(page: Page, folder: Path, log: Path) -> None:
    """A prompt of markup, sampled by the real engine while its fault lasts, is among the rollouts furthest off and stays text."""
    engine = re.search(r'\[engine\]\s+url = "([^"]+)"', (folder / "config.toml").read_text()).group(1)

    def shown() -> Any:
        asked = {"model": httpx.get(f"{engine}/v1/models", timeout=60).json()["data"][0]["id"], "prompt": f"{HOSTILE}\nThe weirdest words in the world are", "n": 4,
                 "max_tokens": 48, "temperature": 0.7, "logprobs": 1}
        httpx.post(f"{engine}/v1/completions", json=asked, timeout=300).raise_for_status()
        page.reload(wait_until="domcontentloaded")
        expect(page.locator(".st-key-chart-worst").locator("canvas, svg.marks").first).to_be_visible()
        for rollout in hostile_rollouts():
            page.goto(f"http://127.0.0.1:8501/tokens?rollout={rollout}", wait_until="domcontentloaded")
            expect(page.locator(".st-key-chart-tokens")).to_be_visible()
            return rollout
        return None

    opens(page, "tokens")
    until(shown, "a hostile rollout among the worst", seconds=300.0, log=log)
    expect(page.locator(".st-key-chart-tokens")).to_contain_text("script")
    assert page.title() == "Tokens · Klaxon"
    assert page.locator(".st-key-chart-tokens").locator("script, img, a[href^='javascript']").count() == 0


def hostile_rollouts() -> list[str]:
    """Request hashes of kept rollouts whose prompt holds the markup, by the daemon's API."""
    import pyarrow as pa

    with pa.ipc.open_stream(httpx.get("http://127.0.0.1:8765/v1/tokens", params={"limit": 200}, timeout=60).content) as reader:
        kept = reader.read_all()["request"].to_pylist()
    return [one for one in kept if "onerror" in "".join(map(str, (httpx.get(f"http://127.0.0.1:8765/v1/tokens/{one}", timeout=60).json()["words"] or {}).get("prompt") or []))]


def loses_the_daemon_and_finds_it_again(page: Page, folder: Path, process: psutil.Process, log: Path) -> None:
    """kill -9 under the open page, then the same command again; the demo itself is held meanwhile, for it would rightly call this an accident."""
    opens(page, "now")
    [daemon] = [child for child in process.children(recursive=True) if child.cmdline()[1:4] == ["-m", "klaxon", "run"]]
    command, environment = daemon.cmdline(), daemon.environ()
    process.suspend()
    daemon.kill()
    expect(page.locator(".st-key-verdict-disconnected, .st-key-state-disconnected").first).to_be_visible()
    with (folder / "again.log").open("wb") as out, subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=out, stderr=subprocess.STDOUT) as again:
        try:
            expect(page.locator(".st-key-verdict-disconnected, .st-key-state-disconnected")).to_have_count(0)
            expect(page.get_by_text("owner ada").first).to_be_visible()
        finally:
            again.terminate()
            again.wait(timeout=60)
