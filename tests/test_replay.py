"""`klaxon demo --replay`: daemon, alerts and the stored run, on recordings of real engines, with torch out of reach."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from collector.store import Store
from detectors.bank import Bank
from klaxon.config import load_config

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    for name in ("torch", "vllm", "transformers"):
        (folder / f"{name}.py").write_text(f'raise ImportError("{name} is out of reach in this test")\n')
    command = [sys.executable, "-m", "klaxon", "demo", "--replay", "--exit", "--json", "--no-dashboard", "--dir", str(folder)]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240,
                          env={**os.environ, "PYTHONPATH": str(folder)})
    assert done.stdout.strip(), done.stderr[-4000:]
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), folder / "replay", time.monotonic() - began


def test_the_alarm_comes_with_the_upgrade_and_goes_with_the_fix(played):
    code, story, _, _ = played
    assert code == 0, story
    assert story["cause"] == "raw_logprobs" and story["false_alarms_before_fault"] == 0
    assert story["fault_at"] < story["alarm_at"] < story["resolved_at"]
    assert story["batches_to_alarm"] <= 10
    assert story["rollouts_scored"] == 128 and story["tokens_scored"] == 2064 + 2033 + 2 * 2049


def test_slack_and_the_signed_webhook_hear_of_alarm_and_recovery(played):
    _, story, folder, _ = played
    received = [json.loads(line) for line in (folder / "received.jsonl").read_text().splitlines()]
    assert len(received) == story["alerts_delivered"] == 4
    assert [message["kind"] for message in received].count("slack") == 2
    assert all(message["verified"] for message in received if message["kind"] == "webhook")
    first, last = (json.dumps(message["body"]) for message in received if message["kind"] == "slack")
    assert "raw_logprobs" in first and "1 per 30 days" in first and "resolved" in last.lower()
    assert "token_ids" not in (folder / "received.jsonl").read_text()


def test_replaying_the_stored_batches_gives_the_same_alarm_bit_for_bit(played):
    _, story, folder, _ = played
    config = load_config(folder / "config.toml")
    with Store(folder / "state/klaxon.duckdb") as store:
        stored = {t: ln_m for t, ln_m in store.query("SELECT t, ln_m FROM batches ORDER BY t")}
        resolved = {json.loads(data)["t"] for (data,) in store.query("SELECT data FROM events WHERE kind = 'resolved'")}
        bank = Bank(config.detectors, batch_seconds=config.daemon.batch_seconds)
        alarms = []
        for batch in store.read_batches():
            _, drifts = bank.update(batch)
            alarms += [drift.alarm_t for drift in drifts]
            assert bank.ln_m == stored[batch.t] or (bank.ln_m == float("-inf") and stored[batch.t] in (None, float("-inf")))
            if batch.t in resolved:
                bank.resolve(batch.t)
    assert len(alarms) == 1 and len(resolved) == 1


def klaxon(*arguments):
    done = subprocess.run([sys.executable, "-m", "klaxon", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.returncode, json.loads(done.stdout) if "{" in done.stdout else done.stderr


def test_the_replay_command_finds_the_stored_evidence_again(played):
    _, story, folder, _ = played
    code, found = klaxon("replay", folder / "state", "--config", folder / "config.toml", "--json")
    assert code == 0 and found["differ"] == [] and found["batches"] > 20
    assert len(found["pages"]) == len(found["resolved"]) == 1


def test_a_backtest_shows_what_another_config_would_have_paged(played, tmp_path):
    _, _, folder, _ = played
    same = (folder / "config.toml").read_text()
    code, found = klaxon("backtest", folder / "state", "--config", folder / "config.toml", "--json")
    assert code == 1 and len(found["pages"]) == 1
    deaf = tmp_path / "deaf.toml"
    deaf.write_text(same + "\n[detectors.weights]\nself_bets = 0.0\nexplanations = 0.0\n")
    code, found = klaxon("backtest", folder / "state", "--config", deaf, "--json")
    assert code == 0 and found["pages"] == [] and found["highest_ln_m"] is None
    code, told = klaxon("backtest", tmp_path, "--config", deaf)
    assert code == 2 and "klaxon.duckdb" in told


def test_no_ids_and_no_text_are_stored(played):
    _, _, folder, _ = played
    with Store(folder / "state/klaxon.duckdb") as store:
        columns = {name for (name,) in store.query("SELECT column_name FROM information_schema.columns WHERE table_name = 'rollouts'")}
        assert not columns & {"token_ids", "prompt_token_ids", "text", "prompt"}
        hashed = {value for (value,) in store.query("SELECT request FROM rollouts")}
    assert len(hashed) == 128 and not any("cmpl" in value for value in hashed)


def test_the_alarm_says_what_it_is_worth_and_which_rollouts_it_taints(played, tmp_path):
    from klaxon.demo.player import PHASES, recorded

    _, _, folder, _ = played
    code, found = klaxon("quarantine", "last", "--run", folder / "state", "--json")
    assert code == 0 and found["cause"] == "raw_logprobs" and found["state"] == "resolved"
    assert 0 < found["rollouts"] < 96 and found["seen"] == found["rollouts"] + found["not_named"] and 0 < found["token_share"] < 1
    wrong, mine, out = [row["request_id"] for row in recorded(PHASES[1])], tmp_path / "mine.jsonl", tmp_path / "tainted.jsonl"
    mine.write_text("".join(json.dumps({"request_id": one}) + "\n" for one in wrong))
    code, found = klaxon("quarantine", "last", "--run", folder / "state", "--match", mine, "-o", out, "--json")
    header, *lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert code == 0 and (header["asked"], header["matched"]) == (32, len(lines)) and len(lines) >= 5
    assert {line["request_id"] for line in lines} <= set(wrong)
    from klaxon.quarantine import incidents_of

    incident, = incidents_of(folder / "state/control.sqlite")
    worth = incident["diagnosis"]["impact"]
    assert worth["gradient_after"]["uncorrected"]["relative_bias"] > worth["gradient_after"]["tis"]["relative_bias"] > 0
    assert "policy gradient off by" in (folder / "received.jsonl").read_text()


@pytest.fixture
def serve():
    started = []

    def start(*arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        process = subprocess.Popen([sys.executable, "-m", "klaxon", "serve", *map(str, arguments), "--port", str(port)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process, f"http://127.0.0.1:{port}"

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_files_of_the_run_are_served_without_its_daemon_and_nothing_in_them_changes(played, serve):
    _, story, folder, _ = played
    before = {path.name: path.read_bytes() for path in (folder / "state").iterdir() if path.is_file() and path.suffix != ".lock"}
    process, url = serve("--read-only", folder / "state")
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            status = httpx.get(f"{url}/v1/status", trust_env=False).json()
            break
        except httpx.TransportError:
            time.sleep(0.1)
    assert process.poll() is None, process.communicate()[1]
    assert status["sealed"] and status["run"] == "v0-to-v1" and status["counts"]["scored"] == story["rollouts_scored"]
    assert any(check["name"] == "logprobs mode" for check in httpx.get(f"{url}/v1/audit", trust_env=False).json()["checks"])
    incident, = httpx.get(f"{url}/v1/incidents", trust_env=False).json()
    assert incident["state"] == "resolved" and httpx.get(f"{url}/v1/incidents/{incident['id']}", trust_env=False).json()["decisions"]
    assert len(httpx.get(f"{url}/v1/series", trust_env=False).content) > 1000
    refused = httpx.post(f"{url}/v1/silences", json={"author": "me", "reason": "x", "match": {}}, trust_env=False)
    assert refused.status_code == 403 and "nothing can be changed" in refused.json()["error"]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) in (0, 130)
    assert {path.name: path.read_bytes() for path in (folder / "state").iterdir() if path.name in before} == before


def test_what_cannot_be_served_says_why(played, serve, tmp_path):
    from alerts.lock import StateLock

    _, _, folder, _ = played
    lock = StateLock(folder / "state" / "control.sqlite")
    try:
        for arguments, words in ((["--read-only", folder / "state"], "is in use by another process"), ([folder / "state"], "--read-only: is missing"),
                                 (["--read-only", tmp_path], "holds no klaxon.duckdb"), (["--read-only", folder / "state", "--host", "0.0.0.0"], "reachable from outside")):
            process, _ = serve(*arguments)
            told = process.communicate(timeout=120)[1]
            assert process.returncode == 2 and words in told and "Traceback" not in told, told
    finally:
        lock.release()
