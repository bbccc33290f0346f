"""The main job on a real engine: `klaxon demo` as a user types it, with a real fault, judged from the outside."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.engine, pytest.mark.alone]


def demo(folder, *options, seconds):
    command = [sys.executable, "-m", "klaxon", "demo", "--exit", "--json", "--no-dashboard", "--dir", str(folder), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    said = f"exit {done.returncode}\n{done.stderr[-6000:]}\n{done.stdout}"
    assert done.stdout.strip(), said
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), said


def played(folder, *options):
    """A demo whose alarm came. The rollouts are not seeded: a policy that became sure of itself hides a stale cache, so a quiet demo is played once more."""
    for attempt in ("first", "second"):
        code, story, said = demo(folder / attempt, *options, seconds=1200)
        if story["alarm_at"] is not None:
            break
    return folder / attempt, code, story, said


def test_a_stale_prefix_cache_is_noticed_named_and_told(tmp_path):
    steps = 25
    folder, code, story, said = played(tmp_path, "--fault", "stale-prefix-cache", "--steps", str(steps))
    assert code == 0, said
    assert story["cause"] == "stale_prefix_cache" and story["alarm_at"] > story["fault_at"], said
    assert story["false_alarms_before_fault"] == 0, said
    assert story["alerts_delivered"] >= 2 and story["versions_seen"] >= steps, said
    assert 0 < story["floor_nats"] < 0.1 and story["rollouts_scored"] > 0, said
    received = [json.loads(line) for line in (folder / "received.jsonl").read_text().splitlines()]
    assert {message["kind"] for message in received} == {"slack", "webhook"}, "both receivers heard of it"
    assert all(message["verified"] for message in received if message["kind"] == "webhook"), "signatures hold"
    assert any("stale_prefix_cache" in json.dumps(message) for message in received), "the message names the cause"
