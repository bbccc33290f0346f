"""Delivery over real HTTP: nothing lost, in order, once, and what cannot be delivered is listed."""

from __future__ import annotations

import http.server
import json
import threading
import time
from contextlib import contextmanager

import pytest

from alerts.config import ReceiverConfig
from alerts_helpers import NOW, SECRET, alerts_of, diagnosis, fact, mismatch, receiver, slack, texts

MISMATCH = "Rollout logprobs no longer match the trainer"


@contextmanager
def scripted(*answers):
    """A server that answers POSTs by the script, (status, headers, seconds to wait) each, then 200; yields (url, requests seen)."""
    script, seen = list(answers), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}, json.loads(body)))
            status, headers, wait = script.pop(0) if script else (200, {}, 0.0)
            time.sleep(wait)
            try:
                self.send_response(status)
                for name, value in {"Content-Length": "2", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"ok")
            except OSError:
                pass  # the client has gone, as the test wants

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", seen
        finally:
            server.shutdown()
            thread.join()


def webhook(url, **changes):
    return ReceiverConfig(type="webhook", url=f"{url}/webhook", **changes)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "control.sqlite"


def test_an_alarm_arrives_at_slack_and_at_a_signed_webhook(path, monkeypatch) -> None:
    monkeypatch.setenv("KX_SECRET", SECRET)
    with receiver() as (server, box):
        alerts = alerts_of(path, slack(server.url), webhook(server.url, secret_env="KX_SECRET"))
        alerts.observe([mismatch()], now=NOW)
        assert alerts.deliver_due(time.time()) == 2
        assert alerts.undelivered() == [] and alerts.delivered_count() == 2 and alerts.delivered_count("webhook") == 1
        alerts.stop()
    signed = next(message for message in box.messages if message["kind"] == "webhook")
    assert signed["verified"] and signed["id"] == signed["body"]["data"]["message_id"]
    assert (signed["body"]["schema"], signed["body"]["type"]) == (1, "klaxon.incident.firing")
    assert texts(box)[0].startswith(f"🔴 {MISMATCH} · run r1: Diagnosing.")


def test_a_wrong_secret_is_refused_by_the_receiver_and_becomes_a_dead_letter(path, monkeypatch) -> None:
    monkeypatch.setenv("KX_SECRET", "whsec_" + "b3RoZXItb3RoZXItb3RoZXItb3RoZXI=")
    with receiver() as (server, box):
        alerts = alerts_of(path, webhook(server.url, secret_env="KX_SECRET"))
        alerts.observe([mismatch()], now=NOW)
        assert alerts.deliver_due(time.time()) == 0
        (dead,) = alerts.undelivered()
        assert dead["state"] == "dead" and "HTTP 401 ('invalid signature')" in dead["error"]
        alerts.stop()
    assert box.messages == []


def test_retry_after_is_honoured_by_every_message_to_that_receiver(path) -> None:
    with receiver(fail_first=1, retry_after=30.0) as (server, box):
        alerts = alerts_of(path, slack(server.url))
        alerts.observe([mismatch(), fact()], now=NOW)
        assert alerts.deliver_due(NOW) == 0
        assert box.refused == 1  # the second message did not try its luck
        assert alerts.deliver_due(NOW + 29.9) == 0 and alerts.deliver_due(NOW + 30.1) == 2
        assert alerts.counts()["retries"] == 1
        alerts.stop()
    assert len(box.messages) == 2


def test_500s_are_retried_with_growing_patience_under_the_same_id(path) -> None:
    with scripted((500, {}, 0), (503, {}, 0), (502, {}, 0)) as (url, seen):
        alerts = alerts_of(path, webhook(url))
        alerts.observe([mismatch()], now=NOW)
        at = NOW
        for _ in range(3):
            assert alerts.deliver_due(at) == 0
            (row,) = alerts.undelivered()
            assert at <= row["due_at"] <= at + 0.01 * 2 ** row["attempts"]
            at = row["due_at"]
        assert alerts.deliver_due(at) == 1
        alerts.stop()
    assert len({headers["webhook-id"] for _, headers, _ in seen}) == 1 and len(seen) == 4


def test_a_receiver_that_does_not_answer_in_time_is_tried_again(path) -> None:
    with scripted((200, {}, 4.0)) as (url, seen):
        alerts = alerts_of(path, slack(url), timeout_seconds=0.4)
        alerts.observe([mismatch()], now=NOW)
        started = time.monotonic()
        assert alerts.deliver_due(NOW) == 0
        assert 0.3 < time.monotonic() - started < 3.5
        assert alerts.undelivered()[0]["error"] == "the receiver did not answer in time"
        assert alerts.deliver_due(NOW + 10) == 1
        alerts.stop()
    assert len(seen) == 2


def test_a_receiver_that_is_down_costs_nothing_but_time(path) -> None:
    with scripted() as (url, _):
        pass
    alerts = alerts_of(path, slack(url))
    alerts.observe([mismatch()], now=NOW)
    assert alerts.deliver_due(NOW) == 0
    assert alerts.undelivered()[0]["error"] == "the receiver cannot be reached (ConnectionRefusedError)"
    alerts.stop()


def test_404_is_a_dead_letter_at_once_and_never_names_the_address(path) -> None:
    with scripted((404, {}, 0)) as (url, seen):
        alerts = alerts_of(path, slack(url))
        alerts.observe([mismatch()], now=NOW)
        assert alerts.deliver_due(NOW) == 0 and alerts.deliver_due(NOW + 1000) == 0
        (dead,) = alerts.undelivered()
        assert dead["state"] == "dead" and dead["attempts"] == 1 and "HTTP 404" in dead["error"]
        assert "T000" not in json.dumps(alerts.undelivered()) + json.dumps(alerts.incidents())
        alerts.stop()
    assert len(seen) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(path, status) -> None:
    with scripted() as (trap, trapped), scripted((status, {"Location": f"{trap}/webhook"}, 0)) as (url, seen):
        alerts = alerts_of(path, slack(url), webhook(url))
        alerts.observe([mismatch()], now=NOW)
        alerts.deliver_due(NOW)
        assert "redirect" in next(row["error"] for row in alerts.undelivered())
        alerts.stop()
    assert len(seen) == 2 and trapped == []


def test_what_stays_undeliverable_for_a_day_becomes_a_dead_letter(path) -> None:
    with scripted(*[(500, {}, 0)] * 3) as (url, _):
        alerts = alerts_of(path, slack(url), give_up_after_seconds=3600.0)
        alerts.observe([mismatch()], now=NOW)
        for at in (NOW, NOW + 1800, NOW + 3601):
            alerts.deliver_due(at)
        (dead,) = alerts.undelivered()
        assert dead["state"] == "dead" and dead["error"].startswith("not delivered for 3600 s")
        alerts.stop()


def test_the_newest_state_wins_while_nothing_could_be_sent(path) -> None:
    with scripted((500, {}, 0)) as (url, seen):
        alerts = alerts_of(path, slack(url))
        alerts.observe([mismatch()], now=NOW)
        alerts.deliver_due(NOW)
        alerts.observe([], now=NOW + 1, diagnosis=diagnosis())
        assert [row["reason"] for row in alerts.undelivered()] == ["first"]
        alerts.resolve("r1/mismatch", now=NOW + 2, why="gone")
        assert alerts.deliver_due(NOW + 60) == 1
        assert alerts.undelivered() == []
        states = [sent["state"] for sent in alerts.incidents()[0]["notifications"]]
        assert states == ["superseded", "superseded", "sent"]
        alerts.stop()
    assert [body["text"].partition(" ")[0] for _, _, body in seen] == ["🔴", "🟢"]


def test_messages_of_one_incident_arrive_in_order_and_incidents_do_not_wait_for_each_other(path) -> None:
    with scripted((500, {}, 0)) as (url, seen):
        alerts = alerts_of(path, slack(url), backoff_seconds=50.0)
        alerts.observe([mismatch()], now=NOW)
        alerts.deliver_due(NOW)
        alerts.observe([fact()], now=NOW)
        assert alerts.deliver_due(NOW) == 1
        alerts.observe([], now=NOW, diagnosis=diagnosis())
        assert alerts.deliver_due(NOW) == 0  # the newer one inherits the patience
        assert alerts.deliver_due(NOW + 100) == 1
        alerts.resolve("r1/mismatch", now=NOW + 101, why="gone")
        alerts.deliver_due(NOW + 101)
        alerts.stop()
    said = [body["text"] for _, _, body in seen if MISMATCH in body["text"]]
    assert ["Diagnosing" in said[0], "Cause: raw_logprobs" in said[1], "Resolved" in said[2]] == [True] * 3 and len(said) == 3


def test_a_broken_receiver_does_not_hold_up_another(path) -> None:
    with scripted((200, {}, 4.0)) as (slow, _), receiver() as (server, box):
        alerts = alerts_of(path, slack(slow, name="slow"), slack(server.url, name="fast"), timeout_seconds=10.0)
        alerts.start()
        started = time.monotonic()
        alerts.observe([mismatch()], now=NOW)
        while not box.messages and time.monotonic() - started < 3.5:
            time.sleep(0.005)
        assert time.monotonic() - started < 3.5
        alerts.stop(drain_seconds=0.0)
    assert len(texts(box)) == 1


def test_a_fault_inside_a_notifier_is_counted_and_loses_nothing(path) -> None:
    class Broken:
        def send(self, message, *, now, memory):
            raise KeyError("bug")

    with receiver() as (server, _):
        alerts = alerts_of(path, slack(server.url, name="slack"))
        alerts._outbox._notifiers["slack"] = Broken()
        alerts.observe([mismatch()], now=NOW)
        assert alerts.deliver_due(NOW) == 0
        assert alerts.counts()["notifier_errors"] == 1 and alerts.undelivered()[0]["state"] == "pending"
        alerts.stop()


def test_a_private_address_behind_a_name_is_refused(path, monkeypatch) -> None:
    monkeypatch.setenv("KX_URL", "http://hooks.example.test/x")
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: [(2, 1, 6, "", ("10.1.2.3", 80))])
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    alerts = alerts_of(path, ReceiverConfig(type="webhook", url_env="KX_URL", allow_http=True))
    alerts.observe([mismatch()], now=NOW)
    alerts.deliver_due(NOW)
    (dead,) = alerts.undelivered()
    assert dead["state"] == "dead" and "allow_private" in dead["error"]
    alerts.stop()
