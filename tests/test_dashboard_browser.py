"""The page in a real browser, over the real read API: verdict, incident, charts, live updates, and a daemon that dies."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from collector import signals
from collector.records import BatchStats, Evidence, Rollout, Score, WeightSpan
from collector.store import Store
from dashboard.launch import command
from klaxon.api import build_api

pytestmark = pytest.mark.browser

CHROMIUM = os.environ.get("KLAXON_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
PATIENCE_MS = 60_000
HOSTILE = "![x](http://evil.example/p.png) <script>document.title='owned'</script> [click](javascript:alert(1)) :red[boo]"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Daemon:
    """The real store and read API over a run the test writes, with a status the test sets."""

    def __init__(self, folder: Path) -> None:
        self.store, self.port = Store(folder / "k.duckdb", threads=1), free_port()
        self.verdict, self.open_incidents, self.t = "healthy", [], 0
        self.started_at = time.time() - 600
        self._server: uvicorn.Server | None = None

    def batch(self, *, shift: float) -> None:
        rng, t, at = np.random.default_rng(self.t), self.t, self.started_at + 5 * self.t
        trainer = rng.uniform(-3, -0.1, 200).astype(np.float32)
        engine = (trainer + rng.normal(shift, 0.01, 200)).astype(np.float32)
        rollout = Rollout(
            request_id=str(t), engine="http://e:8000", prompt_tokens_P=np.arange(5, dtype=np.int32),
            completion_tokens_T=np.zeros(200, np.int32), engine_logprobs_T=engine, sampled_mask_T=np.ones(200, bool),
            weight_versions=(WeightSpan(start=0, end=200, version=str(t // 5)),), finished_at=at)
        slices = signals.slice_stats(rollout, Score(request_id=str(t), views={"expected": trainer}))
        self.store.append_batch(
            BatchStats(t=t, opened_at=at - 5, closed_at=at, slices=slices, counts={"seen": 1}),
            [Evidence(t=t, stream="self_bet", weight=0.5, gain=shift, log_sr=shift * t, started_at=None)], ln_m=shift * t, ln_a=9.5)
        self.t += 1

    def status(self) -> dict:
        now = time.time()
        return {
            "run": "browser-run", "tier": 2, "now": now, "heartbeat_at": now, "started_at": self.started_at, "verdict": self.verdict,
            "verdict_text": "Rollout logprobs no longer match the trainer" if self.verdict == "mismatch" else "All is well here.",
            "budget": "1 per 30 days", "ln_m": 0.3, "ln_a": 9.5, "batch_seconds": 5.0, "t": self.t, "floor_nats": 0.012,
            "taps": [{"source": "plugin", "engine": "http://e:8000", "last_seen": now - 1, "dropped": 4, "alive": True}],
            "engine": {"vllm_version": "0.32.0", "reachable_at": now - 1},
            "scorer": {"state": "on", "coverage": 0.41, "tokens_per_second": 900.0, "backlog": 0, "last_scored_at": now - 2},
            "weights": {"trainer_version": "3", "engine_version": "3", "lag": 0},
            "counts": {"seen": 100, "sampled": 50, "scored": 48, "refused": 7, "dropped_by_taps": 4}, "blind_spots": ["the dark side"],
        }

    def incidents(self) -> list[dict]:
        return self.open_incidents

    def start(self) -> None:
        config = uvicorn.Config(build_api(self.store, self), host="127.0.0.1", port=self.port, log_level="error", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.02)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory) -> Iterator[Daemon]:
    running = Daemon(tmp_path_factory.mktemp("browser"))
    for _ in range(30):
        running.batch(shift=0.0)
    running.store.append_metrics(1, running.started_at + 20, {"reward": 0.25, "entropy": 1.1})
    running.store.append_metrics(2, running.started_at + 60, {"reward": 0.5, "entropy": 1.0})
    running.start()
    yield running
    running.stop()
    running.store.close()


@contextlib.contextmanager
def dashboard_of(api: str, log: Path, *, port: int | None = None) -> Iterator[str]:
    port = port or free_port()
    with log.open("wb") as out, subprocess.Popen(
            command(port=port), env={**os.environ, "KLAXON_API": api}, stdout=out, stderr=subprocess.STDOUT) as server:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def dashboard(daemon, tmp_path_factory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("log") / "streamlit.log"
    with dashboard_of(f"http://127.0.0.1:{daemon.port}", log) as url:
        yield url
    faults = [line for line in log.read_text().splitlines() if "Error" in line]
    assert faults == ["TypeError: 'int' object is not subscriptable"] * len(faults), "only the fault one test made on purpose"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def visit(browser: Browser, url: str, *, width: int = 1280) -> Page:
    """A page that shows a verdict, whatever it is. The server may still be starting."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while True:
        try:
            page.goto(url, wait_until="domcontentloaded")
            break
        except Exception as error:
            if "ERR_CONNECTION_REFUSED" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.3)
    expect(page.locator("[class*='st-key-verdict-']")).to_be_visible()
    return page


@pytest.fixture(scope="module")
def page(browser, dashboard) -> Iterator[Page]:
    opened = visit(browser, dashboard)
    yield opened
    opened.close()


def verdict(page: Page):
    return page.locator("[class*='st-key-verdict-']").get_by_test_id("stAlertContainer")


def test_the_page_shows_verdict_tier_heartbeats_and_what_is_not_seen(page):
    expect(verdict(page)).to_contain_text("Healthy")
    expect(verdict(page)).to_contain_text("All is well here.")
    expect(page.get_by_text("coverage 41 %")).to_be_visible()
    expect(page.locator(".st-key-pulse-engine")).to_contain_text("vLLM 0.32.0")
    for name in ("tap", "scorer", "klaxon"):
        expect(page.locator(f".st-key-pulse-{name}")).to_contain_text(re.compile("ago|now"))
    expect(page.locator(".st-key-unseen")).to_contain_text("7 rollouts or lines refused")
    expect(page.locator(".st-key-unseen")).to_contain_text("the dark side")


@pytest.mark.parametrize("name", ["mismatch", "evidence", "clip", "k3", "weights", "reward", "entropy"])
def test_every_chart_is_drawn_and_explained(page, name):
    chart = page.locator(f".st-key-chart-{name}")
    expect(chart.get_by_test_id("stVegaLiteChart").locator("canvas, svg.marks").first).to_be_visible()
    chart.get_by_test_id("stTooltipHoverTarget").first.hover()
    expect(page.get_by_test_id("stTooltipContent").first).to_contain_text(re.compile(r"\w{3,}.*\."))


def test_any_signal_can_be_chosen_by_a_link(browser, dashboard):
    linked = visit(browser, f"{dashboard}/?signal=tme")
    try:
        chart = linked.locator(".st-key-chart-signal")
        expect(chart.get_by_test_id("stVegaLiteChart").locator("canvas, svg.marks").first).to_be_visible(timeout=PATIENCE_MS)
        expect(chart).to_contain_text("tme")
    finally:
        linked.close()


def test_an_alarm_arrives_without_a_reload_and_its_text_cannot_act(page, daemon):
    page.evaluate("window.neverReloaded = true")
    now = time.time()
    for _ in range(5):
        daemon.batch(shift=0.3)
    daemon.store.append_event(now, "alarm", "the evidence reached its threshold in batch 33")
    daemon.open_incidents = [{
        "id": "inc_1", "state": "firing", "severity": "page", "title": HOSTILE, "opened_at": now - 30, "since": [now - 60, now - 40],
        "drifts": [{"text": "ln M = 12 crossed ln A = 9.5", "slice": {"replica": "http://e:8000"}}],
        "diagnosis": {"verdict": "raw_logprobs", "confident": True, "floor_nats": 0.012, "next": "vllm serve --logprobs-mode processed_logprobs",
                      "causes": [{"cause": "raw_logprobs", "residual_nats": 0.013, "evidence": ["the engine says so"]},
                                 {"cause": "healthy", "residual_nats": 0.3}],
                      "impact": {"last_clean_version": "5", "tainted_requests": ["a", "b"], "token_share": 1.0}},
        "notifications": [{"receiver": "slack", "reason": "first", "state": "sent", "at": now - 29, "detail": "first alarm"}],
    }]
    daemon.verdict = "mismatch"
    expect(verdict(page)).to_contain_text("Mismatch since")
    card = page.locator(".st-key-incident-inc_1")
    for text in ("raw_logprobs", "confident", "ln M = 12 crossed ln A = 9.5", "0.013 nats", "floor 0.012", "healthy (0.3 nats)",
                 "last clean weight version 5", "2 tainted rollouts", "slack, first, sent"):
        expect(card).to_contain_text(text)
    expect(card.get_by_test_id("stCode")).to_contain_text("vllm serve --logprobs-mode processed_logprobs")
    expect(page.locator(".st-key-events")).to_contain_text("the evidence reached its threshold in batch 33")
    expect(card).to_contain_text("<script>")
    assert card.locator("img, script, a[href*='evil'], a[href^='javascript']").count() == 0
    assert page.title() != "owned" and page.evaluate("window.neverReloaded") is True


def test_a_phone_needs_no_sideways_scrolling(browser, dashboard):
    phone = visit(browser, dashboard, width=390)
    expect(phone.locator(".st-key-chart-mismatch canvas, .st-key-chart-mismatch svg.marks").first).to_be_visible()
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    for link in phone.locator(".st-key-navigation a").all():
        box = link.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390, "every page can be reached without knowing that the row scrolls"
    phone.close()


def test_a_part_that_cannot_be_drawn_says_so_and_the_rest_stays(page, daemon):
    daemon.open_incidents = [{"id": "odd", "state": "firing", "drifts": 7}]
    expect(page.get_by_text("This part of the page (incidents) could not be drawn")).to_be_visible()
    expect(page.locator(".st-key-pulse-engine")).to_be_visible()
    assert page.get_by_test_id("stException").count() == 0


def test_a_daemon_that_dies_is_said_and_one_that_returns_is_seen(page, daemon):
    daemon.stop()
    expect(verdict(page)).to_contain_text("Disconnected")
    expect(verdict(page)).to_contain_text("klaxon run")
    expect(page.locator(".st-key-chart-mismatch")).to_be_visible()  # the last picture stays, marked as old
    assert page.get_by_test_id("stException").count() == 0 and "Traceback" not in page.content()
    daemon.verdict, daemon.open_incidents = "healthy", []
    daemon.start()
    expect(verdict(page)).to_contain_text("Healthy")
    expect(page.locator("[class*='st-key-incident-']")).to_have_count(0)


def test_a_page_without_any_daemon_says_what_to_do(browser, tmp_path):
    with dashboard_of(f"http://127.0.0.1:{free_port()}", tmp_path / "log") as url:
        page = visit(browser, url)
        expect(verdict(page)).to_contain_text("Disconnected")
        expect(verdict(page)).to_contain_text("KLAXON_API")
        page.close()
    assert "Traceback" not in (tmp_path / "log").read_text()
