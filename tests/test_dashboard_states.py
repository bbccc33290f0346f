"""What the pages say in every state, run as Streamlit runs them, over a real daemon's API; and that a place in the run is an address."""

from __future__ import annotations

import doctest
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from alerts_served import Served, served_daemon
from dashboard import story
from dashboard.client_incident import around, runbook_name
from dashboard_served import faulty_run, forget

APP = Path(__file__).parent.parent / "dashboard" / "app.py"
PATIENCE_SECONDS = 120


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Iterator[Served]:
    with faulty_run(tmp_path_factory.mktemp("faulty")) as served:
        yield served


@pytest.fixture
def page(monkeypatch):
    """Opens a page of the dashboard of a daemon at an address."""
    def opened(url: str, name: str, **query: str) -> AppTest:
        forget()
        monkeypatch.setenv("KLAXON_API", url)
        app = AppTest.from_file(str(APP), default_timeout=PATIENCE_SECONDS)
        app.query_params.update(query)
        app.run()
        if name != "now":
            app.switch_page(f"pages/{name}.py").run()
        assert not app.exception
        return app

    return opened


def said(app: AppTest) -> str:
    """Everything the page says in words, without the marks of Markdown."""
    parts = [*app.markdown, *app.caption, *app.warning, *app.error, *app.success, *app.info, *app.code]
    return "\n".join(str(part.value) for part in parts).replace("\\", "")


def test_the_examples_of_the_storys_docstrings_hold():
    assert doctest.testmod(story).failed == 0


@pytest.mark.parametrize("name", ["now", "incident"])
def test_without_a_daemon_every_page_says_what_to_do(page, name):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shown = said(page(f"http://127.0.0.1:{probe.getsockname()[1]}", name))
    assert "Disconnected" in shown and "klaxon run" in shown and "KLAXON_API" in shown


def test_an_empty_run_is_starting_and_has_no_incident(page, tmp_path):
    with served_daemon(tmp_path) as served:
        assert "Starting" in said(page(served.url, "now")) and "klaxon-tap" in said(page(served.url, "now"))
        shown = said(page(served.url, "incident"))
    assert "No incident" in shown and "health only where Klaxon looks" in shown


def test_a_link_to_an_unknown_incident_names_those_there_are(page, faulty):
    shown = said(page(faulty.url, "incident", incident="inc_nope"))
    assert "No such incident" in shown and "'inc_nope'" in shown and faulty.alerts.incidents(1)[0]["id"] in shown


def test_a_daemon_whose_rounds_have_stopped_is_called_stale(page, faulty, monkeypatch):
    monkeypatch.setattr(faulty.daemon.live, "heartbeat_at", faulty.daemon.live.heartbeat_at - 900)
    assert "Stale" in said(page(faulty.url, "incident")) and "Stale" in said(page(faulty.url, "now"))


def test_the_incident_says_what_where_since_when_why_and_what_next(page, faulty):
    shown = said(page(faulty.url, "incident"))
    for text in ("Rollout logprobs no longer match the trainer", "replica http:⁠//e1:8000", "began between", "nobody has taken it", "0.21 nats a token",
                 "12 times the floor", "raw_logprobs · confident", "vllm serve MODEL --logprobs-mode processed_logprobs", "99.8 % → 81 %",
                 "318 rollouts, 37 % of tokens", "not_escalated", "alarm in batch 28", "Restart the engines with"):
        assert text in shown, text


def test_the_charts_of_the_incident_have_rows_units_and_the_interval(page, faulty):
    from dashboard import bars, charts, timeline
    from dashboard.asking import connection
    from dashboard.client_incident import dossier

    found = dossier(connection(faulty.url), "last")
    drawn = timeline.timeline(found)
    assert drawn.empty is None and "nats" in drawn.look.y_title and {"span", "line", "rule", "limit"} <= set(drawn.rows["row"])
    span = drawn.rows[drawn.rows["row"] == "span"].iloc[0]
    assert [span["at"], span["until"]] == [1000 * at for at in found.incident["since"]]
    fits = bars.explanations(found).rows
    assert fits[fits["row"] == "bar"][["name", "series"]].values.tolist() == [["raw_logprobs", "leading"], ["temperature", "others"], ["healthy", "others"]]
    replicas = bars.slices(found, "replica", "Replicas").rows
    bar, before = (replicas[replicas["row"] == row].set_index("name")["value"] for row in ("bar", "tick"))
    assert bar["http://e1:8000"] > 5 * before["http://e1:8000"] and bar["http://e0:8000"] < 2 * before["http://e0:8000"]
    assert all(chart.empty is None and bars.specification(chart.look) for chart in (bars.streams(found), bars.slices(found, "position", "P")))
    assert charts.specification(drawn.look) is charts.specification(timeline.timeline(found).look)


def test_acknowledging_asks_for_name_and_reason_and_then_shows_the_owner(page, tmp_path):
    with faulty_run(tmp_path, batches=30) as served:
        app = page(served.url, "incident")
        button(app, "Acknowledge").click().run()
        assert "Both your name and a reason" in said(app) and served.alerts.incidents(1)[0]["state"] == "firing"
        fill(app, "ack", "ada", "rolling the engine back")
        button(app, "Acknowledge").click().run()
        assert "Acknowledged by ada" in said(app) and "owner ada" in said(app)
        assert served.alerts.incidents(1)[0]["state"] == "acknowledged"


def test_a_write_the_daemon_refuses_is_said_and_changes_nothing(page, tmp_path, monkeypatch):
    monkeypatch.setenv("KLAXON_TOKEN", "sesame")
    with faulty_run(tmp_path, batches=30) as served:
        monkeypatch.delenv("KLAXON_TOKEN")
        app = page(served.url, "incident")
        fill(app, "silence", "ada", "new rack")
        button(app, "Silence").click().run()
        assert "Nothing was changed" in said(app) and "set KLAXON_TOKEN" in said(app)
        assert served.alerts.desk.silences(0.0) == []


def test_the_window_and_the_incident_stay_in_the_address_over_a_page_switch(page, faulty):
    app = page(faulty.url, "now", window="3h", incident="last")
    app.switch_page("pages/incident.py").run()
    assert (app.query_params["window"], app.query_params["incident"]) == ("3h", "last")


def test_a_timeline_shows_what_came_before_and_after_but_never_the_future():
    over = {"since": [1000.0, 1100.0], "resolved_at": 1400.0}
    assert around(over, now=1450.0, batch_seconds=5.0) == (900.0, 1450.0)
    assert around({"opened_at": 1000.0}, now=1001.0, batch_seconds=0.0) == (980.0, 1001.0)


@pytest.mark.parametrize(("incident", "name"), [
    ({"fault": "mismatch", "diagnosis": None}, None), ({"fault": "mismatch", "diagnosis": {"verdict": "temperature"}}, "temperature"),
    ({"fault": "no_rollouts", "diagnosis": None}, "no_rollouts"), ({"fault": "mismatch", "diagnosis": {"verdict": "healthy"}}, None)])
def test_the_runbook_is_that_of_the_verdict_else_of_the_fact(incident, name):
    assert runbook_name(incident) == name


def button(app: AppTest, label: str):
    return next(each for each in app.button if each.label == label)


def fill(app: AppTest, form: str, author: str, reason: str) -> None:
    app.text_input(key=f"{form}-author").input(author)
    app.text_input(key=f"{form}-reason").input(reason)
