"""Several runs on one page: `run=` in the address chooses, the sidebar says how each is, and nothing of one run is shown as another's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from alerts_served import Served, served_daemon
from dashboard_served import faulty_run, forget

APP = Path(__file__).parent.parent / "dashboard" / "app.py"
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Iterator[tuple[Served, Served]]:
    folder = tmp_path_factory.mktemp("two")
    with faulty_run(folder / "a", batches=30) as sick, served_daemon(folder / "b", run={"name": "second", "dir": str(folder / "b" / "state")}) as fresh:
        yield sick, fresh


@pytest.fixture
def page(two, monkeypatch):
    """Opens the page of both runs and of one nobody answers for; the second is named otherwise than it calls itself."""
    sick, fresh = two
    told = [{"name": "sick", "url": sick.url}, {"name": "fresh", "url": fresh.url}, {"name": "gone", "url": NOBODY}]
    monkeypatch.setenv("KLAXON_DAEMONS", json.dumps(told))

    def opened(**query: str) -> AppTest:
        forget()
        app = AppTest.from_file(str(APP), default_timeout=120)
        app.query_params.update(query)
        app.run()
        assert not app.exception
        return app

    return opened


def said(app: AppTest) -> str:
    parts = [*app.main.markdown, *app.main.caption, *app.main.warning, *app.main.error, *app.main.info, *app.main.success]
    return "\n".join(str(part.value) for part in parts).replace("\\", "")


@pytest.mark.parametrize(("query", "shown"), [({}, "Mismatch"), ({"run": "sick"}, "Mismatch"), ({"run": "fresh"}, "Starting"), ({"run": "gone"}, "Disconnected"),
                                              ({"run": "second"}, "Starting"), ({"run": "r1"}, "Mismatch")])
def test_the_address_chooses_the_run_by_its_name_here_or_its_own(page, query, shown):
    assert shown in said(page(**query))


def test_the_sidebar_says_at_a_glance_how_every_run_is(page):
    page()
    [radio] = page().sidebar.radio
    assert radio.options == ["sick", "fresh", "gone"] and radio.value == "sick"
    captions = list(radio.proto.captions)
    assert "firing" in captions[0] and "1 open" in captions[0] and "starting" in captions[1] and "unreachable" in captions[2]


def test_another_run_keeps_page_and_window_but_no_incident_slice_or_old_picture(page):
    app = page(run="sick", window="3h", incident="last", slice="replica=http://e1:8000")
    assert "no longer match" in said(app)
    app.sidebar.radio[0].set_value("gone").run()
    assert {key: app.query_params[key] for key in ("run", "window")} in ({"run": "gone", "window": "3h"}, {"run": ["gone"], "window": ["3h"]})
    assert "incident" not in app.query_params and "slice" not in app.query_params
    assert "Disconnected" in said(app) and "no longer match" not in said(app) and "What stands below" not in said(app)


def test_every_link_of_the_navigation_carries_the_whole_address(page):
    app = page(run="sick", window="3h", incident="last")
    links = {link.proto.page: link.proto.query_string for link in app.get("page_link")}
    assert len(links) >= 6
    assert all({"run=sick", "window=3h", "incident=last"} <= set(query.split("&")) for query in links.values() if "incident=inc_" not in query)


@pytest.mark.parametrize("run", ["nonsense", "<script>", "x" * 5000, "![x](http://evil)"])
def test_an_unknown_run_is_said_with_those_there_are_and_no_other_run_is_shown(page, run):
    app = page(run=run)
    shown = said(app)
    assert "No such run" in shown and "klaxon dashboard --api NAME=URL" in shown and "Mismatch" not in shown
    assert len(app.get("page_link")) == 3 and "![x](" not in "".join(part.value for part in app.warning)


def test_a_single_daemon_of_another_run_is_not_shown_for_the_links_run(two, monkeypatch):
    monkeypatch.delenv("KLAXON_DAEMONS", raising=False)
    monkeypatch.setenv("KLAXON_API", two[0].url)
    for run, shown in (("r1", "Mismatch"), ("another", "No such run")):
        app = AppTest.from_file(str(APP), default_timeout=120)
        app.query_params["run"] = run
        assert shown in said(app.run()) and not app.sidebar.radio
