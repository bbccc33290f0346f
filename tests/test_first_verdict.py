"""Three frameworks as a new user meets them: init, check, run, rollouts as the framework writes them, the first verdict by `klaxon status`."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from klaxon.config import load_config
from test_command_daemon import free_port, get, klaxon, wait

ROOT = Path(__file__).parent.parent
RECORDINGS = ROOT / "klaxon/recordings"
_spec = importlib.util.spec_from_file_location("framework_rollouts", ROOT / "benchmarks/framework_rollouts.py")
frameworks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(frameworks)
BATCH_SECONDS = 4.0


def written(folder, *arguments):
    """The config `init` writes, its batches shortened for the test; (path, address of the read API)."""
    out, port = folder / "config.toml", free_port()
    done = subprocess.run([sys.executable, "-m", "klaxon", "init", *arguments, "--yes", "--port", str(port), "-o", str(out)], cwd=folder,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"klaxon check -c {out}" in done.stdout
    text = out.read_text().replace("[daemon]\n", f"[daemon]\nbatch_seconds = {BATCH_SECONDS}\nwatermark_seconds = 1.0\n")
    out.write_text(text)
    return out, f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def running(config, url):
    daemon = subprocess.Popen([sys.executable, "-m", "klaxon", "run", "-c", str(config)], cwd=config.parent, stderr=subprocess.DEVNULL)
    try:
        wait(lambda: get(url, "/healthz")["ok"])
        yield daemon
    finally:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(30) == 0


def status(url):
    return json.loads(klaxon("status", "--json", "--url", url).stdout)


def until(url, condition, seconds=60.0):
    """Every status on the way to the first that fits; silence and health out of nothing are failures on the way."""
    seen, deadline = [], time.monotonic() + seconds
    while True:
        seen.append(get(url, "/v1/status"))
        if condition(seen[-1]):
            return seen
        assert time.monotonic() < deadline, f"waited in vain: {seen[-1]['verdict']}: {seen[-1]['verdict_text']}"
        time.sleep(0.1)


def checked(config):
    done = subprocess.run([sys.executable, "-m", "klaxon", "check", "-c", str(config), "--json"], cwd=config.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout)


def never_silent(seen):
    """Until a batch closes, what is compared and the seconds left are said; health comes only afterwards."""
    before = [one for one in seen if one["first_batch"] is not None]
    assert before and all(one["verdict"] == "starting" for one in before)
    counted = [one for one in before if one["first_batch"]["rollouts"]]
    assert counted, "the first verdict came before anybody could see what was compared"
    for one in counted:
        assert "batch closes in" in one["verdict_text"] and one["first_batch"]["comparing"] in one["verdict_text"]
        assert 0 <= one["first_batch"]["closes_in_seconds"] <= BATCH_SECONDS + 1.0
    return counted


def test_pipelinerl_from_files_says_that_only_hard_facts_can_be_judged(tmp_path):
    rows = frameworks.rows(RECORDINGS)
    stream = frameworks.write_pipelinerl(tmp_path / "exp", rows[:8])
    config, url = written(tmp_path, "--rollouts", str(stream))
    assert "PipelineRL" in config.read_text() and checked(config)["tier"] == 0
    with running(config, url):
        frameworks.write_pipelinerl(tmp_path / "exp", rows[8:], again=1)
        seen = until(url, lambda found: found["first_batch"] is None)
        assert "arrived" in never_silent(seen)[-1]["verdict_text"]
        found = status(url)
        assert found["tier"] == 0 and found["counts"]["seen"] == 32
        assert found["verdict"] == "blind" and "no hard fact is wrong" in found["verdict_text"] and "[weights] dir" in found["verdict_text"]


def test_nemo_rl_from_files_is_compared_with_its_own_trainer(tmp_path):
    rows = frameworks.rows(RECORDINGS)
    frameworks.write_nemo_rl(tmp_path / "logs", rows[:16], step=1)
    config, url = written(tmp_path, "--framework", "nemo-rl", "--rollouts", "logs", "--temperature", "0.7")
    assert load_config(config).sources.tailed[0].format == "nemo-rl"
    with running(config, url):
        frameworks.write_nemo_rl(tmp_path / "logs", rows[16:], step=2)
        seen = until(url, lambda found: found["verdict"] == "healthy")
        assert "logprobs with the trainer's" in never_silent(seen)[-1]["verdict_text"]
        found = status(url)
        assert found["tier"] == 1 and found["counts"]["scored"] == 32
        assert 0.001 < found["populations"]["served"]["mean_abs_d"] < 0.06, "bfloat16 against float32"


def test_verl_by_the_tap_and_pushed_logprobs_and_a_fault_is_not_called_healthy(tmp_path):
    config, url = written(tmp_path, "--framework", "verl", "--temperature", "0.7")
    socket = tmp_path / tomllib.loads(config.read_text())["run"]["dir"] / "klaxon.sock"

    def play(name, again):
        subprocess.run([sys.executable, str(ROOT / "benchmarks/framework_rollouts.py"), "verl", str(RECORDINGS), name, str(again)], check=True, timeout=60,
                       env={**os.environ, "KLAXON_URL": f"unix://{socket}", "PYTHONPATH": str(ROOT / "tap")})

    with running(config, url):
        play(frameworks.HEALTHY, 0)
        seen = until(url, lambda found: found["verdict"] == "healthy" and found["first_batch"] is None)
        never_silent(seen)
        assert {tap["source"] for tap in status(url)["taps"]} >= {"plugin", "trainer"} and status(url)["tier"] == 1
        assert checked(config)["tier"] == 1
        for again in range(1, 5):
            play(frameworks.RAW, again)
        until(url, lambda found: found["verdict"] == "mismatch")


@pytest.mark.parametrize("name", ["pipelinerl", "nemo-rl"])
def test_what_is_played_is_of_the_framework_whose_it_claims_to_be(tmp_path, name):
    from collector.sources.formats import FORMATS, detect, read_any

    rows = frameworks.rows(RECORDINGS)
    path = frameworks.write_pipelinerl(tmp_path, rows) if name == "pipelinerl" else frameworks.write_nemo_rl(tmp_path, rows, step=3)
    assert detect(path) is FORMATS[name]
    rollouts = list(read_any(path))
    assert len(rollouts) == 32 and [one.completion_tokens_T.tolist() for one in rollouts] == [row["token_ids"] for row in rows]
