"""The page while it is looked at, in a real browser: Back is one press, a refresh takes nothing away, a killed daemon comes back, and another run is one click."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from alerts_served import Served
from dashboard_served import faulty_run
from dashboard_sign_in import launched
from klaxon.demo.settings import write_config
from test_dashboard_browser import PATIENCE_MS, browser, free_port  # noqa: F401

pytestmark = pytest.mark.browser


class Process:
    """A daemon of its own, to be killed."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._config = write_config(folder / "config.toml", {"run": {"name": "live", "dir": str(folder / "state")}, "daemon": {"port": self.port},
                                                             "shadow": {"enabled": False}, "alerts": {"console": False}})
        self._log = (folder / "daemon.log").open("wb")

    def start(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-m", "klaxon", "run", "--config", str(self._config)], stdout=self._log, stderr=subprocess.STDOUT,
                                         env={**os.environ, "KLAXON_TOKEN": ""})
        deadline = time.monotonic() + 120
        while True:
            assert self._process.poll() is None and time.monotonic() < deadline, "the daemon does not start"
            try:
                if httpx.get(f"{self.url}/healthz", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(60)

    def close(self) -> None:
        self.kill()
        self._log.close()


@pytest.fixture(scope="module")
def sick(tmp_path_factory) -> Iterator[Served]:
    with faulty_run(tmp_path_factory.mktemp("sick")) as served:
        yield served


@pytest.fixture(scope="module")
def live(tmp_path_factory) -> Iterator[Process]:
    process = Process(tmp_path_factory.mktemp("live"))
    process.start()
    yield process
    process.close()


@pytest.fixture(scope="module")
def url(sick, live, tmp_path_factory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("page") / "log"
    with launched(log, "--api", f"sick={sick.url}", "--api", f"live={live.url}", port=free_port()) as found:
        yield found
    assert "Traceback" not in log.read_text()


@pytest.fixture
def page(browser, url, sick) -> Iterator[Page]:  # noqa: F811
    sick.daemon.live.beat()  # its threads do not run
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    yield opened
    opened.close()


def has(page: Page, path: str, **query: str) -> None:
    """The address is this path with exactly these parameters."""
    wanted = "".join(f"(?=[^#]*[?&]{key}={re.escape(value)}(&|$))" for key, value in query.items())
    expect(page).to_have_url(re.compile(f"^http://[^/]*{re.escape(path)}{wanted}(\\?[^&]+(&[^&]+){{{max(0, len(query) - 1)}}})?$"))


def test_back_leaves_a_page_or_takes_back_a_choice_with_one_press(page, url):
    page.goto(f"{url}/slices?run=sick&window=3h")
    expect(page.locator(".st-key-chart-replicas")).to_be_visible()
    page.locator(".st-key-navigation-incident").get_by_role("link").click()
    expect(page.locator(".st-key-state-firing")).to_be_visible()
    has(page, "/incident", run="sick", window="3h")
    page.go_back()
    has(page, "/slices", run="sick", window="3h")
    expect(page.locator(".st-key-chart-replicas")).to_be_visible()
    page.locator(".st-key-navigation-now").get_by_role("link").click()
    page.get_by_text("Open this incident").click()
    expect(page.locator(".st-key-state-firing")).to_be_visible()
    page.go_back()
    has(page, "/", run="sick", window="3h")
    expect(page.locator(".st-key-verdict-mismatch")).to_be_visible()
    page.get_by_text("24 h", exact=True).click()
    has(page, "/", run="sick", window="24h")
    page.go_back()
    has(page, "/", run="sick", window="3h")
    page.go_back()
    has(page, "/slices", run="sick", window="3h")


def test_scroll_and_a_chosen_signal_survive_two_refreshes(page, url):
    page.goto(f"{url}/now?run=sick&window=3h")
    expect(page.locator(".st-key-chart-mismatch canvas, .st-key-chart-mismatch svg.marks").first).to_be_visible()
    box = page.get_by_role("combobox", name="Another signal")
    box.click()
    box.press_sequentially("tme")
    page.get_by_role("option", name="tme", exact=True).click()
    chart = page.locator(".st-key-chart-signal")
    expect(chart.get_by_test_id("stVegaLiteChart").locator("canvas, svg.marks").first).to_be_visible()
    main = page.get_by_test_id("stMain")
    main.evaluate("element => element.scrollTo(0, 700)")
    before = main.evaluate("element => element.scrollTop")
    assert before == 700
    page.evaluate("window.neverReloaded = true")
    as_of = page.get_by_text(re.compile("as of [0-9:]+ UTC"))
    for _ in range(2):
        was = as_of.inner_text()
        expect(as_of).not_to_have_text(was)
        assert main.evaluate("element => element.scrollTop") == before
    expect(box).to_have_value("tme")
    expect(chart).to_be_visible()
    assert page.evaluate("window.neverReloaded") is True


def test_a_killed_daemon_is_said_and_the_page_reconnects_by_itself_when_it_is_back(page, url, live):
    page.goto(f"{url}/now?run=live")
    expect(page.locator(".st-key-verdict-starting")).to_be_visible()
    page.evaluate("window.neverReloaded = true")
    live.kill()
    band = page.locator(".st-key-verdict-disconnected")
    expect(band).to_contain_text("What stands below is from")
    expect(band).to_contain_text(re.compile(r"\(\d+ s ago\)"))
    expect(page.locator(".st-key-pulses")).to_be_visible()  # the last picture stays
    expect(page.get_by_test_id("stSidebar")).to_contain_text("unreachable")
    live.start()
    expect(page.locator(".st-key-verdict-starting")).to_be_visible()
    expect(page.get_by_test_id("stSidebar")).not_to_contain_text("unreachable")
    assert page.evaluate("window.neverReloaded") is True and page.get_by_test_id("stException").count() == 0


def test_another_run_is_one_click_in_the_sidebar_and_back_is_one_press(page, url):
    page.goto(f"{url}/incident?run=sick&window=3h&incident=last")
    expect(page.locator(".st-key-state-firing")).to_be_visible()
    sidebar = page.get_by_test_id("stSidebar")
    expect(sidebar).to_contain_text("firing · 1 open")
    sidebar.get_by_text("live", exact=True).click()
    expect(page.locator(".st-key-state-none")).to_be_visible()
    has(page, "/incident", run="live", window="3h")
    assert page.locator(".st-key-state-firing").count() == 0
    page.go_back()
    expect(page.locator(".st-key-state-firing")).to_be_visible()
    has(page, "/incident", run="sick", window="3h", incident="last")
