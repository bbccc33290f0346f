"""What the daemon knows of its taps from their heartbeats."""

from __future__ import annotations

import json

import pytest

from klaxon.app import Daemon
from klaxon.config import parse_config
from klaxon.taps import ALIVE_SECONDS, TapBook


def book() -> tuple[TapBook, list[str]]:
    said: list[str] = []
    return TapBook(lambda kind, text, data: said.append(kind)), said


def beat(pid: int, **fields) -> dict:
    return {"source": "plugin", "engine": "e", "pid": pid, "config": {"logprobs_mode": "processed_logprobs"}, **fields}


def test_several_processes_of_one_engine_are_no_restart() -> None:
    taps, said = book()
    for now in range(0, 60, 5):
        taps.beat(beat(1, dropped=2), now=float(now))
        taps.beat(beat(2, dropped=3), now=float(now))
    assert said == ["tap"]
    (row,) = taps.listing(now=60.0)
    assert row["dropped"] == 5 and row["alive"] and taps.counts()["dropped"] == 5
    assert not taps.listing(now=60.0 + ALIVE_SECONDS)[0]["alive"]


def test_a_new_process_after_a_silence_is_a_restart_and_its_changed_setting_an_event() -> None:
    taps, said = book()
    taps.beat(beat(1), now=0.0)
    taps.beat(beat(2, config={"logprobs_mode": "raw_logprobs"}), now=40.0)
    assert said == ["tap", "engine_restart", "engine_config"]
    assert taps.engine_config()["logprobs_mode"] == "raw_logprobs" and taps.last_heard() == 40.0


@pytest.mark.parametrize(("key", "before", "after", "event"), [
    ("quantization", None, "fp8", "changed from none to fp8"), ("async_scheduling", False, True, "changed from False to True"),
    ("enable_chunked_prefill", None, True, None)])  # unknown before: no change was seen
def test_a_changed_setting_is_an_event_and_a_setting_first_told_is_none(key, before, after, event) -> None:
    texts: list[str] = []
    taps = TapBook(lambda kind, text, data: texts.append(text))
    taps.beat(beat(1, config={key: before}), now=0.0)
    taps.beat(beat(1, config={key: after}), now=5.0)
    assert texts[1:] == ([f"engine e: {key} {event}"] if event else [])


def test_what_cannot_be_reported_is_counted_by_reason() -> None:
    taps, _ = book()
    taps.beat(beat(1, without_logprobs=4, multimodal=1), now=0.0)
    taps.beat({"source": "proxy", "engine": "p", "pid": 9, "dialects": {"openai": {"rollouts": 7, "unusable_no_ids": 2}, "tgi": {"unusable_no_ids": 1}}}, now=0.0)
    assert taps.counts() == {"without_logprobs": 4, "multimodal": 1, "unusable_no_ids": 3}


@pytest.mark.parametrize(("declared", "asked"), [((), []), (("engine_config",), ["engine e: logprobs_mode changed from processed_logprobs to raw_logprobs"])])
def test_only_a_change_declared_beforehand_teaches_the_battery_anew(tmp_path, monkeypatch, declared, asked) -> None:
    data = {"run": {"name": "r", "dir": str(tmp_path)}, "shadow": {"enabled": False}, "detectors": {"battery": {"rebaseline_on": list(declared)}}}
    daemon = Daemon(parse_config(data, where="test"))
    try:
        reasons: list[str] = []
        monkeypatch.setattr(daemon.watch, "rebaseline", reasons.append)
        for _ in range(2):
            for message in (beat(1), beat(1, config={"logprobs_mode": "raw_logprobs"})):
                daemon.ingest.take(json.dumps({"kind": "heartbeat", **message}).encode(), sender="test")
            assert reasons == asked
            reasons.clear()
            daemon.bank._alarm_t = 7  # an open alarm is not buried
            asked = []
    finally:
        daemon.store.close()
