"""Acknowledge, silence, list and explain as a user types them, and the same routes for the page, against a daemon over real HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from alerts_helpers import fact, mismatch
from alerts_served import Served, served_daemon
from collector.errors import ConfigError, GiveUp, Unavailable
from klaxon.app import Daemon
from klaxon.cli import app
from klaxon.config import parse_config
from klaxon.outsiders import read_token

@pytest.fixture
def served(tmp_path, monkeypatch) -> Iterator[Served]:
    monkeypatch.delenv("KLAXON_TOKEN", raising=False)
    with served_daemon(tmp_path) as served:
        yield served


def run(*arguments: str) -> tuple[int, str, str]:
    """(exit code, standard output, what `klaxon` prints when it fails)."""
    result = CliRunner().invoke(app([arguments[0]]), list(arguments))
    return result.exit_code, result.stdout, "" if result.exception is None else str(result.exception)


def test_a_silence_is_added_listed_and_expired(served) -> None:
    code, out, _ = run("silence", "add", "--match", "fault=engine_*", "-l", "replica=http://10.0.0.*", "--for", "2h", "-m", "new rack", "--author", "ada", "--url", served.url)
    assert code == 0
    id_ = out.split()[0]
    (incident,) = served.alerts.observe([fact()], now=time.time())
    code, out, _ = run("silence", "list", "--url", served.url)
    assert id_ in out and "fault=engine_* replica=http://10.0.0.*" in out and "by ada: new rack" in out and "active" in out
    (listed,) = json.loads(run("silence", "list", "--json", "--url", served.url)[1])
    assert listed["id"] == id_ and listed["ends_at"] - listed["starts_at"] == 7200
    assert [one["reason"] for one in served.alerts.decisions(incident.id)] == ["muted", "muted"]
    code, out, _ = run("silence", "expire", id_, "--url", served.url)
    assert code == 0 and id_ in out
    assert [one["reason"] for one in served.alerts.decisions(incident.id) if one["receiver"] == "team"] == ["muted", "first"]
    assert run("silence", "list", "--url", served.url)[1] == "no silence is in force\n"
    assert "expired" in run("silence", "list", "--all", "--url", served.url)[1]


def test_an_incident_is_silenced_by_the_beginning_of_its_id(served) -> None:
    (incident,) = served.alerts.observe([mismatch()], now=time.time())
    code, _, _ = run("silence", "add", incident.id[:9], "--for", "30m", "-m", "on purpose", "--url", served.url)
    (listed,) = json.loads(run("silence", "list", "--json", "--url", served.url)[1])
    assert code == 0 and listed["match"] == {"fingerprint": "r1/mismatch"} and listed["author"]


MISTAKES = [
    (("silence", "add", "--match", "run=*", "--for", "2 fortnights", "-m", "x"), "is no length of time; write 30m, 2h, 1d"),
    (("silence", "add", "--match", "run=*", "--until", "2020-01-01T00:00", "-m", "x"), "00:00:00 UTC, 1 Jan 2020 is past"),
    (("silence", "add", "--match", "run=*", "--until", "soon", "-m", "x"), "write 2026-11-21T18:00"),
    (("silence", "add", "--match", "run", "--for", "2h", "-m", "x"), "write label=value"),
    (("silence", "add", "--match", "run=*", "--for", "2h"), "say why with --reason"),
    (("silence", "add", "--match", "run=*", "-m", "x"), "--for 2h"),
    (("silence", "add", "inc_x", "--match", "run=*", "--for", "2h", "-m", "x"), "not both"),
    (("silence", "add", "--for", "2h", "-m", "x"), "name an incident, or labels"),
    (("silence", "expire", "sil_x"), "no silence 'sil_x'; none is in force"),
    (("ack", "inc_x"), "no incident 'inc_x'; open: inc_"), (("explain", "inc_x"), "no incident 'inc_x'; open: inc_"),
]


def test_a_users_mistake_is_a_clear_line(served) -> None:
    served.alerts.observe([mismatch()], now=time.time())
    for arguments, words in MISTAKES:
        code, _, said = run(*arguments, "--url", served.url)
        assert code != 0 and words in said, (arguments, said)


@pytest.mark.parametrize("arguments", [("incidents",), ("explain", "last"), ("ack", "last"), ("silence", "list"),
                                       ("silence", "add", "last", "--for", "1h", "-m", "x"), ("silence", "expire", "sil_x")])
def test_without_a_daemon_the_commands_say_what_to_type(arguments) -> None:
    code, _, said = run(*arguments, "--url", "http://127.0.0.1:9")
    assert code != 0 and "start one with `klaxon run`, or name its address with --url" in said


def test_incidents_are_listed_with_their_state_and_who_has_them(served) -> None:
    assert run("incidents", "--url", served.url)[:2] == (0, "no incident is open\n")
    (first, second) = served.alerts.observe([mismatch(), fact()], now=time.time())
    code, out, _ = run("incidents", "--url", served.url)
    assert code == 1 and first.id in out and "firing" in out and "replica http://10.0.0.3:8000" in out
    for one in (first, second):
        assert run("ack", one.id, "-m", "looking", "--author", "ada", "--url", served.url)[0] == 0
    code, out, _ = run("incidents", "--url", served.url)
    assert code == 0 and out.count("acknowledged by ada: looking") == 2
    served.alerts.resolve("r1/mismatch", now=time.time(), why="gone")
    assert first.id not in run("incidents", "--url", served.url)[1] and first.id in run("incidents", "--all", "--url", served.url)[1]
    found = json.loads(run("incidents", "--json", "--url", served.url)[1])
    assert [(one["id"], one["fault"], one["acknowledgement"]) for one in found] == [(second.id, "engine_unreachable", "acknowledged by ada: looking")]


def test_explain_says_why_each_message_was_or_was_not_sent_in_order(served) -> None:
    now = time.time()
    served.alerts.observe([fact(slice={})], now=now)
    (silent,) = served.alerts.observe([fact("no_rollouts", slice={})], now=now + 1)
    served.alerts.resolve("r1/engine_unreachable", now=now + 60, why="it answers again")
    served.alerts.deliver_due(now + 61)
    served.alerts.tick(now + 62)
    code, out, _ = run("explain", silent.id, "--url", served.url)
    assert code == 0
    said = [line[19:] for line in out.split("Who was told, and why\n")[1].splitlines()]
    assert [" ".join(line.split()).partition(":")[0] for line in said if "delivered" not in line] == [
        "team not told inhibited", "lead not told inhibited", "team told first", "lead not told not_escalated", "team not told duplicate"]
    assert "is open (inc_" in out and "and explains it" in out and "it escalates if nobody acknowledges it for 30 min" in out
    assert "delivered " in out and "new → firing: alarm in batch 19" in out
    found = json.loads(run("explain", silent.id, "--json", "--url", served.url)[1])
    assert [(one["reason"], one["sends"], (one["message"] or {}).get("state")) for one in found["decisions"] if one["receiver"] == "team"] == [
        ("inhibited", False, None), ("first", True, "sent"), ("duplicate", False, None)]


def test_a_hostile_label_does_not_reach_the_terminal(served) -> None:
    (incident,) = served.alerts.observe([fact(slice={"replica": "\x1b[31mred\x07"})], now=time.time())
    served.alerts.acknowledge(incident.id, by="ada\x1b[2J", reason="\x1b]0;title\x07", now=time.time())
    for command in (("incidents",), ("explain", incident.id)):
        assert "\x1b" not in run(*command, "--url", served.url)[1]


def test_the_page_has_the_same_routes_and_a_mistake_answers_400_with_the_reason(served) -> None:
    client = httpx.Client(base_url=served.url, trust_env=False, timeout=10)
    (incident,) = served.alerts.observe([mismatch()], now=time.time())
    assert client.get("/v1/runbooks/temperature").json()["text"].startswith("# temperature")
    unknown = client.get("/v1/runbooks/nope")
    assert unknown.status_code == 400 and "no runbook is called 'nope'" in unknown.json()["error"]
    made = client.post("/v1/silences", json={"incident": incident.id, "for": "1h", "author": "ada", "reason": "known"})
    assert made.status_code == 201 and client.get("/v1/silences").json()[0]["id"] == made.json()["id"]
    assert client.get(f"/v1/incidents/{incident.id}").json()["silences"][0]["state"] == "active"
    assert client.delete(f"/v1/silences/{made.json()['id']}").json()["state"] == "expired"
    assert client.get("/v1/silences").json() == [] and len(client.get("/v1/silences?ended=true").json()) == 1
    assert client.post(f"/v1/incidents/{incident.id}/ack", json={"author": "ada", "reason": "on it"}).json()["state"] == "acknowledged"
    assert [one["id"] for one in client.get("/v1/incidents/open").json()] == [incident.id]
    for answer, words in ((client.post("/v1/silences", json={"for": "1h"}), "match: name at least one label"), (client.post("/v1/silences", json=[1]), "JSON object"),
                          (client.post(f"/v1/incidents/{incident.id}/ack", json={}), "author: say who takes it"),
                          (client.post(f"/v1/incidents/{incident.id}/ack", json={"author": "a", "colour": 1}), "colour: is unknown"),
                          (client.post("/v1/silences", content=b"{", headers={"content-type": "application/json"}), "not JSON"),
                          (client.post("/v1/silences", content=b'"' + b"x" * 70_000, headers={"content-type": "application/json"}), "longer than"),
                          (client.get("/v1/incidents/inc_x"), "no incident")):
        assert answer.status_code == 400 and words in answer.json()["error"], answer.text
    client.close()


def test_a_web_page_cannot_silence_a_daemon_on_loopback(served) -> None:
    body = json.dumps({"match": {"run": "*"}, "for": "1d", "author": "x", "reason": "x"})
    posted = httpx.post(served.url + "/v1/silences", content=body, headers={"content-type": "text/plain"}, trust_env=False)
    same_origin = httpx.post(served.url + "/v1/silences", content=body, trust_env=False,
                             headers={"content-type": "application/json", "origin": "http://rebound.example"})
    assert (posted.status_code, same_origin.status_code) == (415, 403) and served.alerts.desk.silences(time.time()) == []


def test_where_a_token_is_set_every_write_needs_it_and_the_commands_take_it_from_the_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("KLAXON_TOKEN", "s3cret")
    with served_daemon(tmp_path) as served:
        (incident,) = served.alerts.observe([mismatch()], now=time.time())
        made = served.alerts.desk.silence({"match": {"run": "x"}, "for": "1h", "author": "a", "reason": "r"}, now=time.time())
        with httpx.Client(base_url=served.url, trust_env=False, timeout=10) as client:
            for answer in (client.post("/v1/silences", json={}), client.delete(f"/v1/silences/{made['id']}"),
                           client.post(f"/v1/incidents/{incident.id}/ack", json={"author": "x"}, headers={"Authorization": "Bearer wrong"})):
                assert answer.status_code == 401 and "KLAXON_TOKEN" in answer.json()["error"]
        assert run("ack", incident.id, "--author", "ada", "--url", served.url)[0] == 0
        monkeypatch.setenv("KLAXON_TOKEN", "wrong")
        code, _, said = run("silence", "expire", made["id"], "--url", served.url)
        assert code != 0 and "set KLAXON_TOKEN to the daemon's token" in said and "s3cret" not in said


def test_who_is_not_on_this_machine_reads_nothing_without_the_token(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("KLAXON_TOKEN", "s3cret")
    with served_daemon(tmp_path) as served:
        outside = TestClient(served.daemon.api, client=("10.0.0.9", 5000))
        for path in ("/v1/status", "/v1/incidents", "/v1/silences", "/v1/verdict", "/metrics", "/v1/nowhere"):
            assert outside.get(path).status_code == 401, path
            assert outside.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401, path
        assert outside.get("/healthz").status_code == 200
        assert outside.get("/v1/incidents", headers={"Authorization": "Bearer s3cret"}).json() == []
        assert httpx.get(served.url + "/v1/incidents", trust_env=False).status_code == 200  # this machine


def test_off_loopback_the_daemon_does_not_start_without_a_token_nor_with_an_empty_one(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("KLAXON_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="reachable from outside: set KLAXON_TOKEN"):
        read_token(parse_config({"daemon": {"host": "0.0.0.0"}}, where="test"))
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ConfigError, match="is empty; put the token there"):
        read_token(parse_config({"daemon": {"host": "0.0.0.0", "token_file": str(tmp_path / "token")}}, where="test"))


def test_a_second_daemon_with_a_store_of_its_own_on_the_same_state_is_refused(served, tmp_path) -> None:
    data = {"run": {"name": "r1", "dir": str(tmp_path / "state")}, "store": {"path": str(tmp_path / "other.duckdb")}, "shadow": {"enabled": False}}
    with pytest.raises(Unavailable, match=r"control\.sqlite: is in use by another process .*: one daemon a run"):
        Daemon(parse_config(data, where="test"))


def test_dead_letters_are_listed_with_their_error_and_sent_again(served) -> None:
    (incident,) = served.alerts.observe([fact()], now=time.time())
    served.alerts._outbox._notifiers["team"] = Refusing()
    served.alerts.deliver_due(time.time())
    code, out, _ = run("alerts", "unsent", "--url", served.url)
    assert code == 1 and "DEAD" in out and incident.id in out and "the channel is gone" in out
    (row,) = json.loads(run("alerts", "unsent", "--json", "--url", served.url)[1])
    code, _, error = run("alerts", "resend", "msg_unknown", "--url", served.url)
    assert code != 0 and "msg_unknown" in error
    assert run("alerts", "resend", "all", "--url", served.url)[1] == "1 of 1 messages are sent again\n"
    served.alerts._outbox._notifiers["team"].refuses = False
    served.alerts.deliver_due(time.time() + 1)
    assert run("alerts", "unsent", "--url", served.url)[:2] == (0, "every message was delivered\n")
    assert served.alerts._outbox._notifiers["team"].taken == [row["id"]]


class Refusing:
    """A receiver that refuses until it is told not to."""

    def __init__(self) -> None:
        self.refuses, self.taken = True, []

    def send(self, message, *, now, memory) -> None:
        if self.refuses:
            raise GiveUp("the channel is gone")
        self.taken.append(message.id)
