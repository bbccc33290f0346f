"""The Tokens page in a real browser: from the incident to the worst rollout, token by token, and what a model wrote stays text."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from test_dashboard_browser import PATIENCE_MS, browser, dashboard_of, visit  # noqa: F401
from tokens_served import ATTACKS, token_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def shown(browser, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("tokens")
    with token_run(folder, "text") as served, dashboard_of(served.url, folder / "log") as url:
        visit(browser, url).close()
        yield url, served
    assert "Traceback" not in (folder / "log").read_text() and "Error" not in (folder / "log").read_text()


def opened(browser, url: str, *, width: int = 1280, asked: list[str] | None = None) -> Page:  # noqa: F811
    """The page with its first tokens; `asked` gathers every address it asked for."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    if asked is not None:
        page.on("request", lambda request: asked.append(request.url))
    page.goto(url, wait_until="domcontentloaded")
    expect(page.locator(".flow [data-i]").first).to_be_visible()
    return page


def test_hostile_text_is_shown_and_cannot_act(browser, shown):  # noqa: F811
    asked: list[str] = []
    page = opened(browser, f"{shown[0]}/tokens?window=all", asked=asked)
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    flow = page.locator(".flow")
    for attack in ATTACKS:
        if attack.isprintable():
            expect(flow).to_contain_text(attack)
    expect(flow).to_contain_text("⟨ESC⟩[31mred⟨ESC⟩[0m")
    expect(flow).to_contain_text("⟨U+202E⟩txt.exe")
    flow.get_by_text("[click](javascript:document.title='owned')").click()
    expect(page.locator(".tip b")).to_have_text("[click](javascript:document.title='owned')")
    box = page.locator(".st-key-chart-tokens")
    assert box.locator("img, script, iframe, object, a, svg[onload], [onerror]").count() == 0
    assert page.title() == "Tokens · Klaxon" and not dialogs and not [url for url in asked if not url.startswith((shown[0], shown[0].replace("http", "ws"), "data:", "blob:"))]
    page.close()


def test_a_token_tells_its_numbers_on_hover_and_by_keyboard(browser, shown):  # noqa: F811
    page = opened(browser, f"{shown[0]}/tokens?window=all")
    page.locator("[data-i='65']").hover()
    tip = page.locator(".tip")
    for label in ("engine, log p", "trainer, log q", "d = log q − log p", "entropy", "rank", "weight version"):
        expect(tip).to_contain_text(label)
    expect(tip).to_contain_text("65 of 260")
    page.locator(".flow").focus()
    page.keyboard.press("Home")
    expect(tip).to_contain_text("0 of 260")
    page.keyboard.press("ArrowRight")
    expect(tip).to_contain_text("1 of 260")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".now")).to_have_class(re.compile("[mp][34]"))
    page.locator("[data-i='145']").hover()
    expect(tip).to_contain_text("the policy did not sample it")
    expect(page.locator(".mark.version")).to_have_text(["v 40", "v 41"])
    expect(page.locator(".legend")).to_contain_text("nats")
    page.close()


def test_next_and_previous_go_by_key_and_the_address_opens_the_same_rollout(browser, shown):  # noqa: F811
    page = opened(browser, f"{shown[0]}/tokens?window=all")
    steps = page.locator(".st-key-steps")
    expect(steps).to_contain_text("1 of 12")
    page.keyboard.press("n")
    expect(steps).to_contain_text("2 of 12")
    page.keyboard.press("n")
    expect(steps).to_contain_text("3 of 12")
    page.keyboard.press("p")
    expect(steps).to_contain_text("2 of 12")
    expect(page).to_have_url(re.compile("rollout=[0-9a-f]{24}"))
    name = re.search("rollout=([0-9a-f]{24})", page.url).group(1)
    other = opened(browser, page.url)
    expect(other.locator(".st-key-steps")).to_contain_text(name)
    expect(other.locator(".st-key-steps")).to_contain_text("2 of 12")
    for one in (page, other):
        one.close()


def test_the_numbers_are_downloaded_without_a_formula(browser, shown, tmp_path):  # noqa: F811
    page = opened(browser, f"{shown[0]}/tokens?window=all")
    with page.expect_download() as download:
        page.locator(".st-key-csv-tokens button").first.click()
    download.value.save_as(tmp_path / "tokens.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "tokens.csv").read_text(encoding="utf-8"), newline="")))
    assert len(rows) == 260 and float(rows[100]["d_nats"]) == pytest.approx(float(rows[100]["trainer_logprob_nats"]) - float(rows[100]["engine_logprob_nats"]), abs=1e-5)
    texts = [row["text"] for row in rows]
    assert "'=HYPERLINK(\"http://evil.example\")" in texts and "'@SUM(A1:A9)" in texts and not [text for text in texts if text.lstrip()[:1] in ("=", "+", "-", "@") and text.strip()]
    page.close()


def test_the_incident_leads_to_its_worst_rollouts(browser, shown):  # noqa: F811
    page = visit(browser, shown[0])
    page.goto(f"{shown[0]}/incident", wait_until="domcontentloaded")
    page.get_by_text("Worst rollouts since the change, token by token").click()
    expect(page).to_have_url(re.compile(r"/tokens\?.*incident=inc_"))
    expect(page.get_by_text(re.compile("Only since the change of incident"))).to_be_visible()
    expect(page.locator(".flow [data-i]").first).to_be_visible()
    expect(page.locator(".st-key-steps")).to_contain_text(re.compile("1 of 9"))  # of replica e1, of three batches since the change
    page.get_by_role("button", name="Show everything").click()
    expect(page).not_to_have_url(re.compile("incident="))
    page.close()


def test_the_slices_lead_to_the_worst_rollouts_of_a_slice(browser, shown):  # noqa: F811
    page = visit(browser, f"{shown[0]}/slices?window=all&slice=replica=http://e0:8000")
    page.get_by_text("Worst rollouts of this slice, token by token").click()
    expect(page).to_have_url(re.compile("/tokens.*slice=replica"))
    expect(page.locator(".st-key-steps")).to_contain_text("of ")
    expect(page.get_by_text("e0:8000").first).to_be_visible()
    page.close()


def test_a_long_prompt_does_not_hide_the_completion(browser, shown):  # noqa: F811
    page = opened(browser, f"{shown[0]}/tokens?window=all", width=390)
    scrolled = page.locator(".flow").evaluate("async box => { for (let i = 0; i < 600 && box.scrollTop < 100; i++) await new Promise(requestAnimationFrame); return box.scrollTop; }")
    assert scrolled > 100
    flow, mark = page.locator(".flow").bounding_box(), page.locator(".flow .mark").first.bounding_box()
    assert flow["y"] < mark["y"] < flow["y"] + flow["height"] / 2
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling_and_the_colours_can_be_read(browser, shown, theme):  # noqa: F811
    page = opened(browser, f"{shown[0]}/tokens?window=all", width=390)
    page.emulate_media(color_scheme=theme)
    page.reload(wait_until="domcontentloaded")
    expect(page.locator(".flow [data-i]").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("[data-i='70']").click()
    tip = page.locator(".tip").bounding_box()
    assert tip["x"] >= 0 and tip["x"] + tip["width"] <= 390
    for name in ("z", "m4", "p4"):
        assert contrast(page, f".flow .t.{name}") > 4.5, name
    page.close()


CONTRAST = """element => {
  const read = text => text.match(/[\\d.]+/g).map(Number);
  const light = rgb => { const [r, g, b] = rgb.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const under = read(getComputedStyle(document.querySelector('.stApp')).backgroundColor), style = getComputedStyle(element), over = read(style.backgroundColor);
  const alpha = over.length > 3 ? over[3] : 1, back = over.slice(0, 3).map((v, i) => alpha * v + (1 - alpha) * under[i]);
  const [a, b] = [light(back), light(read(style.color).slice(0, 3))].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""


def contrast(page: Page, selector: str) -> float:
    """Contrast of a token's text with its background, as WCAG 2 defines it."""
    return page.locator(selector).first.evaluate(CONTRAST)


def test_with_numbers_alone_every_token_is_a_box_and_the_key_to_more_is_named(browser, tmp_path: Path):  # noqa: F811
    with token_run(tmp_path, "numbers", incident=False) as served, dashboard_of(served.url, tmp_path / "log") as url:
        visit(browser, url).close()
        page = opened(browser, f"{url}/tokens?window=all")
        expect(page.locator(".st-key-chart-tokens")).to_contain_text('[store] tokens = "numbers"')
        assert page.locator(".flow.blank [data-i]").count() == 260 and set(page.locator(".flow [data-i]").all_inner_texts()) == {""}
        page.close()
    assert "Traceback" not in (tmp_path / "log").read_text()
