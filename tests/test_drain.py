"""SIGTERM drains: what a tap has handed over is judged and stored before the daemon is gone, the open batch cut short."""

import json
import signal
import subprocess
import sys

from test_command_daemon import ROLLOUT, free_port, get, post, start, wait

from collector.store import Store
from klaxon.demo.settings import write_config

N_ROLLOUTS = 300


def hour_long_batches(folder, port):
    return write_config(folder / "config.toml", {
        "run": {"name": "t", "dir": str(folder / "state")}, "shadow": {"enabled": False}, "alerts": {"console": False},
        "daemon": {"port": port, "batch_seconds": 3600.0}})


def test_every_rollout_that_was_accepted_is_stored_though_its_batch_had_an_hour_to_go(tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    daemon = start(hour_long_batches(tmp_path, port))
    wait(lambda: get(url, "/healthz")["ok"])
    answer = post(url, *({**ROLLOUT, "request_id": f"r{number}"} for number in range(N_ROLLOUTS)))
    daemon.send_signal(signal.SIGTERM)  # most of them still stand in the inbox
    assert answer.json()["accepted"] == N_ROLLOUTS and daemon.wait(timeout=60) == 0
    with Store(tmp_path / "state/klaxon.duckdb") as store:
        (batch,) = store.read_batches()
        assert batch.counts["seen"] == batch.counts["scored"] == N_ROLLOUTS and batch.closed_at - batch.opened_at < 3600.0
        assert store.query("SELECT count(*) FROM rollouts") == [(N_ROLLOUTS,)]
    assert json.loads((tmp_path / "state/status.json").read_text())["counts"]["scored"] == N_ROLLOUTS


def test_a_daemon_that_saw_nothing_stores_no_batch_and_the_next_begins_at_the_same_number(tmp_path):
    port = free_port()
    config = hour_long_batches(tmp_path, port)
    for _ in range(2):
        daemon = start(config)
        wait(lambda: get(f"http://127.0.0.1:{port}", "/healthz")["ok"])
        daemon.terminate()
        assert daemon.wait(timeout=60) == 0
    with Store(tmp_path / "state/klaxon.duckdb") as store:
        assert store.next_t() == 0


def test_a_daemon_that_is_stopped_before_it_has_started_leaves_quietly(tmp_path):
    config = hour_long_batches(tmp_path, free_port())
    for ready in ("typer.echo", "asyncio.run"):  # stopped just before either
        code = (f"import os, signal, asyncio, typer, klaxon.commands.run as command\n"
                f"def stop(*_, **__): os.kill(os.getpid(), signal.SIGTERM)\n"
                f"{ready} = stop\ncommand.run(config={str(config)!r}, verbose=False)")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "Traceback" not in done.stderr
