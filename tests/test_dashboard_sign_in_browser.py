"""Signing in to the page in a real browser: with an OpenID provider, and behind a proxy that names the person. Who may not act cannot, and nobody names himself."""

from __future__ import annotations

import re

import httpx
import pytest
import websockets
from playwright.sync_api import Browser, Page, expect
from websockets.sync.client import connect

from dashboard_served import faulty_run
from dashboard_sign_in import SECRET, header_file, launched, oidc_file, provider, proxy, served
from test_dashboard_browser import PATIENCE_MS, browser, free_port  # noqa: F401

pytestmark = pytest.mark.browser


@pytest.fixture(autouse=True)
def patience():
    expect.set_options(timeout=PATIENCE_MS)


def opened(browser: Browser, url: str, *, who: str = "") -> Page:  # noqa: F811
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    if who:
        context.add_cookies([{"name": "who", "value": who, "url": url}])
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url, wait_until="domcontentloaded")
    return page


def signs_in(page: Page, who: str) -> None:
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("link", name=who).click()


def test_with_an_openid_provider_the_link_survives_the_sign_in_and_the_persons_name_is_kept(browser, tmp_path):  # noqa: F811
    page_port, provider_port = free_port(), free_port()
    issuer, page_url = f"http://127.0.0.1:{provider_port}", f"http://127.0.0.1:{page_port}"
    with served(provider(issuer), provider_port), faulty_run(tmp_path / "run", batches=30) as run, launched(
            tmp_path / "log", "--api", run.url, "--sign-in", str(oidc_file(tmp_path, issuer=issuer, page=page_url)), port=page_port):
        ada = opened(browser, f"{page_url}/incident?incident=last&window=3h")
        expect(ada.locator(".st-key-state-signed-out")).to_be_visible()
        assert "no longer match" not in ada.content()
        signs_in(ada, "ada")
        expect(ada.locator(".st-key-state-firing")).to_be_visible()
        expect(ada).to_have_url(re.compile(r"/incident\?(?=.*incident=last)(?=.*window=3h)"))
        expect(ada.locator(".st-key-person")).to_contain_text(re.compile("Ada Lovelace .*, on call"))
        takes(ada, run)
        bob = opened(browser, page_url)
        signs_in(bob, "bob")
        only_reads(bob, page_url)
        for who in ("eve", "mallory"):
            other = opened(browser, page_url)
            signs_in(other, who)
            expect(other.locator(".st-key-state-closed")).to_contain_text("not on the list")
            assert other.locator(".st-key-navigation").count() == 0
            other.context.close()
        ada.keyboard.press("Escape")
        ada.get_by_role("button", name="Sign out").click()
        expect(ada.locator(".st-key-state-signed-out")).to_be_visible()
        ada.context.close()
        bob.context.close()
    assert "Traceback" not in (tmp_path / "log").read_text()


def takes(page: Page, run) -> None:
    page.locator(".st-key-act").get_by_role("button", name="Acknowledge").click()
    assert page.get_by_label("Your name").count() == 0
    page.get_by_label("What you are doing about it").fill("rolling back")
    page.get_by_test_id("stFormSubmitButton").get_by_role("button", name="Acknowledge").click()
    expect(page.locator(".st-key-said")).to_contain_text("Acknowledged by Ada Lovelace (ada")
    incident = run.alerts.incidents(1)[0]
    assert incident["state"] == "acknowledged"
    assert run.alerts.desk.explain(incident["id"], now=0.0)["history"][-1]["author"] == "Ada Lovelace (ada@example.org)"


def only_reads(page: Page, url: str) -> None:
    expect(page.locator(".st-key-navigation")).to_be_visible()
    page.goto(f"{url}/incident?incident=last")
    act = page.locator(".st-key-act")
    expect(act).to_contain_text("You may look, not act")
    for name in ("Acknowledge", "Silence"):
        expect(act.get_by_role("button", name=name)).to_be_disabled()
    assert page.get_by_label("What you are doing about it").count() == 0


def test_behind_a_proxy_its_person_acts_and_a_forged_header_is_refused(browser, tmp_path):  # noqa: F811
    page_port, proxy_port = free_port(), free_port()
    with faulty_run(tmp_path / "run", batches=30) as run, launched(
            tmp_path / "log", "--api", run.url, "--sign-in", str(header_file(tmp_path)), "--address", "0.0.0.0", port=page_port) as direct, served(
            proxy(direct), proxy_port) as front:
        bob = opened(browser, f"{front}/incident?incident=last", who="bob")
        only_reads(bob, front)
        bob.context.close()
        eve = opened(browser, front, who="eve")
        expect(eve.locator(".st-key-state-closed")).to_contain_text("eve")
        eve.context.close()
        refuses_forgeries(direct)
        ada = opened(browser, f"{front}/incident?incident=last", who="ada")
        expect(ada.locator(".st-key-person")).to_contain_text(re.compile("ada.*, on call"))
        ada.locator(".st-key-act").get_by_role("button", name="Silence").click()
        ada.get_by_label("Why").fill("the fix is on its way")
        ada.get_by_test_id("stFormSubmitButton").get_by_role("button", name="Silence").click()
        expect(ada.locator(".st-key-said")).to_contain_text("Silenced by ada")
        assert [one["author"] for one in run.alerts.desk.silences(0.0)] == ["ada@example.org"]
        ada.context.close()
    assert "Traceback" not in (tmp_path / "log").read_text()


def refuses_forgeries(url: str) -> None:
    """Whoever reaches the page beside its proxy gets nothing, whatever he says he is."""
    name = ("X-Auth-Request-Email", "ada@example.org")
    good = ("X-Klaxon-Proxy-Secret", SECRET)
    forged = {"nothing": [], "the name alone": [name], "a wrong secret": [name, ("X-Klaxon-Proxy-Secret", "guess" * 8)], "the secret, and nobody": [good],
              "two names": [name, ("x-auth-request-email", "bob@example.org"), good], "two secrets": [name, good, ("X-Klaxon-Proxy-Secret", "x")],
              "an address in a header": [name, ("X-Forwarded-For", "127.0.0.1")]}
    for what, headers in forged.items():
        for path in ("/", "/static/index.html", "/_stcore/host-config", "/media/x.csv", "/now?run=x"):
            answer = httpx.get(url + path, headers=headers, trust_env=False)
            assert (answer.status_code, "Klaxon's page:" in answer.text) == (403, True), (what, path)
        with pytest.raises(websockets.InvalidStatus, match="403"):
            connect(f"{url.replace('http', 'ws', 1)}/_stcore/stream", additional_headers=headers, subprotocols=["streamlit"], proxy=None)
    assert httpx.get(f"{url}/", headers=[name, good], trust_env=False).status_code == 200
    assert httpx.get(f"{url}/_stcore/health", trust_env=False).text == "ok"
