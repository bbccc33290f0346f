"""From the link in the alert to the incident's page in a real browser: read it, take it, have quiet, and see both there."""

from __future__ import annotations

import html
import json
import re
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect

from alerts_helpers import receiver
from dashboard_served import faulty_run
from test_dashboard_browser import PATIENCE_MS, browser, dashboard_of, free_port, visit  # noqa: F401

pytestmark = pytest.mark.browser


def test_the_alerts_link_opens_the_incident_where_it_is_taken_and_silenced(browser, tmp_path):  # noqa: F811
    port = free_port()
    with receiver() as (server, box):
        alerts = {"console": False, "dashboard_url": f"http://127.0.0.1:{port}",
                  "receivers": [{"type": "slack_webhook", "url": f"{server.url}/services/T000/B000/key"}]}
        with faulty_run(tmp_path, alerts=alerts) as served, dashboard_of(served.url, tmp_path / "log", port=port) as url:
            visit(browser, url).close()
            served.alerts.deliver_due(time.time())
            [link] = re.findall(r"<(http[^|>]+)\|Dashboard>", json.dumps(box.messages[0]["body"]))
            link = html.unescape(link)  # as Slack does
            assert parse_qs(urlsplit(link).query) == {"run": ["r1"], "incident": [served.alerts.incidents(1)[0]["id"]], "window": ["30m"], "slice": ["replica=http://e1:8000"]}
            page = browser.new_page(viewport={"width": 390, "height": 844})
            page.set_default_timeout(PATIENCE_MS)
            expect.set_options(timeout=PATIENCE_MS)
            page.goto(link, wait_until="domcontentloaded")
            reads_the_incident(page)
            takes_it(page)
            silences_it(page)
            goes_to_now_and_back(page, served.alerts.incidents(1)[0]["id"])
            page.close()
    assert "Traceback" not in (tmp_path / "log").read_text()


def reads_the_incident(page) -> None:
    expect(page.locator(".st-key-state-firing")).to_contain_text("nobody has taken it")
    expect(page.locator(".st-key-next").get_by_test_id("stCode")).to_contain_text("--logprobs-mode processed_logprobs")
    for name in ("timeline", "explanations", "streams", "slices-replica"):
        expect(page.locator(f".st-key-chart-{name}").locator("canvas, svg.marks").first).to_be_visible()
    evidence = page.locator(".st-key-evidence")
    expect(evidence).to_contain_text("<script>")
    assert evidence.locator("img, script, a[href*='evil'], a[href^='javascript']").count() == 0 and page.title() == "Incident · Klaxon"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def takes_it(page) -> None:
    act = page.locator(".st-key-act")
    act.get_by_role("button", name="Acknowledge").click()
    page.get_by_label("Your name").fill("ada")
    page.get_by_label("What you are doing about it").fill("rolling the engine back")
    page.get_by_test_id("stFormSubmitButton").get_by_role("button", name="Acknowledge").click()
    expect(page.locator(".st-key-said")).to_contain_text("Acknowledged by ada")
    expect(page.locator(".st-key-state-acknowledged")).to_contain_text("Taken by ada")
    expect(page.locator(".st-key-history")).to_contain_text("rolling the engine back")


def silences_it(page) -> None:
    page.keyboard.press("Escape")
    page.locator(".st-key-act").get_by_role("button", name="Silence").click()
    page.get_by_label("Your name").fill("ada")
    page.get_by_label("Why").fill("the fix is on its way")
    page.get_by_test_id("stFormSubmitButton").get_by_role("button", name="Silence").click()
    expect(page.locator(".st-key-said")).to_contain_text("Silenced by ada")
    expect(page.locator(".st-key-history")).to_contain_text("the fix is on its way")
    expect(page.locator(".st-key-messages")).to_contain_text("muted")


def goes_to_now_and_back(page, incident: str) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    page.keyboard.press("Escape")
    page.locator(".st-key-navigation-now").get_by_role("link").click()
    card = page.locator(f".st-key-incident-{incident}")
    expect(card).to_contain_text("owner ada")
    expect(card).to_contain_text("the fix is on its way")
    page.get_by_text("3 h", exact=True).click()
    expect(page).to_have_url(re.compile(f"/\\?(?=.*window=3h)(?=.*incident={incident})"))
    expect(card.get_by_role("link", name="Open this incident")).to_have_attribute("href", re.compile("window=3h"))
    card.get_by_text("Open this incident").click()
    expect(page.locator(".st-key-state-acknowledged")).to_be_visible()
    expect(page).to_have_url(re.compile(f"/incident\\?(?=.*window=3h)(?=.*incident={incident})"))
