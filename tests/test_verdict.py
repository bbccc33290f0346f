"""GET /v1/verdict and klaxon_tap.verdict(): what a trainer is told, and that nothing is guessed."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import klaxon_tap
import pytest
from klaxon_tap import ask

from alerts import incidents
from alerts.incidents import Case
from alerts_helpers import NOW, diagnosis, fact, mismatch
from alerts_served import Served, served_daemon
from klaxon.verdict import Seen, fresh_seconds, judge

SEEN = Seen(run="r1", last_rollout_at=NOW - 5, last_compared_at=NOW - 10, last_batch_at=NOW - 20, batch_seconds=10.0, compared_version="41")


def case_of(drift, found=None) -> Case:
    case = incidents.opened(drift, run="r1", id="inc_1", now=NOW, closed_at=NOW, batch_seconds=10.0)
    return case if found is None else incidents.diagnosed(case, found, now=NOW)


def test_a_run_that_was_compared_and_has_nothing_open_is_healthy() -> None:
    found = judge(SEEN, [], run="r1", now=NOW)
    assert (found.state, found.last_clean_version, found.cause, found.since) == ("healthy", "41", None, None)


@pytest.mark.parametrize(("changes", "words"), [
    ({"last_rollout_at": None}, "no rollout has arrived yet"), ({"last_rollout_at": NOW - 61}, "no rollout has arrived for 61 s"),
    ({"last_compared_at": None}, "no rollout could be compared with the trainer yet"), ({"last_compared_at": NOW - 200}, "compared with the trainer for 200 s"),
    ({"last_batch_at": None}, "the first batch is being collected"), ({"last_batch_at": NOW - 90}, "closed no batch for 90 s"),
])
def test_what_is_stale_or_was_never_compared_is_unknown(changes, words) -> None:
    found = judge(replace(SEEN, **changes), [], run="", now=NOW)
    assert found.state == "unknown" and words in found.why and found.last_clean_version is None


def test_another_run_is_unknown_and_a_clock_that_went_back_makes_nothing_stale() -> None:
    assert judge(SEEN, [], run="r2", now=NOW).why == "this daemon watches run r1, not r2"
    assert judge(SEEN, [], run="r1", now=NOW - 86400).state == "healthy"
    assert (fresh_seconds(10.0), fresh_seconds(120.0)) == (60.0, 360.0)


def test_a_mismatch_is_told_with_cause_interval_and_last_clean_version() -> None:
    found = judge(SEEN, [case_of(mismatch(), diagnosis("stale_weights"))], run="", now=NOW)
    assert (found.state, found.cause, found.confident, found.last_clean_version, found.incident) == ("mismatch", "stale_weights", True, "41", "inc_1")
    assert found.since == (NOW - 30.0, NOW - 10.0)
    unsure = judge(SEEN, [case_of(mismatch())], run="", now=NOW)
    assert (unsure.state, unsure.cause, unsure.confident, unsure.last_clean_version) == ("mismatch", None, False, None)


def test_a_mismatch_outlives_the_silence_of_a_paused_engine() -> None:
    found = judge(replace(SEEN, last_rollout_at=NOW - 900), [case_of(mismatch())], run="", now=NOW)
    assert found.state == "mismatch" and found.why.endswith("no rollout has arrived for 900 s")


def test_facts_about_the_numbers_are_a_mismatch_and_other_open_incidents_degrade() -> None:
    found = judge(SEEN, [case_of(fact("weights_never_move")), case_of(fact("disk_low", slice={}))], run="", now=NOW)
    assert (found.state, found.cause, found.confident) == ("mismatch", "stale_weights", True)
    assert judge(SEEN, [case_of(fact("disk_low", slice={}))], run="", now=NOW).state == "degraded"
    assert judge(replace(SEEN, last_rollout_at=None), [case_of(fact("tap_silent"))], run="", now=NOW).state == "unknown"


@pytest.mark.parametrize("verdict", ["healthy", "policy_lag"])
def test_an_alarm_that_a_confident_verdict_takes_back_degrades(verdict) -> None:
    assert judge(SEEN, [case_of(mismatch(), diagnosis(verdict))], run="", now=NOW).state == "degraded"
    assert judge(SEEN, [case_of(mismatch(), diagnosis(verdict, confident=False))], run="", now=NOW).state == "mismatch"


@pytest.fixture
def served(tmp_path, monkeypatch) -> Iterator[Served]:
    monkeypatch.delenv("KLAXON_TOKEN", raising=False)
    with served_daemon(tmp_path, daemon={"batch_seconds": 1.0, "watermark_seconds": 0.0}) as made:
        monkeypatch.setenv("KLAXON_URL", made.url)
        yield made


def feed(served: Served, version: str) -> None:
    """Rollouts the trainer has said its logprobs of, and the end of their batch."""
    lines = [{"kind": "rollout", "request_id": f"{version}-{i}", "prompt_token_ids": [1, 2], "token_ids": [3, 4], "logprobs": [-0.5, -1.5], "engine": "e",
              "trainer_logprobs": [-0.51, -1.49], "sampling": {"temperature": 1.0}, "finished_at": time.time(), "weight_versions": [[0, 2, version]]}
             for i in range(3)]
    assert httpx.post(served.url + "/v1/ingest", content="\n".join(map(json.dumps, lines)), trust_env=False).status_code == 202
    while served.daemon.worker.step():
        pass
    served.daemon.watch.tick(time.time() + 2.0)


def test_a_trainer_polls_from_unknown_to_healthy_to_mismatch_and_back_over_http(served) -> None:
    first = klaxon_tap.verdict(timeout=20.0)
    assert (first["state"], first["why"], first["run"]) == ("unknown", "no rollout has arrived yet", "r1")
    feed(served, "41")
    healthy = klaxon_tap.verdict("r1", timeout=20.0)
    assert (healthy["state"], healthy["last_clean_version"]) == ("healthy", "41")
    (incident,) = served.alerts.observe([mismatch()], now=time.time())
    served.alerts.attach_diagnosis(incident.id, diagnosis("stale_weights"), now=time.time())
    bad = klaxon_tap.verdict("r1", timeout=20.0)
    assert (bad["state"], bad["cause"], bad["confident"], bad["incident"]) == ("mismatch", "stale_weights", True, incident.id)
    assert len(bad["since"]) == 2 and set(bad) == set(first)
    served.alerts.desk.silence({"match": {"run": "*"}, "for": "1h", "author": "ada", "reason": "x"}, now=time.time())
    assert klaxon_tap.verdict(timeout=20.0)["state"] == "mismatch"  # a silence is for people
    served.alerts.resolve("r1/mismatch", now=time.time(), why="gone")
    assert klaxon_tap.verdict(timeout=20.0)["state"] == "healthy"
    served.daemon.worker.last_rollout_at -= 3600
    assert klaxon_tap.verdict(timeout=20.0)["state"] == "unknown"
    assert klaxon_tap.verdict("another", timeout=20.0)["why"] == "this daemon watches run r1, not another"


@contextmanager
def listener(answer: bytes | None) -> Iterator[str]:
    """A server that answers every connection with these bytes and goes on holding it; None = says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return
                if answer:
                    held[-1].sendall(answer)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        for one in held:
            one.close()


@pytest.mark.parametrize(("answer", "seconds", "words"), [
    (None, 0.3, "no answer"), (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{", 0.3, "no answer"), (b"SSH-2.0-OpenSSH\r\n", 20.0, "cannot be asked"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]", 20.0, "none of Klaxon's"),
    (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", 20.0, "answered 500"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\nConnection: close\r\n\r\n" + b" " * 200_000, 20.0, "cannot be asked"),
], ids=["silent", "half an answer", "another protocol", "other JSON", "an error", "too long"])
def test_a_daemon_that_hangs_or_talks_nonsense_is_unknown(monkeypatch, answer, seconds, words) -> None:
    with ask._asking, listener(answer) as url:  # the question of the test before has ended
        monkeypatch.setenv("KLAXON_URL", url)
        ask._asking.release()
        found = klaxon_tap.verdict("r1", timeout=seconds)
        assert ask._asking.acquire(timeout=60)
    assert found["state"] == "unknown" and found["run"] == "r1"
    assert words in found["why"] or (seconds < 1 and "cannot be asked" in found["why"])  # the socket's time limit may be the first


def test_without_a_daemon_or_with_the_tap_off_the_answer_is_unknown_and_nothing_is_raised(monkeypatch) -> None:
    monkeypatch.delenv("KLAXON_URL", raising=False)
    assert klaxon_tap.verdict()["why"] == "KLAXON_URL is not set"
    monkeypatch.setenv("KLAXON_URL", "http://127.0.0.1:9")
    assert klaxon_tap.verdict(timeout=5.0)["state"] == "unknown"
    monkeypatch.setenv("KLAXON_URL", "gopher://nowhere")
    assert klaxon_tap.verdict(timeout=5.0)["state"] == "unknown"
    monkeypatch.setenv("KLAXON_TAP", "off")
    assert klaxon_tap.verdict()["why"] == "the tap is switched off"
    assert klaxon_tap.verdict(timeout="soon")["state"] == "unknown"
