"""The main job on a real engine: `klaxon demo` as a user types it, with real faults, judged from the outside."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.engine


def demo(folder, *options, seconds):
    command = [sys.executable, "-m", "klaxon", "demo", "--exit", "--json", "--no-dashboard", "--dir", str(folder), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    said = f"exit {done.returncode}\n{done.stderr[-6000:]}\n{done.stdout}"
    assert done.stdout.strip(), said
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), said


@pytest.mark.parametrize(("fault", "steps", "cause"), [
    ("raw-logprobs", 14, "raw_logprobs"),
    ("stale-prefix-cache", 20, "stale_prefix_cache"),
])
def test_a_real_fault_is_noticed_named_and_told(tmp_path, fault, steps, cause):
    code, story, said = demo(tmp_path / "run", "--fault", fault, "--steps", str(steps), seconds=1200)
    assert code == 0, said
    assert story["cause"] == cause and story["alarm_at"] > story["fault_at"], said
    assert story["false_alarms_before_fault"] == 0, said
    assert story["alerts_delivered"] >= 2 and story["versions_seen"] >= steps, said
    assert 0 < story["floor_nats"] < 0.1 and story["rollouts_scored"] > 0, said
    received = [json.loads(line) for line in (tmp_path / "run/received.jsonl").read_text().splitlines()]
    assert {message["kind"] for message in received} == {"slack", "webhook"}, "both receivers heard of it"
    assert all(message["verified"] for message in received if message["kind"] == "webhook"), "signatures hold"
    assert any(cause in json.dumps(message) for message in received), "the message names the cause"
