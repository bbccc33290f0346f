"""`klaxon report`: one page out of a run, a daemon or a file, with the charts in it, nothing from elsewhere, and clear words where it cannot."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import sync_playwright

from collector.store import Store
from dashboard.report import pictures
from dashboard.report.gathered import gather
from dashboard.report.page import write
from dashboard_served import HOSTILE, faulty_run
from klaxon.api import build_api
from klaxon.in_process import client_of
from test_dashboard_browser import CHROMIUM, FLAGS

ROOT = Path(__file__).parent.parent
RAW = ROOT / "klaxon" / "recordings" / "v0181_raw_t07.jsonl"
CHAPTERS = ("Verdict", "The whole run", "Where it sits", "What the trainer logged", "The engine's settings", "What was not seen", "False alarms: promised and realised", "Definitions")


class Reader(HTMLParser):
    """What a browser would see: headings, tags, text and the addresses that things are loaded from."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self._quiet = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._quiet += tag == "style"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")], attrs

    def handle_endtag(self, tag: str) -> None:
        self._quiet -= tag == "style"

    def handle_data(self, data: str) -> None:
        self.text += "" if self._quiet else data


def klaxon(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tap'}", "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-m", "klaxon", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=environment, timeout=600)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The files of a run with a fault, its daemon gone."""
    folder = tmp_path_factory.mktemp("report")
    with faulty_run(folder) as served:
        for step in range(20):
            served.daemon.store.append_metrics(step, served.daemon.started_at, {"reward": 0.1 * step, "grad_norm": 0.3})
        served.daemon.keep_status()
    return folder / "state"


@pytest.fixture(scope="module")
def written(run, tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    page = tmp_path_factory.mktemp("written") / "report.html"
    return klaxon("report", run, "-o", page, "--json", cwd=page.parent), page


def test_a_run_becomes_a_page_with_every_chapter_and_its_charts(written):
    done, page = written
    assert done.returncode == 0, done.stderr
    said, shown = json.loads(done.stdout), Reader(page.read_text(encoding="utf-8"))
    assert said["charts"] >= 12 and said["bytes"] == page.stat().st_size and len(said["incidents"]) == 1 and "1 open incident since" in said["verdict"]
    assert shown.tags.count("svg") == 2 * said["charts"] and all(chapter in shown.text for chapter in CHAPTERS)
    for text in ("began between", "99.8 % → 81 %", "318 rollouts, 37 % of tokens", "Restart the engines with", "raw_logprobs, confident", "not_escalated", "Runbook: raw_logprobs",
                 "mean e^d − 1 − d", "Promised: at most"):
        assert text.lower() in shown.text.lower(), text
    assert "report: drawing the run" in done.stderr and done.stdout.count("\n") == 1


def test_text_from_outside_stays_text_and_nothing_is_loaded_or_run(written):
    _, page = written
    html = page.read_text(encoding="utf-8")
    shown = Reader(html)
    assert HOSTILE in shown.text and "script" not in shown.tags and "iframe" not in shown.tags and "img" not in shown.tags
    assert all(address.startswith(("#", "data:text/csv;base64,")) for address in shown.addresses)
    assert "default-src 'none'" in html


def test_the_pictures_do_not_take_each_others_names(written):
    _, page = written
    names = re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8"))
    assert len(names) == len(set(names))


@pytest.mark.browser
def test_the_page_opens_with_the_network_refused_in_light_and_dark_on_a_phone_and_on_paper(written, tmp_path):
    _, page = written
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--proxy-server=127.0.0.1:9"])
        for width, theme in ((1440, "light"), (390, "dark")):
            tab = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, offline=True).new_page()
            asked, complaints = [], []
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.on("console", lambda message, complaints=complaints: complaints.append(message.text))
            tab.on("dialog", lambda dialog, complaints=complaints: complaints.append(dialog.message))
            tab.goto(page.as_uri())
            assert tab.title() == "r1 · Klaxon report" and asked == [page.as_uri()] and not complaints
            assert tab.locator("svg:visible").count() >= 12 and tab.evaluate("document.documentElement.scrollWidth") <= width
            assert light(tab.evaluate("getComputedStyle(document.body).backgroundColor")) == (theme == "light")
            with tab.expect_download() as download:
                tab.locator("a", has_text="CSV").first.click()
            assert "mean" in download.value.path().read_text(encoding="utf-8")
        tab.pdf(path=tmp_path / "report.pdf")
        assert (tmp_path / "report.pdf").read_bytes()[:5] == b"%PDF-"
        browser.close()


def light(colour: str) -> bool:
    return sum(map(int, re.findall(r"\d+", colour)[:3])) > 380


def test_a_running_daemon_is_asked_over_its_api_and_one_incident_may_be_chosen(tmp_path):
    with faulty_run(tmp_path, batches=30) as served:
        done = klaxon("report", served.url, "-o", "live.html", "--incident", "last", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["incidents"] == [served.alerts.incidents(1)[0]["id"]]
        wrong = klaxon("report", served.url, "-o", "other.html", "--incident", "inc_nope", cwd=tmp_path)
        known = served.alerts.incidents(1)[0]["id"]
    assert wrong.returncode == 2 and "inc_nope" in wrong.stderr and known in wrong.stderr and "Traceback" not in wrong.stderr
    assert not (tmp_path / "other.html").exists()


def test_a_file_of_rollouts_becomes_a_page_with_what_it_says_by_itself(tmp_path):
    done = klaxon("report", RAW, "-o", "file.html", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "Mismatch"
    shown = Reader((tmp_path / "file.html").read_text(encoding="utf-8")).text
    for text in ("It looks like raw_logprobs", "What the file says by itself", "hidden temperature or top-p", "A healthy file of this length alarms with probability at most", "Evidence"):
        assert text in shown, text


@pytest.mark.parametrize(("arguments", "told"), [
    (("nowhere.jsonl",), "nowhere.jsonl"), ((".",), "holds no klaxon.duckdb"), (("http://127.0.0.1:9",), "cannot be reached"),
    ((RAW, "-o", "there.html"), "--force"), ((RAW, "-o", "no/such/report.html"), "there is no such folder"), ((RAW, "-o", "."), "is a folder")])
def test_what_cannot_be_done_is_said_in_one_clear_line(arguments, told, tmp_path):
    (tmp_path / "there.html").write_text("mine", encoding="utf-8")
    done = klaxon("report", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr and not done.stdout
    assert (tmp_path / "there.html").read_text(encoding="utf-8") == "mine" and not list(tmp_path.glob("*.new"))


def test_an_existing_page_is_replaced_when_forced(tmp_path):
    (tmp_path / "there.html").write_text("mine", encoding="utf-8")
    assert klaxon("report", RAW, "-o", "there.html", "--force", cwd=tmp_path).returncode == 0
    assert "Klaxon report" in (tmp_path / "there.html").read_text(encoding="utf-8")


def test_an_empty_run_is_told_as_one(tmp_path):
    class Empty:
        def status(self) -> dict:
            return {"run": "empty", "tier": 0, "now": 1.0}

        def incidents(self) -> list:
            return []

    with Store(tmp_path / "k.duckdb", threads=1) as store, client_of(build_api(store, Empty())) as client:
        page = write(gather(client), pictures.vl_convert_svg, source="x", made_at=0.0, version="0")
    assert page.charts == 0 and page.headline == "No incident" and "health only where Klaxon looks" in page.html


def test_a_read_api_in_this_process_answers_as_over_http(tmp_path):
    class Broken:
        def status(self) -> dict:
            raise RuntimeError("a fault of its own")

        def incidents(self) -> list:
            return []

    with Store(tmp_path / "k.duckdb", threads=1) as store, client_of(build_api(store, Broken())) as client:
        assert client.get("/healthz").json() == {"ok": True, "batches": 0}
        broken = client.get("/v1/status")
        assert isinstance(client, httpx.Client) and broken.status_code == 500 and "internal error" in broken.json()["error"]


def test_a_still_picture_keeps_what_is_drawn_and_drops_what_a_mouse_needs():
    spec = {"params": [1], "layer": [{"mark": {"type": "point", "opacity": 0, "size": 260}}, {"mark": {"type": "line"}, "params": [2]}, {"mark": {"type": "point", "opacity": 0}}]}
    assert pictures.still(spec) == {"layer": [{"mark": {"type": "line"}}, {"mark": {"type": "point", "opacity": 0}}]} and spec["params"] == [1]
