"""What every page says when something is not as it should be, over real HTTP: daemons that fail, answer oddly, want a token, learn, stand still, or are only files."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Response
from streamlit.testing.v1 import AppTest

from alerts_served import served_daemon
from collector.store import Store
from dashboard import words
from dashboard_served import faulty_run, forget
from klaxon.sealed import copied, keep_status, open_alerts, sealed_api

APP = Path(__file__).parent.parent / "dashboard" / "app.py"
PAGES = ("now", "incident", "slices", "training", "engine", "klaxon")


def page(url: str, name: str, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    forget()
    monkeypatch.setenv("KLAXON_API", url)
    app = AppTest.from_file(str(APP), default_timeout=120).run()
    if name != "now":
        app.switch_page(f"pages/{name}.py").run()
    return app


def said(app: AppTest) -> str:
    assert not app.exception
    parts = [*app.markdown, *app.caption, *app.warning, *app.error, *app.success, *app.info, *app.code]
    return "\n".join(str(part.value) for part in parts).replace("\\", "")


@contextmanager
def answering(app: FastAPI) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)


def always(status: int, body: str) -> FastAPI:
    app = FastAPI()
    app.add_api_route("/{path:path}", lambda path: Response(body, status_code=status, media_type="application/json"))
    return app


@pytest.mark.parametrize(("status", "body", "title", "advice"), [
    (500, '{"error": "x"}', "the daemon fails", "look at its log"), (401, '{"error": "x"}', "no access", "KLAXON_TOKEN"),
    (200, "<html>", "an odd answer", "address of a Klaxon daemon"), (200, "[1, 2]", "an odd answer", "same version"), (200, '"text"', "an odd answer", "same version"),
    (404, "{}", "an odd answer", "address of a Klaxon daemon"), (503, "{}", "the daemon fails", "restart it")])
def test_a_daemon_that_answers_wrongly_is_told_from_one_that_is_away(status, body, title, advice, monkeypatch):
    with answering(always(status, body)) as url:
        for name in PAGES:
            shown = said(page(url, name, monkeypatch))
            assert title in shown and advice in shown and "tries again by itself" in shown, (name, shown)


def test_the_last_picture_stays_with_its_age_and_goes_when_the_daemon_is_back(tmp_path, monkeypatch):
    for name in ("now", "incident", "slices"):
        with faulty_run(tmp_path / name, batches=30) as served:
            app = page(served.url, name, monkeypatch)
            charts = len(app.get("vega_lite_chart"))
            monkeypatch.setenv("KLAXON_API", "http://127.0.0.1:9")
            app.session_state["place-daemon"] = "http://127.0.0.1:9"  # the same daemon, gone: not another run
            app.session_state["seen_at"] = time.time() - 3700
            forget()
            shown = said(app.run())
            assert "Disconnected" in shown and "(1 h 1 min ago) and is no longer true for sure" in shown, name
            assert charts and len(app.get("vega_lite_chart")) == charts
            app.session_state["place-daemon"] = served.url
            monkeypatch.setenv("KLAXON_API", served.url)
            forget()
            assert "Disconnected" not in said(app.run())


def test_a_run_that_learns_says_what_pages_already_and_what_does_not():
    learning = {"verdict": "healthy", "verdict_text": "All is well.", "learning": True, "tier": 2, "now": 1000.0, "heartbeat_at": 999.0, "batch_seconds": 10.0}
    found = words.verdict(learning, [])
    assert (found.state, found.tone) == ("learning", "info") and "a slow drift does not yet" in found.text and "nothing to do" in found.text
    assert words.verdict({**learning, "learning": False}, []).state == "healthy"
    assert words.verdict({**learning, "verdict": "mismatch"}, []).state == "mismatch"


def test_an_old_last_batch_is_stale_even_where_the_daemon_is_well():
    status = {"verdict": "healthy", "now": 10_000.0, "heartbeat_at": 9_999.0, "batch_seconds": 120.0}
    assert words.verdict({**status, "last_batch_at": 10_000.0 - 359}, []).state == "healthy"
    found = words.verdict({**status, "last_batch_at": 10_000.0 - 361}, [])
    assert found.state == "stale" and "6 min 1 s old" in found.title and "backlog" in found.text
    assert words.verdict({**status, "last_batch_at": 1.0, "verdict": "mismatch"}, []).state == "mismatch"


def test_the_daemon_tells_when_its_last_batch_closed(tmp_path):
    with served_daemon(tmp_path) as served:
        assert served.daemon.live.status()["last_batch_at"] is None


def test_stored_files_are_called_a_stored_run_on_every_page_and_nothing_can_be_changed_there(tmp_path, monkeypatch):
    with faulty_run(tmp_path / "run", batches=30) as served:
        keep_status(tmp_path / "run" / "state", served.daemon.live.status())
    copy = tmp_path / "copy"
    copy.mkdir()
    copied(tmp_path / "run" / "state", copy)
    with Store(copy / "klaxon.duckdb") as store:
        alerts = open_alerts(copy, run="")
        with answering(sealed_api(copy, store, alerts)) as url:
            for name in PAGES:
                shown = said(page(url, name, monkeypatch))
                assert "Klaxon cannot see the engine" not in shown and "Stale" not in shown, name
                assert "Stored run · read only" in shown and "klaxon run" in shown, name
            app = page(url, "incident", monkeypatch)
            assert "A stored run: nothing can be changed here" in said(app)
            assert all(one.disabled for one in app.button if one.label in ("Acknowledge", "Silence")) and not app.text_input
        alerts.stop(drain_seconds=0.0)
