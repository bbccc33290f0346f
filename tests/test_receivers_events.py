"""CloudEvents, Alertmanager's and PagerDuty's bodies, W&B and e-mail: field by field."""

from __future__ import annotations

import email
import email.policy
import socketserver
import threading
from dataclasses import replace

import pytest
from pydantic import ValidationError

from alerts.config import ReceiverConfig
from alerts.notifiers import build
from alerts.notifiers.wandb_alert import own_run
from alerts.render_events import ENDS_AFTER_SECONDS, as_alertmanager_webhook, as_cloudevent, as_pagerduty, labels
from alerts.render_html import as_html
from alerts_helpers import NOW, fact
from collector.errors import ConfigError, GiveUp
from receiver_kinds import KINDS, NO_APPRISE, QUIET, life, running
from receiver_services import jsoned


def test_a_cloudevent_has_the_attributes_of_the_standard(monkeypatch) -> None:
    with running("webhook_cloudevents", monkeypatch) as (notifier, service):
        told = life()["diagnosed"]
        with pytest.raises(GiveUp):  # signed at a time the receiver does not believe any more
            notifier.send(told, now=NOW - 86400, memory={})
    (request,) = service.seen
    body = request.json()
    assert request.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert request.headers["webhook-id"] == body["id"] == "msg_2" and body == as_cloudevent(told)
    assert (body["specversion"], body["type"], body["source"], body["subject"]) == ("1.0", "klaxon.incident.firing", "/klaxon/runs/r1", "inc_5d1c0ffee123")
    assert (body["time"], body["datacontenttype"]) == ("2026-11-21T05:20:42Z", "application/json") and body["data"]["cause"] == "raw_logprobs"
    assert set(body) == {"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"}


def test_labels_are_an_identity_until_the_cause_is_sure() -> None:
    told = life(slice={"replica": "http://10.0.0.3:8000", "run": "x", "a-b": "c", "": "d", "empty": ""})
    assert labels(told["first"]) == {"alertname": "KlaxonMismatch", "run": "r1", "severity": "page", "replica": "http://10.0.0.3:8000",
                                     "slice_run": "x", "a_b": "c", "slice_": "d"}
    assert labels(told["diagnosed"]) == {**labels(told["first"]), "cause": "raw_logprobs"}
    assert labels(told["resolved"]) == labels(told["diagnosed"])


def test_alertmanagers_webhook_body_says_when_it_began_and_ended() -> None:
    told = life()
    first, over = (as_alertmanager_webhook(told[state], receiver="oncall") for state in ("first", "resolved"))
    assert (first["version"], first["status"], first["groupKey"]) == ("4", "firing", '{}:{alertname="KlaxonMismatch", run="r1"}')
    assert (first["alerts"][0]["startsAt"], first["alerts"][0]["endsAt"]) == ("2026-11-21T05:20:00Z", "0001-01-01T00:00:00Z")
    assert (over["status"], over["alerts"][0]["endsAt"]) == ("resolved", "2026-11-21T07:25:00Z")


def test_pagerduty_follows_the_incident(monkeypatch) -> None:
    memory: dict[str, str] = {}
    with running("pagerduty", monkeypatch) as (notifier, service):
        seen = []
        for told in life().values():
            notifier.send(told, now=NOW, memory=memory)
            seen.append(service.incidents["inc_5d1c0ffee123"])
    assert seen == ["triggered", "triggered", "acknowledged", "acknowledged", "resolved"]
    assert [event["event_action"] for event in service.accepted] == ["trigger", "trigger", "acknowledge", "trigger", "acknowledge", "resolve"]
    first = service.accepted[0]
    assert (first["payload"]["severity"], first["payload"]["source"], first["payload"]["class"]) == ("critical", "r1", "KlaxonMismatch")
    assert first["links"] == [{"href": f"http://127.0.0.1:8501/incident?run=r1&incident={first['dedup_key']}&window=30m", "text": "Klaxon's dashboard"}] and "Do next" in first["payload"]["custom_details"]


def test_pagerduty_learns_of_an_incident_that_was_taken_before_it_heard_of_it(monkeypatch) -> None:
    with running("pagerduty", monkeypatch) as (notifier, service):
        notifier.send(life()["acknowledged"], now=NOW, memory={})
    assert service.incidents == {"inc_5d1c0ffee123": "acknowledged"}


def test_pagerdutys_400_is_told_without_the_key(monkeypatch) -> None:
    with running("pagerduty", monkeypatch) as (notifier, service):
        service.secret = "0" * 32
        with pytest.raises(GiveUp, match="HTTP 400.*invalid event") as caught:
            notifier.send(life()["first"], now=NOW, memory={})
    assert KINDS["pagerduty"].secret not in str(caught.value)


def test_a_summary_is_cut_where_pagerduty_cuts_it() -> None:
    long = replace(life()["first"], headline="x" * 5000)
    assert len(as_pagerduty(long, action="trigger")["payload"]["summary"]) == 1024


def test_alertmanager_is_told_to_keep_an_open_alert_and_to_end_one_whose_labels_changed(monkeypatch) -> None:
    memory: dict[str, str] = {}
    told = life()
    with running("alertmanager", monkeypatch) as (notifier, service):
        for reason in ("first", "diagnosed", "worse", "resolved"):
            notifier.send(told[reason], now=told[reason].at, memory=memory)
    first, diagnosed, worse, over = service.accepted
    assert first[0]["endsAt"] == "2026-11-28T05:20:00Z" and ENDS_AFTER_SECONDS == 7 * 86400
    assert [("cause" in alert["labels"], alert["endsAt"]) for alert in diagnosed] == [
        (False, "2026-11-21T05:20:42Z"), (True, "2026-11-28T05:20:42Z")]
    assert len(worse) == len(over) == 1 and over[0]["endsAt"] == "2026-11-21T07:25:00Z"


def test_wandb_gets_the_alert_on_the_trainers_run_or_on_one_of_klaxons_own(monkeypatch) -> None:
    told, memory = life(), {}
    with running("wandb", monkeypatch, path="team/grpo/run7") as (notifier, service):
        notifier.send(told["first"], now=NOW, memory={})
    (alert,) = service.accepted
    assert (alert["runName"], alert["severity"], alert["title"]) == ("run7", "ERROR", "🔴 Rollout logprobs no longer match the trainer")
    with running("wandb", monkeypatch) as (notifier, service):
        for reason in ("first", "resolved"):
            notifier.send(told[reason], now=NOW, memory=memory)
    made, first, over = service.accepted
    assert (made["name"], made["groupName"], made["jobType"]) == (own_run("r1"), "grpo-7", "klaxon") and memory == {"run": own_run("r1")}
    assert first["runName"] == over["runName"] == own_run("r1") and over["severity"] == "INFO"


@pytest.mark.parametrize(("reply", "said"), [
    (None, "could not find run"), (jsoned({"errors": [{"message": "permission denied"}]}, 401), "API key"),
    (jsoned({"data": {"notifyScriptableRunAlert": {"success": False}}}), "settings of user or team")])
def test_wandbs_refusals_say_what_is_wrong(reply, said, monkeypatch) -> None:
    with running("wandb", monkeypatch, path="team/grpo/nothere") as (notifier, service):
        service.script += [reply] if reply is not None else []
        with pytest.raises(GiveUp, match=said):
            notifier.send(life()["first"], now=NOW, memory={})


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_kept_offline_stops_the_start(mode, monkeypatch) -> None:
    KINDS["wandb"].plant(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_MODE", mode)
    with pytest.raises(ConfigError, match=f"WANDB_MODE is {mode}"):
        build(KINDS["wandb"].config(), timeout_seconds=0.5)


def test_html_is_escaped_and_links_only_to_http() -> None:
    first = replace(life(slice={"replica": "<img src=x onerror=alert(1)>"})["first"], dashboard_url="javascript:alert(1)")
    shown = as_html(first)
    assert "<img" not in shown and "&lt;img" in shown and "javascript" not in shown
    assert "<pre>klaxon status" in shown and "border-left" in shown


class _Smtp(socketserver.StreamRequestHandler):
    """As much of RFC 5321 as a client needs to leave one mail."""

    def handle(self) -> None:
        self.wfile.write(b"220 mail.test\r\n")
        while line := self.rfile.readline():
            word = line[:4].upper()
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = iter(self.rfile.readline, b".\r\n")
                self.server.mails.append(b"".join(lines))
            self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 fine\r\n")
            if word == b"QUIT":
                return


@NO_APPRISE
@QUIET
def test_an_e_mail_arrives_as_escaped_html(monkeypatch) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Smtp) as server:
        server.mails = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            monkeypatch.setenv("KX_MAIL", f"mailto://127.0.0.1:{server.server_address[1]}?from=klaxon@run.test&to=oncall@team.test&mode=insecure")
            notifier = build(ReceiverConfig(type="apprise", url_env="KX_MAIL"), timeout_seconds=20.0)
            notifier.send(life(slice={"replica": "<script>alert(1)</script> @everyone"})["first"], now=NOW, memory={})
        finally:
            server.shutdown()
            thread.join()
    mail = email.message_from_bytes(server.mails[0], policy=email.policy.default)
    body = mail.get_body(("html",)).get_content()
    assert mail["Subject"] == "🔴 Rollout logprobs no longer match the trainer" and "oncall@team.test" in mail["To"]
    assert "&lt;script&gt;" in body and "<script>" not in body and "@everyone" not in body


def test_a_missing_library_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "apprise", None)
    monkeypatch.setenv("KX_MAIL", "mailto://x")
    with pytest.raises(ConfigError, match=r"pip install 'klaxon-rl\[apprise\]'"):
        build(ReceiverConfig(type="apprise", url_env="KX_MAIL"), timeout_seconds=1.0)


@pytest.mark.parametrize(("given", "said"), [
    ({"type": "slack", "channel": "C1"}, "bot token"), ({"type": "slack", "secret_env": "A"}, "needs channel"),
    ({"type": "slack", "secret_env": "A", "channel": "C1", "format": "klaxon"}, "format belongs to a webhook receiver"),
    ({"type": "pagerduty"}, "routing key"), ({"type": "alertmanager"}, "url, url_env and url_file; none is set"),
    ({"type": "wandb", "secret_env": "A", "path": "justone"}, "entity/project"), ({"type": "apprise", "url": "https://x.test/"}, "is a secret"),
    ({"type": "slack_webhook", "url_env": "A", "secret_env": "B"}, "no secret besides its address"),
    ({"type": "webhook", "url_env": "A", "channel": "C1"}, "channel belongs to a slack receiver"), ({"type": "webhook", "url_env": "A", "format": "xml"}, "cloudevents")])
def test_a_key_that_is_missing_or_of_another_type_is_named(given, said) -> None:
    with pytest.raises(ValidationError, match=said):
        ReceiverConfig(**given)


def test_a_public_address_may_be_written_down_and_is_still_checked(monkeypatch) -> None:
    assert ReceiverConfig(type="pagerduty", secret_env="A").address() == "https://events.pagerduty.com/v2/enqueue"
    assert ReceiverConfig(type="alertmanager", url="https://am.example.test").address() == "https://am.example.test"
    with pytest.raises(ConfigError, match="allow_http"):
        ReceiverConfig(type="alertmanager", url="http://am.example.test").address()
    monkeypatch.setenv("KX_TWO", "one\ntwo")
    with pytest.raises(ConfigError, match="line break"):
        ReceiverConfig(type="pagerduty", secret_env="KX_TWO").secret()


def test_a_hard_fact_is_named_after_itself(monkeypatch) -> None:
    from alerts import incidents
    from alerts.message import compose

    case = incidents.opened(fact(), run="r 1/x", id="inc_2", now=NOW, closed_at=NOW, batch_seconds=120.0)
    told = compose(case, reason="first", detail="x", budget_text="1 per day", dashboard_url="", now=NOW)
    assert labels(told)["alertname"] == "KlaxonEngineUnreachable" and as_cloudevent(told)["source"] == "/klaxon/runs/r%201%2Fx"
    assert "client_url" not in as_pagerduty(told, action="trigger")
