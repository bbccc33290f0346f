"""The dead man's switch over real HTTP: it beats while Klaxon sees the run, and falls silent when it does not."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from types import SimpleNamespace

import pytest
from test_command_daemon import ROLLOUT, daemon_of, free_port, get, klaxon, post, wait

from alerts.config import AlertsConfig
from alerts_fault_server import FaultServer, answer, serving
from alerts_helpers import alerts_of
from collector.errors import ConfigError, Unavailable
from detectors.config import FactsConfig
from detectors.hardfacts import Observation
from klaxon.demo.settings import write_config
from klaxon.heartbeat import Heartbeat, trouble


@pytest.fixture
def place():
    with serving(FaultServer()) as server:
        yield server


@pytest.fixture
def beating(place, monkeypatch):
    """(heartbeat, what is wrong with the daemon, its counts)"""
    monkeypatch.setenv("KX_BEAT", f"http://127.0.0.1:{place.port}/ping/secret-key")
    wrong, counts = [], Counter()
    receiver = AlertsConfig(heartbeat_url_env="KX_BEAT").heartbeat()
    return Heartbeat(receiver, run="r1", timeout_seconds=5.0, trouble=lambda now: wrong[0] if wrong else None, counts=counts), wrong, counts


def test_failures_are_counted_and_logged_once_and_never_with_the_address(place, beating, caplog) -> None:
    heart, wrong, counts = beating
    caplog.set_level(logging.DEBUG)
    assert heart.beat() and place.seen[0][2]["path"] == "/ping/secret-key" and place.seen[0][2]["run"] == "r1"
    for fault in (answer(500), answer(302, "Location: /elsewhere"), answer(404)):
        place.fault = fault
        assert not heart.beat()
    place.heal()
    wrong.append("the store refuses")
    assert not heart.beat() and not heart.beat() and len(place.seen) == 4
    wrong.clear()
    assert heart.beat()
    assert counts == {"heartbeat_sent": 2, "heartbeat_failed": 3, "heartbeat_withheld": 2}
    said = [record.message for record in caplog.records if record.name == "klaxon.heartbeat"]
    assert len(said) == 3 and "HTTP 500" in said[0] and "the store refuses" in said[1] and "again" in said[2]
    assert "secret-key" not in caplog.text


def test_a_daemon_vouches_for_its_run_only_while_threads_taps_and_stores_are_fine(tmp_path) -> None:
    alerts, ends = alerts_of(tmp_path / "c.sqlite"), threading.Event()
    threads = [threading.Thread(target=ends.wait, name=name) for name in ("klaxon-watch", "klaxon-worker")]
    for thread in threads:
        thread.start()
    watch, worker = threads
    watch.ticked_at = 995.0
    seen = {"now": 1000.0, "started_at": 0.0, "last_rollout_at": 990.0}
    daemon = SimpleNamespace(watch=watch, worker=worker, alerts=alerts, live=SimpleNamespace(observation=lambda now: Observation(**seen)),
                             config=SimpleNamespace(detectors=SimpleNamespace(facts=FactsConfig(no_rollouts_seconds=60.0))))
    assert trouble(daemon, 1000.0) is None
    assert "made no round for 105 s" in trouble(daemon, 1100.0)
    seen["last_rollout_at"] = 900.0
    assert "No rollout has arrived for 100 s" in trouble(daemon, 1000.0)
    seen["last_rollout_at"] = 990.0
    alerts.probe, works = refuse, alerts.probe
    assert "disk is full" in trouble(daemon, 1000.0)
    alerts.probe = works
    ends.set()
    watch.join()
    assert trouble(daemon, 1000.0) == "the thread klaxon-watch has ended"
    worker.join()
    alerts.stop()


def refuse() -> None:
    raise Unavailable("control.sqlite: the incident file refuses the change (database or disk is full)")


def test_probing_the_incident_file_is_a_real_write(tmp_path) -> None:
    alerts = alerts_of(tmp_path / "c.sqlite")
    alerts.probe()
    alerts._database.rows("PRAGMA query_only=1")
    with pytest.raises(Unavailable, match="refuses the change"):
        alerts.probe()
    alerts.stop()


def test_an_unusable_address_stops_the_start_and_fails_the_check(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("KX_BEAT", raising=False)
    receiver = AlertsConfig(heartbeat_url_env="KX_BEAT").heartbeat()
    with pytest.raises(ConfigError, match="receiver 'heartbeat'.*KX_BEAT"):
        Heartbeat(receiver, run="r1", timeout_seconds=1.0, trouble=lambda now: None, counts=Counter())
    config = write_config(tmp_path / "config.toml", {
        "run": {"dir": str(tmp_path / "state")}, "shadow": {"enabled": False}, "alerts": {"heartbeat_url_env": "KX_BEAT"}})
    found = klaxon("check", "--config", str(config))
    assert found.returncode != 0 and "heartbeat" in found.stdout and "KX_BEAT" in found.stdout


def test_a_running_daemon_beats_while_rollouts_come_and_falls_silent_when_it_sees_nothing(place, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("KX_BEAT", f"http://127.0.0.1:{place.port}/ping/secret-key")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    config = write_config(tmp_path / "config.toml", {
        "run": {"name": "t", "dir": str(tmp_path / "state")}, "shadow": {"enabled": False},
        "alerts": {"console": False, "heartbeat_url_env": "KX_BEAT", "heartbeat_seconds": 0.2},
        "detectors.facts": {"no_rollouts_seconds": 3.0, "startup_seconds": 0.0},
        "daemon": {"port": port, "batch_seconds": 0.5, "watermark_seconds": 0.2}})

    def counted(what: str) -> int:
        return get(url, "/v1/status")["counts"].get(f"heartbeat_{what}", 0)

    with daemon_of(config, url):
        wait(lambda: counted("withheld") >= 2, 90.0)  # no rollout has come yet
        before = len(place.seen)
        wait(lambda: post(url, ROLLOUT) and len(place.seen) >= before + 2, 90.0)
        withheld = counted("withheld")
        wait(lambda: counted("withheld") >= withheld + 2, 90.0)
        silent, withheld = len(place.seen), counted("withheld")
        wait(lambda: counted("withheld") >= withheld + 2, 90.0)
        assert len(place.seen) == silent
        assert "secret-key" not in str(get(url, "/v1/status"))
    assert {body["run"] for _, _, body in place.seen} == {"t"}
