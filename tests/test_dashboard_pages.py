"""Slices, Klaxon, Training and Engine in every state, run by Streamlit itself over the real read API of a real store.

The status is the recorded answer of a daemon that played `klaxon demo --replay` (fixtures/dashboard/status.json).
"""

from __future__ import annotations

import doctest
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn
from streamlit.testing.v1 import AppTest

from collector import signals
from collector.records import BatchStats, Evidence, Rollout, Score, WeightSpan
from collector.store import Store
from dashboard import frame, klaxon_words, redraw, slice_words, training_charts
from dashboard.client import ask_table
from dashboard_served import forget
from klaxon.api import build_api

ROOT = Path(__file__).parent.parent
PAGES = ("slices", "klaxon", "training", "engine")
STATUS = json.loads((Path(__file__).parent / "fixtures" / "dashboard" / "status.json").read_text(encoding="utf-8"))
NOW = 1_795_314_500.0
HOSTILE = "![x](http://evil.example/p.png) <script>alert(1)</script> :red[boo]"
BATCHES = 20


class Daemon:
    """The real store and read API, with a status the test sets."""

    def __init__(self, store: Store) -> None:
        self.store, self.status_now, self.band, self.told = store, {}, {}, {"checks": [], "history": [], "preflights": []}
        self._server = uvicorn.Server(uvicorn.Config(build_api(store, self), host="127.0.0.1", port=0, log_level="error", access_log=False, ws="none"))

    def status(self) -> dict:
        return {**STATUS, "now": NOW, "heartbeat_at": NOW - 1, "started_at": NOW - 3600, "verdict": "healthy", **self.status_now}

    def incidents(self) -> list[dict]:
        return []

    def reference_band(self) -> dict:
        return self.band

    def audit(self) -> dict:
        return self.told

    def start(self) -> str:
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self._server.started:
            assert time.monotonic() < deadline, "the read API did not start within a minute"
            time.sleep(0.02)
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=60)


def fill(store: Store) -> None:
    rng = np.random.default_rng(1)
    for t in range(BATCHES):
        at, scored = NOW - 10 * (BATCHES - t), []
        for replica, shift in (("http://10.0.0.1:8000", 0.0), (HOSTILE, 0.3 if t > 10 else 0.0)):
            trainer = rng.uniform(-3, -0.1, 40).astype(np.float32)
            rollout = Rollout(
                request_id=f"{t}{replica}", engine=replica, prompt_tokens_P=np.arange(5 if t % 2 else 2000, dtype=np.int32), completion_tokens_T=np.zeros(40, np.int32),
                engine_logprobs_T=(trainer + rng.normal(shift, 0.01, 40)).astype(np.float32), sampled_mask_T=np.ones(40, bool), cached_prompt_tokens=0,
                weight_versions=(WeightSpan(start=0, end=40, version=str(t // 5)),), finished_at=at, labels={"env": HOSTILE, "turn": str(t % 3)})
            scored.append((rollout, Score(request_id=rollout.request_id, views={"expected": trainer})))
        slices = signals.merge([item for pair in scored for item in signals.slice_stats(*pair)])
        store.append_batch(BatchStats(t=t, opened_at=at - 10, closed_at=at, slices=slices, counts={"seen": 2, "tokens_seen": 80, f"tokens_seen@{HOSTILE}": 40}),
                           [Evidence(t=t, stream="self_bet:+0.3", weight=0.1, gain=0.1, log_sr=0.3 * t, started_at=3)], ln_m=0.1, ln_a=14.0)
        store.append_rollouts(t, scored)
        store.append_metrics(t, at, {"reward": t / BATCHES, "kl": 0.002, "grad_norm": 0.3})


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    with Store(tmp_path_factory.mktemp("pages") / "k.duckdb", threads=1) as store:
        fill(store)
        daemon = Daemon(store)
        daemon.url = daemon.start()
        yield daemon
        daemon.stop()


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    with Store(tmp_path_factory.mktemp("pages") / "k.duckdb", threads=1) as store:
        daemon = Daemon(store)
        daemon.url = daemon.start()
        yield daemon
        daemon.stop()


@pytest.fixture(autouse=True)
def fresh(full, bare):
    for daemon in (full, bare):
        daemon.status_now, daemon.band, daemon.told = {}, {}, {"checks": [], "history": [], "preflights": []}
    forget()
    yield


def page(name: str, url: str, monkeypatch: pytest.MonkeyPatch, **query: str) -> AppTest:
    monkeypatch.setenv("KLAXON_API", url)
    app = AppTest.from_file(ROOT / "dashboard" / "pages" / f"{name}.py", default_timeout=120)
    for key, value in query.items():
        app.query_params[key] = value
    return app.run()


def text(app: AppTest) -> str:
    """Everything the page says, without the backslashes that keep it from being Markdown."""
    elements = [*app.markdown, *app.caption, *app.warning, *app.error, *app.info, *app.success, *app.code]
    return "\n".join(str(element.value) for element in elements).replace("\\", "")


def charts(app: AppTest) -> int:
    return len(app.get("vega_lite_chart"))


@pytest.mark.parametrize("module", [slice_words, klaxon_words])
def test_the_examples_in_the_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", PAGES)
def test_without_a_daemon_every_page_says_so_and_what_to_do(name, monkeypatch):
    app = page(name, "http://127.0.0.1:9", monkeypatch)
    assert not app.exception and "Disconnected" in text(app) and "klaxon run" in text(app) and charts(app) == 0


@pytest.mark.parametrize(("name", "advice"), [("slices", "No token was scored in this window yet"), ("klaxon", "Nothing was compared in this window"),
                                              ("training", "[[metrics.sources]]"), ("engine", "load the tap in the engine")])
def test_with_nothing_recorded_every_page_says_what_is_missing(name, advice, bare, monkeypatch):
    app = page(name, bare.url, monkeypatch)
    assert not app.exception and not app.warning and advice in text(app) and charts(app) == 0


@pytest.mark.parametrize("name", PAGES)
def test_a_daemon_that_stands_still_is_called_stale(name, full, monkeypatch):
    full.status_now = {"heartbeat_at": NOW - 400}
    app = page(name, full.url, monkeypatch)
    assert not app.exception and "Stale" in text(app)


@pytest.mark.parametrize(("name", "drawn"), [("slices", 8), ("klaxon", 2), ("training", 5), ("engine", 0)])
def test_a_full_store_is_drawn_without_a_fault_and_text_from_outside_stays_text(name, drawn, full, monkeypatch):
    full.told = {"checks": [{"name": HOSTILE, "state": "wrong", "seen": HOSTILE, "why": HOSTILE, "do": HOSTILE}], "migration": 1, "engine": HOSTILE,
                 "history": [{"at": NOW, "kind": "engine_config", "text": f"engine {HOSTILE}: dtype changed", "key": "dtype", "before": HOSTILE, "after": "x"}],
                 "preflights": [{"file": HOSTILE, "at": NOW, "passed": False, "rows": [{"name": HOSTILE, "state": "failed", "seen": HOSTILE, "do": "x"}]}]}
    full.band = {"runs": [HOSTILE], "coverage": 0.99, "seed_variance_known": False, "left_out": {HOSTILE: HOSTILE},
                 "metrics": {"reward": {"steps": [0.0, 19.0], "low": [0.0, 0.1], "center": [0.1, 0.2], "high": [0.2, 0.3]}}}
    app = page(name, full.url, monkeypatch)
    assert not app.exception and charts(app) == drawn
    assert not [element.value for element in app.warning if "could not be drawn" in element.value]
    live = [element.value for element in (*app.markdown, *app.caption, *app.warning) if any(sign in element.value for sign in ("![x]", "<script>", ":red[boo]"))]
    assert not live and all("![x](" not in button.label for button in app.button)


def test_a_slice_in_the_address_filters_and_can_be_taken_away(full, monkeypatch):
    app = page("slices", full.url, monkeypatch, slice="position=0-1k")
    assert "Only position in the sequence 0-1k" in text(app).replace("**", "") and app.selectbox[0].value == "position in the sequence 0-1k"
    assert "Not known for position in the sequence 0-1k" in text(app)  # environment, turn and probability
    app.button(key="slice_off").click().run()
    assert not app.exception and "slice" not in app.query_params and "Only " not in text(app)


def test_a_replica_and_a_slice_are_chosen_into_the_address(full, monkeypatch):
    app = page("slices", full.url, monkeypatch)
    app.button(key="replica-http://10.0.0.1:8000").click().run()
    assert app.query_params["slice"] == "replica=http://10.0.0.1:8000"
    app.selectbox[0].set_value("position in the sequence 1k-4k").run()
    assert app.query_params["slice"] == "position=1k-4k" and not app.exception


@pytest.mark.parametrize("address", ["nonsense", "replica=nobody", "probability=x", HOSTILE, "version=" + "9" * 5000])
def test_a_slice_nobody_has_breaks_nothing(address, full, monkeypatch):
    app = page("slices", full.url, monkeypatch, slice=address)
    assert not app.exception and not [element for element in app.warning if "could not be drawn" in element.value]


def test_the_last_picture_stays_when_the_daemon_goes_away(full, monkeypatch):
    app = page("slices", full.url, monkeypatch)
    before = charts(app)
    monkeypatch.setenv("KLAXON_API", "http://127.0.0.1:9")
    forget()
    app.run()
    assert not app.exception and before and charts(app) == before and "no longer true for sure" in text(app)


def test_a_window_that_has_moved_on_keeps_its_charts_when_the_daemon_goes_away(full, monkeypatch):
    app = page("slices", full.url, monkeypatch)
    before = charts(app)
    app.session_state["seen_status"] = {**app.session_state["seen_status"], "now": app.session_state["seen_status"]["now"] + 60}
    monkeypatch.setenv("KLAXON_API", "http://127.0.0.1:9")
    forget()
    app.run()
    assert charts(app) == before and "is not there" not in text(app)


def test_slices_are_asked_once_a_batch_for_everybody(full, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr("dashboard.frame.ask_table", lambda client, path, **params: (asked.append(f"{path} {params['by']}"), ask_table(client, path, **params))[1])
    app = page("slices", full.url, monkeypatch)
    first = len(asked)
    app.run()
    page("slices", full.url, monkeypatch)
    assert first >= 5 and len(asked) == first
    full.status_now = {"t": 10_000}
    frame._cached_json.clear()
    app.run()
    assert len(asked) == 2 * first


@pytest.mark.parametrize(("before", "after", "missing", "drawn"), [(3, 3, False, 0), (3, 4, False, 1), (None, 3, False, 1), (3, 3, True, 1)])
def test_a_page_is_drawn_anew_only_for_something_new_and_never_in_its_whole_run(before, after, missing, drawn, monkeypatch):
    reruns: list[int] = []
    monkeypatch.setattr("dashboard.redraw.st", SimpleNamespace(session_state={}, rerun=lambda: reruns.append(1)))
    picture = redraw.Picture(before)
    picture.still(after)  # the whole run, on a machine so slow that the answer has changed meanwhile
    assert not reruns
    if missing:
        redraw.missing()
    picture.still(after)
    assert len(reruns) == drawn
    redraw.Picture(after).still(after)
    assert len(reruns) == drawn


def test_the_budget_is_told_as_promised_against_realised(full, monkeypatch):
    full.status_now = {"honesty": {**STATUS["honesty"], "alarms": 2, "mean_e": {"mean": {"mean_e": 1.4, "standard_error": 0.1, "batches": 640}}, "widened": 1.21}}
    said = text(page("klaxon", full.url, monkeypatch))
    assert "Promised: at most 1 per 30 days" in said and "it has rung 2 times" in said and "above 1: its bets are widened" in said


def test_losses_and_refusals_are_told_in_words(full, monkeypatch):
    full.status_now = {"counts": {"seen": 9, "refused": 3, "dropped_inbox_full": 2, "left_out_tokens_token_out_of_range": 7, "unusable_echo": 1}, "refusals": [HOSTILE]}
    said = text(page("klaxon", full.url, monkeypatch))
    for words in ("rollouts or lines refused as bad data", "rollouts dropped, inbox full", "another tokenizer or model", "unusable: echo"):
        assert words in said


def test_detectors_that_learn_are_told_from_those_that_are_not_there(full, monkeypatch):
    app = page("klaxon", full.url, monkeypatch)
    assert "still learning what normal looks like" in text(app) and "self_bet:+0.3" in text(app)
    full.status_now = {"learning": False}
    forget()
    assert "still learning" not in text(app.run())


def test_training_says_where_the_newest_step_lies_in_the_band(full, monkeypatch):
    full.band = {"runs": ["a", "b"], "coverage": 0.99, "seed_variance_known": True, "left_out": {},
                 "metrics": {"reward": {"steps": [0.0, 19.0], "low": [0.0, 0.1], "center": [0.1, 0.2], "high": [0.2, 0.3]}}}
    said = text(page("training", full.url, monkeypatch))
    assert "Step 19: 0.95, above the band (0.1 to 0.3)" in said and "Not sent by the trainer in this window" in said
    assert "klaxon reference learn" in text(page("training", full.url, monkeypatch)) or "The band is of 2 runs" in said


def test_a_band_judges_only_the_steps_it_knows():
    import pandas as pd

    part = pd.DataFrame({"step": [5], "value": [0.5]})
    band = {"steps": [0.0, 10.0], "low": [0.0, 1.0], "high": [1.0, 2.0]}
    assert "inside the band (0.5 to 1.5)" in training_charts.verdict(part, band)
    assert "does not judge" in training_charts.verdict(part.assign(step=11), band)
    assert training_charts.verdict(part, None) == "Step 5: 0.5."
