"""Worst rollouts over HTTP, from a running daemon and from its sealed files, and the states of the Tokens page."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from streamlit.testing.v1 import AppTest

from alerts_served import served_daemon
from collector.store import Store
from dashboard_served import BATCHES, FAULT_AT, forget
from klaxon.sealed import copied, open_alerts, sealed_api
from test_dashboard_pages import charts, text
from tokens_served import ATTACKS, rollout, token_run

PAGE = Path(__file__).parent.parent / "dashboard" / "pages" / "tokens.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with token_run(tmp_path_factory.mktemp("tokens"), "text") as served:
        yield served


def rows(url: str, **params: object) -> list[dict]:
    answer = httpx.get(f"{url}/v1/tokens", params=params, trust_env=False)
    assert answer.status_code == 200, answer.text
    return pa.ipc.open_stream(io.BytesIO(answer.content)).read_all().to_pylist()


def test_the_worst_come_first_and_an_incident_names_its_own(run):
    everything = rows(run.url, kind="all")
    assert [row["badness"] for row in everything] == sorted((row["badness"] for row in everything), reverse=True) and {row["kind"] for row in everything} == {"worst", "ordinary"}
    incident = run.alerts.incidents(1)[0]
    own = rows(run.url, incident=incident["id"])
    assert own == rows(run.url, incident="last") and {row["replica"] for row in own} == {"http://e1:8000"} and min(row["t"] for row in own) >= FAULT_AT - 1
    assert len(rows(run.url, only="replica=http://e1:8000")) > len(own) and len(rows(run.url, limit=2)) == 2 and rows(run.url, limit=2)[0]["of"] == len(rows(run.url))
    assert rows(run.url, start=own[0]["finished_at"] - 1, end=own[0]["finished_at"] + 1)[0]["request"] == own[0]["request"] and rows(run.url, start=4e9) == []


@pytest.mark.parametrize("params", [{"kind": "best"}, {"only": "replica"}, {"only": "lag=1"}, {"only": "position=2k"}, {"only": ["env=a", "env=b"]}, {"incident": "inc_nobody"}])
def test_a_question_that_makes_no_sense_is_refused_in_words(run, params):
    answer = httpx.get(f"{run.url}/v1/tokens", params=params, trust_env=False)
    assert answer.status_code == 400 and len(answer.json()["error"]) > 10


def test_one_rollout_comes_whole_and_an_unknown_one_is_said(run):
    name = rows(run.url)[0]["request"]
    found = httpx.get(f"{run.url}/v1/tokens/{name}", trust_env=False).json()
    assert found["tier"] == found["words"]["kind"] == "text" and len(found["engine"]) == len(found["d"]) == len(found["words"]["completion"]) == 260
    assert ATTACKS[0] in found["words"]["completion"] and found["d"][70] is None and found["d"][145] is None and found["sampled"][145] is False
    assert found["d"][100] == pytest.approx(found["trainer"][100] - found["engine"][100], abs=1e-4) and found["spans"] == [[0, 180, "40"], [180, 260, "41"]]
    unknown = httpx.get(f"{run.url}/v1/tokens/nobody", trust_env=False)
    assert unknown.status_code == 400 and "tokens_ttl_days" in unknown.json()["error"]


def test_a_stopped_run_is_read_the_same_and_only_as_far_as_its_tier(tmp_path):
    with token_run(tmp_path, "ids") as served:
        live = rows(served.url)
        served.daemon.keep_status()
    copy = tmp_path / "copy"
    copy.mkdir()
    copied(tmp_path / "state", copy)
    alerts = open_alerts(copy, run="r1")
    with Store(copy / "klaxon.duckdb", threads=1) as store, TestClient(sealed_api(copy, store, alerts)) as client:
        sealed = pa.ipc.open_stream(io.BytesIO(client.get("/v1/tokens").content)).read_all().to_pylist()
        assert sealed == live
        assert client.get(f"/v1/tokens/{live[0]['request']}").json()["words"]["kind"] == "ids"
        (copy / "status.json").unlink()
        assert TestClient(sealed_api(copy, store, alerts)).get(f"/v1/tokens/{live[0]['request']}").json()["words"]["kind"] is None, "nobody says that ids may leave"
    alerts.stop(drain_seconds=0.0)


def test_a_closed_batch_keeps_its_tokens_and_the_status_says_the_tier(run):
    storage = httpx.get(f"{run.url}/v1/status", trust_env=False).json()["storage"]
    assert storage["tokens"] == "text" and storage["token_texts_missing"] == 0 and storage["tokenizers"] == {}
    assert run.daemon.worst.counts["token_rollouts_kept"] == len(rows(run.url, kind="all"))
    assert {row["t"] for row in rows(run.url)} == set(range(FAULT_AT - 2, BATCHES, 5))


def test_a_tokenizer_that_is_not_there_is_named(tmp_path):
    with token_run(tmp_path, "text", tokens_tokenizer=str(tmp_path / "nowhere")) as served:
        name = rows(served.url)[0]["request"]
        assert httpx.get(f"{served.url}/v1/tokens/{name}", trust_env=False).json()["words"]["kind"] == "ids"
        storage = served.daemon.live.storage()
        assert storage["token_texts_missing"] > 0 and "cannot be read" in storage["tokenizers"][str(tmp_path / "nowhere")]


def page(url: str, monkeypatch: pytest.MonkeyPatch, **query: str) -> AppTest:
    monkeypatch.setenv("KLAXON_API", url)
    forget()
    app = AppTest.from_file(PAGE, default_timeout=120)
    for key, value in {"window": "all", **query}.items():
        app.query_params[key] = value
    return app.run()


def test_without_a_daemon_the_page_says_so(monkeypatch):
    app = page("http://127.0.0.1:9", monkeypatch)
    assert not app.exception and "Disconnected" in text(app) and "klaxon run" in text(app) and charts(app) == 0


def test_the_worst_rollout_is_read_at_once_and_another_by_its_address(run, monkeypatch):
    app = page(run.url, monkeypatch)
    assert not app.exception and not app.warning[1:] and charts(app) == 2 and "1 of" in text(app)
    names = [row["request"] for row in rows(run.url)]
    app.button(key="tokens_next").click().run()
    assert app.query_params["rollout"] == names[1] and "2 of" in text(app)
    assert f"Rollout `{names[2]}` · 3 of" in text(page(run.url, monkeypatch, rollout=names[2]))


@pytest.mark.parametrize(("tier", "said"), [("numbers", "keeps no ids and no text"), ("hashes", "Keyed hashes in place of the text"), ("ids", "Token ids in place of the text")])
def test_a_tier_that_forbids_text_says_which_key_opens_it(tier, said, tmp_path, monkeypatch):
    with token_run(tmp_path, tier) as served:
        app = page(served.url, monkeypatch)
        assert not app.exception and said in text(app) and "[store] tokens" in text(app) and charts(app) == 2
        assert not any(attack in text(app) for attack in ATTACKS)


@pytest.mark.parametrize(("tier", "said"), [("off", 'set [store] tokens = "numbers"'), ("numbers", "Tier 0 has no trainer logprobs")])
def test_with_nothing_kept_the_page_says_why(tier, said, tmp_path, monkeypatch):
    with token_run(tmp_path, tier) as served:
        with served.daemon.store._cursor() as cursor:
            cursor.execute("DELETE FROM token_rollouts").fetchall()
        app = page(served.url, monkeypatch)
        assert not app.exception and said in text(app) and charts(app) == 0


def test_an_unknown_rollout_or_incident_or_slice_breaks_nothing(run, monkeypatch):
    unknown = page(run.url, monkeypatch, rollout=ATTACKS[0])
    assert not unknown.exception and "No such rollout" in text(unknown) and charts(unknown) == 1
    for query in ({"slice": "replica=nobody"}, {"slice": "lag=3"}, {"incident": "inc_nobody"}, {"slice": f"env={ATTACKS[1]}"}):
        app = page(run.url, monkeypatch, **query)
        assert not app.exception and not any("could not be drawn" in element.value for element in app.warning)
    assert "is no property of a whole rollout" in text(page(run.url, monkeypatch, slice="lag=3"))


def test_text_whose_time_is_over_is_said_and_the_numbers_stay(tmp_path, monkeypatch):
    with token_run(tmp_path, "text") as served:
        with served.daemon.store._cursor() as cursor:
            cursor.execute("DELETE FROM token_words").fetchall()
        app = page(served.url, monkeypatch)
        assert not app.exception and "is older than 72 hours" in text(app) and charts(app) == 2


def test_the_daemon_itself_keeps_the_tokens_of_what_its_taps_and_trainer_tell(tmp_path):
    with served_daemon(tmp_path, daemon={"batch_seconds": 10.0, "watermark_seconds": 1.0}) as served:
        daemon, now = served.daemon, time.time()
        for i in range(8):
            one, score = rollout(0, i, at=now, off=0.1 * i)
            daemon.inbox.offer(replace(one, weight_versions=(), trainer_logprobs_T=score.views["expected"]))
        assert daemon.worker.step() and rows(served.url, kind="all") == [], "a batch is open until its watermark has passed"
        daemon.watch.tick(now + 30)
        found = rows(served.url)
        assert [row["request"] for row in found] == [daemon.store.request_hash(f"cmpl-0-{i}") for i in (7, 6, 5)] and {row["source"] for row in found} == {"trainer"}
        assert len(rows(served.url, kind="ordinary")) == 1
        assert httpx.get(f"{served.url}/v1/tokens/{found[0]['request']}", trust_env=False).json()["words"]["kind"] is None
        assert daemon.store.query("SELECT count(*) FROM token_words") == [(0,)], "by default neither ids nor text"
