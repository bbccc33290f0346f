"""`klaxon alerts test`: one marked message, end to end, and what came back; `klaxon check` on receivers."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from alerts.config import ReceiverConfig
from klaxon.cli import app
from klaxon.checks.settings import receivers as _receivers
from klaxon.config import parse_config
from receiver_kinds import ADDRESS, CANARY, GUARDED, KEY, KINDS
from receiver_services import Reply, served


def table(receiver: ReceiverConfig) -> str:
    given = receiver.model_dump(exclude_defaults=True)
    return "[alerts]\ntimeout_seconds = 20.0\n[[alerts.receivers]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items())


@pytest.fixture
def klaxon(tmp_path):
    """Runs `klaxon alerts test` on a config with one receiver of a kind."""
    def run(kind, *options):
        path = tmp_path / "config.toml"
        path.write_text(table(kind.config()))
        return CliRunner().invoke(app(["alerts"]), ["alerts", "test", "oncall", "--config", str(path), *options])

    return run


@pytest.mark.parametrize("name", GUARDED)
def test_a_marked_message_leaves_with_the_receivers_own_secrets(name, klaxon, monkeypatch) -> None:
    kind = KINDS[name]
    with served(kind.service(secret=kind.secret)) as service:
        kind.plant(monkeypatch, service.url)
        found = klaxon(kind, "--json")
    told = json.loads(found.stdout)
    assert (found.exit_code, told["outcome"], told["type"]) == (0, "accepted", kind.type), found.output
    assert "TEST of Klaxon's alerts: nothing is wrong" in json.dumps(service.accepted)
    assert len(told["answers"]) == len(service.seen) and all(200 <= answer["status"] < 300 for answer in told["answers"])
    assert CANARY not in found.output and not (kind.secret and kind.secret in found.output)


@pytest.mark.parametrize("name", GUARDED)
def test_a_dry_run_shows_the_message_and_sends_nothing(name, klaxon, monkeypatch) -> None:
    kind = KINDS[name]
    with served(kind.service(secret=kind.secret)) as service:
        kind.plant(monkeypatch, service.url)
        words, found = klaxon(kind, "--dry-run"), klaxon(kind, "--dry-run", "--json")
    told = json.loads(found.stdout)
    assert (found.exit_code, told["outcome"], service.seen) == (0, "not sent", [])
    assert "TEST of Klaxon's alerts" in words.stdout and "TEST of Klaxon's alerts" in json.dumps(told["would_send"])
    for output in (words.output, found.output):
        assert CANARY not in output and not (kind.secret and kind.secret in output)


def test_a_test_incident_does_not_stay_open_unless_asked_to(klaxon, monkeypatch) -> None:
    kind = KINDS["pagerduty"]
    with served(kind.service(secret=kind.secret)) as service:
        kind.plant(monkeypatch, service.url)
        first, second = klaxon(kind), klaxon(kind, "--keep-open")
    assert [event["event_action"] for event in service.accepted] == ["trigger", "resolve", "trigger"]
    assert "resolved right away" in first.stdout and "resolved" not in second.stdout
    assert re.search(r"answered HTTP 202 .*Event processed", first.stdout)


@pytest.mark.parametrize(("reply", "said"), [
    (Reply(status=403, body=b"no_service"), "refused: the receiver refused the message: HTTP 403 ('no_service')"),
    (Reply(status=429, headers={"Retry-After": "30"}), "not now: the receiver answered HTTP 429; it asks for 30 s")])
def test_what_came_back_is_said_and_the_exit_code_is_2(reply, said, klaxon, monkeypatch) -> None:
    kind = KINDS["slack_webhook"]
    with served(kind.service()) as service:
        service.script.append(reply)
        kind.plant(monkeypatch, service.url)
        found = klaxon(kind)
    assert found.exit_code == 2 and said in found.stdout


def test_the_console_and_an_unknown_name(tmp_path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("")
    found = CliRunner().invoke(app(["alerts"]), ["alerts", "test", "console", "--config", str(path)])
    assert found.exit_code == 0 and "console (console): accepted" in found.stdout
    unknown = CliRunner().invoke(app(["alerts"]), ["alerts", "test", "pager", "--config", str(path)])
    assert str(unknown.exception) == "no receiver is called 'pager'; configured: console"


@pytest.mark.parametrize("name", GUARDED)
def test_check_looks_at_every_receiver_and_sends_nothing(name, monkeypatch) -> None:
    kind = KINDS[name]
    config = parse_config({"alerts": {"console": False, "receivers": [kind.config().model_dump(exclude_defaults=True)]}}, where="here")
    with served(kind.service(secret=kind.secret)) as service:
        kind.plant(monkeypatch, service.url)
        (right,) = _receivers(config)
        monkeypatch.delenv(KEY if kind.secret else ADDRESS)
        (wrong,) = _receivers(config)
    assert (right.state, service.seen) == ("ok", []) and "klaxon alerts test oncall" in right.text
    assert wrong.state == "bad" and (KEY if kind.secret else ADDRESS) in wrong.text and CANARY not in wrong.text


def test_check_names_a_library_that_is_missing(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "apprise", None)
    monkeypatch.setenv(ADDRESS, "mailto://x")
    config = parse_config({"alerts": {"console": False, "receivers": [{"type": "apprise", "url_env": ADDRESS}]}}, where="here")
    (found,) = _receivers(config)
    assert found.state == "bad" and "klaxon-rl[apprise]" in found.text
