"""`klaxon run`, `status`, `check` and `export` as a user types them, against a real daemon process."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pyarrow.parquet as parquet
import pytest

from collector.store import Store
from klaxon.demo.settings import write_config

ROLLOUT = {"kind": "rollout", "request_id": "r", "prompt_token_ids": [1, 2], "token_ids": [3, 4], "logprobs": [-0.5, -1.5],
           "trainer_logprobs": [-0.51, -1.49], "sampling": {"temperature": 1.0}}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def klaxon(*arguments, **environment):
    return subprocess.run([sys.executable, "-m", "klaxon", *arguments], capture_output=True, text=True, timeout=60,
                          env={**os.environ, **environment})


def start(config):
    return subprocess.Popen([sys.executable, "-m", "klaxon", "run", "--config", str(config)], stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def daemon_of(config, url):
    """A running daemon that answers, stopped cleanly afterwards."""
    daemon = start(config)
    try:
        wait(lambda: get(url, "/healthz")["ok"])
        yield daemon
    finally:
        daemon.terminate()
        assert daemon.wait(20) == 0


def wait(condition, seconds=40.0):
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := condition():
                return found
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def get(url, path):
    return httpx.get(url + path, timeout=5, trust_env=False).raise_for_status().json()


def post(url, *messages):
    body = "\n".join(json.dumps({**message, "finished_at": time.time()}) for message in messages)
    return httpx.post(url + "/v1/ingest", content=body, timeout=5, trust_env=False)


@pytest.fixture
def place(tmp_path):
    port = free_port()
    config = write_config(tmp_path / "config.toml", {
        "run": {"name": "t", "dir": str(tmp_path / "state")}, "shadow": {"enabled": False}, "alerts": {"console": False},
        "daemon": {"port": port, "batch_seconds": 0.5, "watermark_seconds": 0.2}})
    return config, f"http://127.0.0.1:{port}", tmp_path


def test_a_run_is_watched_asked_exported_killed_and_taken_up_again(place):
    config, url, folder = place
    daemon = start(config)
    wait(lambda: get(url, "/healthz")["ok"])
    assert post(url, ROLLOUT, {**ROLLOUT, "request_id": "s"}, {"kind": "rollout", "token_ids": [1]},
                {"kind": "metrics", "step": 3, "metrics": {"kl": 0.25}}).json()["accepted"] == 3
    wait(lambda: get(url, "/v1/status")["counts"].get("scored") == 2 and get(url, "/v1/status")["verdict"] == "healthy")
    found = klaxon("status", "--json", "--url", url)
    status = json.loads(found.stdout)
    assert found.returncode == 0 and status["tier"] == 1 and status["verdict"] == "healthy"
    assert status["counts"]["refused"] == 1 and status["counts"]["seen"] == 2
    assert any("prompt_token_ids" in reason or "logprobs" in reason for reason in status["refusals"])
    wait(lambda: json.loads(klaxon("export", "metrics", "--url", url).stdout.splitlines()[0])["value"] == 0.25)
    out = folder / "rollouts.parquet"
    assert klaxon("export", "rollouts", "-o", str(out), "--url", url).returncode == 0
    table = parquet.read_table(out)
    assert table.num_rows == 2 and "token_ids" not in table.column_names
    assert klaxon("rebaseline", "new head dtype, on purpose", "--url", url).returncode == 0
    assert any(event["kind"] == "rebaseline" and "new head dtype" in event["text"] for event in _events(url))
    later = get(url, "/healthz")["batches"] + 2
    wait(lambda: get(url, "/healthz")["batches"] >= max(later, 3))
    acknowledged = get(url, "/healthz")["batches"]
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    again = start(config)
    wait(lambda: get(url, "/healthz")["batches"] >= acknowledged)
    assert any("took up the run" in event["text"] for event in _events(url))
    again.send_signal(signal.SIGTERM)
    assert again.wait(timeout=30) == 0
    with Store(folder / "state/klaxon.duckdb") as store:
        assert [t for (t,) in store.query("SELECT t FROM batches ORDER BY t")] == list(range(store.next_t()))
        assert sum(batch.counts.get("rebaseline", 0) for batch in store.read_batches()) == 1


def test_a_rebaseline_without_a_daemon_or_a_reason_is_a_clear_error():
    nobody = klaxon("rebaseline", "an upgrade", "--url", f"http://127.0.0.1:{free_port()}")
    assert nobody.returncode == 2 and "klaxon run" in nobody.stderr and "Traceback" not in nobody.stderr
    assert klaxon("rebaseline", " ").returncode == 2


def test_a_second_daemon_on_the_same_run_says_what_to_do(place):
    config, url, _ = place
    daemon = start(config)
    wait(lambda: get(url, "/healthz")["ok"])
    second = klaxon("run", "--config", str(config))
    assert second.returncode == 2 and "Traceback" not in second.stderr and "another process" in second.stderr
    daemon.send_signal(signal.SIGINT)
    assert daemon.wait(timeout=30) == 0


def test_a_taken_port_is_named(place, tmp_path):
    config, url, _ = place
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        holder.listen()
        done = klaxon("run", "--config", str(config))
    assert done.returncode == 2 and "cannot listen" in done.stderr and "daemon.port" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_open_address_without_a_token_is_refused(place, tmp_path):
    config = write_config(tmp_path / "open.toml", {"run": {"dir": str(tmp_path / "s")}, "daemon": {"host": "0.0.0.0", "port": free_port()}})
    done = klaxon("run", "--config", str(config), KLAXON_TOKEN="")
    assert done.returncode == 2 and "KLAXON_TOKEN" in done.stderr


def test_check_names_a_dead_engine_a_missing_secret_and_the_tier(tmp_path):
    config = write_config(tmp_path / "c.toml", {
        "run": {"dir": str(tmp_path / "s")}, "engine": {"url": f"http://127.0.0.1:{free_port()}"}, "daemon": {"port": free_port()},
        "alerts": {"receivers": [{"type": "slack_webhook", "name": "oncall", "url_env": "NOT_SET_ANYWHERE"}]}})
    done = klaxon("check", "--config", str(config), "--json")
    parts = {part["part"]: part for part in json.loads(done.stdout)["parts"]}
    assert done.returncode == 2 and json.loads(done.stdout)["tier"] == 0
    assert parts["engine"]["state"] == "bad" and "/health" in parts["engine"]["text"]
    assert "NOT_SET_ANYWHERE" in parts["alerts: oncall"]["text"] and parts["config"]["state"] == "ok"


@pytest.mark.parametrize(("arguments", "words"), [
    (("status", "--url", "http://127.0.0.1:9"), "klaxon run"),
    (("export", "series", "--url", "http://127.0.0.1:9"), "klaxon run"),
    (("run", "--config", "nowhere.toml"), "klaxon.config"),
    (("check", "--config", "nowhere.toml"), "cannot be read"),
])
def test_a_users_mistake_is_one_clear_line_and_exit_code_2(arguments, words):
    done = klaxon(*arguments)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def _events(url):
    found = get(url, "/v1/events")
    return found if isinstance(found, list) else found["events"]
