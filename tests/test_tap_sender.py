"""The sender against a real HTTP server, on TCP and on a Unix socket."""

import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from tap_daemon import Daemon, wait

import klaxon_tap
from klaxon_tap import settings
from klaxon_tap.sender import Sender


@pytest.fixture(params=["tcp", "unix"])
def place(request, tmp_path):
    def open_daemon(**options):
        if request.param == "unix":
            path = str(tmp_path / "k.sock")
            return Daemon(path, unix=True, **options), f"unix://{path}"
        daemon = Daemon(("127.0.0.1", 0), **options)
        return daemon, daemon.url
    return open_daemon


def test_messages_arrive_in_order_with_the_token_and_a_heartbeat(place):
    daemon, url = place()
    sender = Sender(url, token="s3cret", source="plugin", about=lambda: {"engine": "e"}, heartbeat_seconds=0.2)
    for i in range(200):
        assert sender.put({"kind": "rollout", "n": i})
    wait(lambda: len(daemon.of("rollout")) == 200 and daemon.of("heartbeat"))
    assert [message["n"] for message in daemon.of("rollout")] == list(range(200))
    assert daemon.headers[0]["Authorization"] == "Bearer s3cret"
    wait(lambda: daemon.of("heartbeat")[-1]["sent"] == 200)
    assert daemon.of("heartbeat")[-1] | {"at": 0, "pid": 0, "host": ""} == {
        "host": "", "last_error": None,
        "kind": "heartbeat", "source": "plugin", "engine": "e", "sent": 200, "dropped": 0, "queued": 0, "errors": 0, "at": 0, "pid": 0}
    sender.close()
    daemon.close()


def test_a_daemon_that_asks_for_patience_gets_every_message_once(place):
    daemon, url = place(answers=[429, 503])
    sender = Sender(url, token=None, source="plugin", heartbeat_seconds=60)
    for i in range(5):
        sender.put({"kind": "rollout", "n": i})
    wait(lambda: len(daemon.of("rollout")) == 5, seconds=10)
    assert [message["n"] for message in daemon.of("rollout")] == list(range(5))
    assert sender.dropped == 0
    sender.close()
    daemon.close()


def test_a_refused_token_drops_and_counts_and_says_so_once(place, caplog):
    daemon, url = place(answers=[401] * 50)
    sender = Sender(url, token="wrong", source="plugin", heartbeat_seconds=60)
    sender.put({"kind": "rollout"})
    wait(lambda: sender.dropped == 1)
    assert "401" in sender.last_error and caplog.text.count("answered 401") == 1
    sender.close()
    daemon.close()


def test_an_absent_daemon_costs_the_caller_nothing_and_drops_are_counted(tmp_path):
    sender = Sender(f"unix://{tmp_path}/nobody.sock", token=None, source="plugin", queue_messages=10)
    started = time.perf_counter()
    kept = sum(sender.put({"kind": "rollout", "n": i}) for i in range(2000))
    assert time.perf_counter() - started < 5, "2,000 calls"
    assert sender.dropped == 2000 - kept >= 1900
    sender.close(timeout=0.1)


def test_long_rollouts_never_fill_the_engines_memory(tmp_path):
    """4,096 waiting rollouts of 16,000 tokens would be tens of gigabytes: what they hold is bounded too."""
    sender = Sender(f"unix://{tmp_path}/nobody.sock", token=None, source="plugin", queue_items=100_000)
    kept = sum(sender.put({"kind": "rollout"}, items=16_000) for _ in range(1000))
    assert 6 <= kept <= 13 and sender.dropped == 1000 - kept, "the batch in hand, and six that wait"
    sender.close(timeout=0.1)


def test_a_message_made_later_is_made_in_the_senders_thread_and_may_fail_alone(place):
    daemon, url = place()
    sender = Sender(url, token=None, source="plugin", heartbeat_seconds=60)
    sender.put(lambda: [{"kind": "rollout", "n": n, "thread": threading.current_thread().name} for n in range(2)])
    sender.put(lambda: 1 / 0)
    sender.put({"kind": "rollout", "n": 2})
    wait(lambda: len(daemon.of("rollout")) == 3)
    assert daemon.of("rollout")[0]["thread"] == "klaxon-tap"
    assert sender.dropped == 1 and "ZeroDivisionError" in sender.last_error
    sender.close()
    daemon.close()


def test_a_daemon_that_comes_later_gets_what_was_queued(tmp_path):
    path = str(tmp_path / "late.sock")
    sender = Sender(f"unix://{path}", token=None, source="plugin", heartbeat_seconds=60)
    sender.put({"kind": "rollout", "n": 1})
    wait(lambda: sender.errors > 0)
    daemon = Daemon(path, unix=True)
    wait(lambda: len(daemon.of("rollout")) == 1, seconds=10)
    sender.close()
    daemon.close()


def test_a_slow_daemon_never_blocks_the_caller(place):
    daemon, url = place(delay=0.3)
    sender = Sender(url, token=None, source="plugin", queue_messages=50, heartbeat_seconds=60)
    slowest = 0.0
    for i in range(300):
        started = time.perf_counter()
        sender.put({"kind": "rollout", "n": i})
        slowest = max(slowest, time.perf_counter() - started)
    assert slowest < 0.25, "no put waits for the daemon"
    assert sender.dropped > 0
    sender.close(timeout=0.1)
    daemon.close()


def test_a_message_that_is_no_json_is_dropped_alone_not_for_ever(place):
    daemon, url = place()
    sender = Sender(url, token=None, source="plugin", heartbeat_seconds=60)
    sender.put({"kind": "rollout", "bad": object()})
    wait(lambda: sender.dropped == 1)
    sender.put({"kind": "rollout", "n": 1})
    wait(lambda: len(daemon.of("rollout")) == 1)
    sender.close()
    daemon.close()


def test_what_is_queued_at_exit_leaves_within_a_second(place):
    daemon, url = place()
    code = "import klaxon_tap; klaxon_tap.push(3, {'kl': 0.5, 'note': 'x', 'nan': float('nan')}); klaxon_tap.announce_weights(7, '/w/7')"
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "KLAXON_URL": url}, timeout=20)
    assert time.monotonic() - started < 15
    assert daemon.of("metrics")[0]["metrics"] == {"kl": 0.5} and daemon.of("metrics")[0]["step"] == 3
    assert daemon.of("weights")[0]["version"] == "7"
    daemon.close()


def test_without_klaxon_url_a_trainer_call_does_nothing(monkeypatch):
    monkeypatch.delenv("KLAXON_URL", raising=False)
    assert klaxon_tap.push(1, {"kl": 0.1}) is False and klaxon_tap.announce_weights("1", "/w") is False


def test_a_push_that_makes_no_sense_never_raises_into_the_trainer(monkeypatch):
    class Odd:
        def __str__(self):
            raise RuntimeError("no name")

    monkeypatch.setenv("KLAXON_URL", "http://127.0.0.1:9")
    assert klaxon_tap.announce_weights("1", Odd()) is False
    assert klaxon_tap.push("three", {"kl": 1}) is False
    assert klaxon_tap.push(1, None) is False


def test_the_kill_switch_works_from_the_environment_and_from_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("KLAXON_TAP", "off")
    assert not settings.KillSwitch().on()
    monkeypatch.setenv("KLAXON_TAP", "on")
    monkeypatch.setenv("KLAXON_KILL_FILE", str(tmp_path / "kill"))
    monkeypatch.setattr(settings, "KILL_CHECK_SECONDS", 0.0)
    switch = settings.KillSwitch()
    assert switch.on()
    (tmp_path / "kill").touch()
    assert not switch.on()
    (tmp_path / "kill").unlink()
    assert switch.on()


@pytest.mark.parametrize(("command", "name"), [
    ("/x/vllm serve m --host 127.0.0.1 --port 8204", "http://127.0.0.1:8204"),
    ("/x/vllm/entrypoints/openai/api_server.py --model m --host=10.0.0.3 --port=9000", "http://10.0.0.3:9000"),
    ("/x/vllm serve m", f"http://{socket.gethostname()}:8000"),
    ("/x/vllm serve m --uds /run/v.sock", f"{socket.gethostname()}:{os.getpid()}"),
    ("train.py --port 8204", f"{socket.gethostname()}:{os.getpid()}"),
])
def test_an_engine_goes_by_the_address_it_serves_on(command, name, monkeypatch):
    monkeypatch.delenv("KLAXON_ENGINE", raising=False)
    monkeypatch.setattr(sys, "argv", command.split())
    assert settings.engine() == name
