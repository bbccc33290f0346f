"""Slack by bot token: one root an incident, news in its thread, a chart as an image; every error says what to do."""

from __future__ import annotations

import io
import json
import logging
from dataclasses import replace

import pytest
from PIL import Image

from alerts.notifiers.chart import MAX_POINTS, drawn
from alerts.notifiers.slack_client import GONE, PASSING, WHAT_TO_DO
from alerts.render import COLOURS, as_slack_reply
from alerts_helpers import NOW, alerts_of, diagnosis, mismatch
from collector.errors import GiveUp, RetryLater
from receiver_kinds import KINDS, life, running
from receiver_services import Reply, served

POINTS = [[NOW - 120.0 * (18 - t), max(0.0, 4.7 * (t - 15))] for t in range(19)]


def with_chart(message):
    return replace(message, facts={**message.facts, "chart": POINTS})


def roots(service):
    return {ts: message for ts, message in service.messages.items() if "thread_ts" not in message}


def replies(service):
    return [message for message in service.messages.values() if "thread_ts" in message]


def test_the_root_shows_the_newest_state_and_the_thread_tells_the_news(monkeypatch) -> None:
    memory: dict[str, str] = {}
    with running("slack", monkeypatch) as (notifier, service):
        shown = []
        for told in life().values():
            notifier.send(told, now=told.at, memory=memory)
            ((ts, root),) = roots(service).items()
            shown.append((root["attachments"][0]["color"], root["blocks"][0]["text"]["text"].partition(" ")[0]))
    assert shown == [(COLOURS["firing"], "🔴")] * 2 + [(COLOURS["acknowledged"], "🟠")] * 2 + [(COLOURS["resolved"], "🟢")]
    assert memory["ts"] == ts and memory["channel"] == "C0ONCALL"
    assert [reply["thread_ts"] for reply in replies(service)] == [ts] * 4
    assert "Cause: raw_logprobs" in replies(service)[0]["text"] and "Resolved after 2 h 5 min" in replies(service)[-1]["text"]
    assert [each["method"] for each in service.accepted] == ["chat.postMessage"] + ["chat.update", "chat.postMessage"] * 4


def test_a_thread_repeats_nothing_the_root_says(monkeypatch) -> None:
    told = life()
    news, taken, over = (json.dumps(as_slack_reply(told[reason])) for reason in ("diagnosed", "acknowledged", "resolved"))
    assert "vllm serve MODEL" in news and "explains all but" in news and "*Since*" not in news and "ln A" not in news
    assert "explains all but" not in taken and "somebody has taken it" in taken
    assert "explains all but" not in over and "incident is over" in over


def test_an_incident_keeps_its_thread_over_restarts_of_the_daemon(monkeypatch, tmp_path) -> None:
    kind = KINDS["slack"]
    with served(kind.service(secret=kind.secret)) as service:
        kind.plant(monkeypatch, service.url)
        for step in range(3):
            alerts = alerts_of(tmp_path / "control.sqlite", kind.config(), timeout_seconds=20.0)
            if step == 0:
                alerts.observe([mismatch()], now=NOW)
            elif step == 1:
                alerts.observe([], now=NOW + 30, diagnosis=diagnosis())
            else:
                alerts.resolve("r1/mismatch", now=NOW + 60, why="gone")
            assert alerts.deliver_due(NOW + 30 * step) == 1
            alerts.stop()
    assert len(roots(service)) == 1 and len(replies(service)) == 2
    assert next(iter(roots(service).values()))["attachments"][0]["color"] == COLOURS["resolved"]


def test_a_deleted_root_is_replaced_by_a_new_one(monkeypatch) -> None:
    memory: dict[str, str] = {}
    told = life()
    with running("slack", monkeypatch) as (notifier, service):
        notifier.send(told["first"], now=NOW, memory=memory)
        gone = memory["ts"]
        service.messages[gone + "x"] = service.messages.pop(gone)
        notifier.send(told["diagnosed"], now=NOW, memory=memory)
        assert memory["ts"] != gone and memory["ts"] in roots(service) and replies(service) == []
        notifier.send(told["resolved"], now=NOW, memory=memory)
    assert replies(service)[0]["thread_ts"] == memory["ts"]


@pytest.mark.parametrize("error", ["cant_update_message", "channel_not_found", "is_archived"])
def test_a_root_out_of_reach_is_replaced_where_the_config_says_now(error, monkeypatch) -> None:
    memory = {"channel": "C0LD", "ts": "1.000001"}
    with running("slack", monkeypatch) as (notifier, service):
        service.refuse["chat.update"] = error
        notifier.send(life()["diagnosed"], now=NOW, memory=memory)
    assert list(roots(service)) == [memory["ts"]] and memory["channel"] == "C0ONCALL"


def test_a_retry_does_not_say_the_same_twice_in_the_thread(monkeypatch) -> None:
    memory: dict[str, str] = {}
    told = life()
    with running("slack", monkeypatch) as (notifier, service):
        notifier.send(told["first"], now=NOW, memory=memory)
        service.script += [service.reply, Reply(status=503)]
        with pytest.raises(RetryLater):
            notifier.send(told["diagnosed"], now=NOW, memory=memory)  # updated, then no reply
        for _ in range(2):
            notifier.send(told["diagnosed"], now=NOW, memory=memory)
    assert len(replies(service)) == 1


@pytest.mark.parametrize("error", [*WHAT_TO_DO, "msg_too_long", "invalid_blocks"])
def test_a_refusal_names_slacks_error_and_what_to_do(error, monkeypatch) -> None:
    with running("slack", monkeypatch) as (notifier, service):
        service.refuse["chat.postMessage"] = error
        with pytest.raises(GiveUp, match=error) as caught:
            notifier.send(life()["first"], now=NOW, memory={})
    assert WHAT_TO_DO.get(error, "") in str(caught.value)


@pytest.mark.parametrize("error", sorted(PASSING))
def test_a_passing_error_is_tried_again(error, monkeypatch) -> None:
    with running("slack", monkeypatch) as (notifier, service):
        service.refuse["chat.postMessage"] = error
        with pytest.raises(RetryLater, match=error):
            notifier.send(life()["first"], now=NOW, memory={})


def test_an_error_about_a_root_that_was_never_posted_does_not_loop(monkeypatch) -> None:
    with running("slack", monkeypatch) as (notifier, service):
        service.refuse["chat.postMessage"] = next(iter(GONE))
        with pytest.raises(GiveUp, match="did not say which one"):
            notifier.send(life()["first"], now=NOW, memory={})


def test_a_wrong_token_and_a_login_page_are_told_apart(monkeypatch) -> None:
    with running("slack", monkeypatch) as (notifier, service):
        service.secret = "xoxb-other"
        with pytest.raises(GiveUp, match="invalid_auth; the bot token is not valid"):
            notifier.send(life()["first"], now=NOW, memory={})
        service.script.append(Reply(body=b"<html>please log in</html>"))
        with pytest.raises(RetryLater, match="login page"):
            notifier.send(life()["first"], now=NOW, memory={})


def test_a_chart_arrives_in_the_thread_once(monkeypatch) -> None:
    memory: dict[str, str] = {}
    with running("slack", monkeypatch) as (notifier, service):
        for _ in range(2):
            notifier.send(with_chart(life()["first"]), now=NOW, memory=memory)
    (file,) = service.files.values()
    picture = Image.open(io.BytesIO(file["content"]))
    assert picture.format == "PNG" and picture.size == (720, 300) and len(file["content"]) == file["length"]
    (done,) = (each for each in service.accepted if each["method"] == "files.completeUploadExternal")
    assert (done["channel_id"], done["thread_ts"]) == (memory["channel"], memory["ts"])


@pytest.mark.parametrize(("change", "said"), [
    ({"refuse": {"files.getUploadURLExternal": "missing_scope"}}, "files:write"), ({"upload_host": "https://evil.test"}, "none of its own"),
    ({"upload_host": "http://127.0.0.1.evil.test"}, "none of its own"), ({"refuse": {"files.completeUploadExternal": "internal_error"}}, "left out")])
def test_a_chart_that_cannot_be_shown_costs_the_message_nothing(change, said, monkeypatch, caplog) -> None:
    memory: dict[str, str] = {}
    caplog.set_level(logging.WARNING)
    with running("slack", monkeypatch) as (notifier, service):
        for name, value in change.items():
            setattr(service, name, value)
        for _ in range(2):
            notifier.send(with_chart(life()["first"]), now=NOW, memory=memory)
        assert len(roots(service)) == 1 and memory["ts"]
    assert said in caplog.text and len(caplog.records) == 1


def test_a_slow_slack_gets_no_chart(monkeypatch, caplog) -> None:
    caplog.set_level(logging.WARNING)
    with running("slack", monkeypatch) as (notifier, service):
        notifier._timeout = -1.0
        notifier.send(with_chart(life()["first"]), now=NOW, memory={})
    assert [each["method"] for each in service.accepted] == ["chat.postMessage"] and "slow" in caplog.text


def test_the_picture_shows_the_line_the_threshold_and_the_interval() -> None:
    picture = Image.open(io.BytesIO(drawn(with_chart(life()["first"])))).convert("RGB")
    colours = {colour for _, colour in picture.getcolors(maxcolors=100_000)}
    assert {(21, 101, 192), (198, 40, 40), (255, 243, 196)} <= colours


@pytest.mark.parametrize("chart", [None, [], [[NOW, 1.0]], "abc", [[NOW, None], [NOW, float("nan")]], [1, 2], [["a", "b"], [NOW]]])
def test_without_points_there_is_no_picture(chart) -> None:
    first = life()["first"]
    assert drawn(replace(first, facts={**first.facts, "chart": chart})) is None


@pytest.mark.parametrize("chart", [[[NOW, 5.0]] * 2, [[NOW + t, -1e308 * (t % 2)] for t in range(9)], [[t, 1.0] for t in range(3 * MAX_POINTS)]])
def test_odd_points_are_drawn_all_the_same(chart) -> None:
    first = life()["first"]
    assert drawn(replace(first, facts={**first.facts, "chart": chart, "threshold": None, "since": [0, float("inf")]})).startswith(b"\x89PNG")
