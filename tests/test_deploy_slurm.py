"""deploy/slurm/klaxon.sbatch on a one-node SLURM: Klaxon runs beside the trainer, keeps what it saw, and is told when the job ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from collector.store import Store
from klaxon.demo.children import free_port
from slurm_node import missing, slurm

ROOT = Path(__file__).parent.parent
ROLLOUTS = ROOT / "klaxon" / "recordings" / "v085_t07.jsonl"
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm")) as env:
        yield env


def submitted(node, folder, *, train):
    """The number of a job that runs the template with `train` as its trainer, and where its output goes."""
    klaxon = folder / "klaxon"
    klaxon.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m klaxon \"$@\"\n")
    klaxon.chmod(0o755)
    config = folder / "config.toml"
    config.write_text(f'[run]\nname = "slurm"\n[daemon]\nport = {free_port(20000)}\nbatch_seconds = 2.0\nwatermark_seconds = 0.5\n'
                      f'[sources]\nfiles = ["{folder}/rollouts.jsonl"]\n[shadow]\nenabled = false\n')
    env = {**node, "KLAXON": str(klaxon), "KLAXON_CONFIG": str(config), "KLAXON_STATE": str(folder / "state"), "KLAXON_SOCKET": str(folder / "k.sock"), "TRAIN": train}
    out = folder / "job.out"
    done = subprocess.run(["sbatch", "--parsable", f"--chdir={folder}", f"--output={out}", "--export=ALL", str(ROOT / "deploy/slurm/klaxon.sbatch")],
                          env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().partition(";")[0], out


def ended(node, job, *, seconds=240):
    """State and exit code of a job once it is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        shown = subprocess.run(["scontrol", "show", "job", job, "-o"], env=node, capture_output=True, text=True).stdout
        fields = dict(part.partition("=")[::2] for part in shown.split() if "=" in part)
        if fields.get("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
            return fields["JobState"], fields["ExitCode"]
        time.sleep(0.5)
    raise AssertionError(f"job {job} did not end:\n{shown}")


def said(folder, out):
    logs = [out, *sorted((folder / "state").glob("*.log"))]
    return "\n".join(f"{path}: {path.read_text(errors='replace')}" for path in logs if path.exists())


def test_klaxon_watches_beside_the_trainer_and_stores_the_last_batch_when_the_job_ends(node, tmp_path):
    """The trainer waits until Klaxon has seen its rollouts, so nothing here depends on how fast the machine is."""
    train = (f"cp {ROLLOUTS} {tmp_path}/rollouts.jsonl && test -S $KLAXON_SOCKET && "
             f"for i in $(seq 200); do curl -s --unix-socket $KLAXON_SOCKET http://k/v1/status > {tmp_path}/status.json; "
             f"grep -q '\"seen\": *[1-9]' {tmp_path}/status.json && exit 7; sleep 0.5; done; exit 9")
    job, out = submitted(node, tmp_path, train=train)
    assert ended(node, job) == ("FAILED", "7:0"), said(tmp_path, out)  # the trainer's own exit code is the job's
    assert json.loads((tmp_path / "status.json").read_text())["run"] == "slurm"
    store = Store(tmp_path / "state" / "klaxon.duckdb")
    try:
        counts = [json.loads(text) for (text,) in store.query("SELECT counts FROM batches")]
    finally:
        store.close()
    assert sum(batch.get("seen", 0) for batch in counts) == len(ROLLOUTS.read_text().splitlines()), said(tmp_path, out)


def test_a_cancelled_job_gives_klaxon_time_to_store(node, tmp_path):
    train = f"cp {ROLLOUTS} {tmp_path}/rollouts.jsonl; touch {tmp_path}/trains; sleep 600"
    job, out = submitted(node, tmp_path, train=train)
    deadline = time.monotonic() + 120
    while not (tmp_path / "trains").exists():
        assert time.monotonic() < deadline, said(tmp_path, out)
        time.sleep(0.3)
    subprocess.run(["scancel", job], env=node, check=True)
    state, _ = ended(node, job)
    assert state == "CANCELLED", said(tmp_path, out)
    store = Store(tmp_path / "state" / "klaxon.duckdb")  # the lock is gone: the daemon ended by itself
    store.close()


def test_without_the_variables_it_says_which(tmp_path):
    env = {key: value for key, value in os.environ.items() if not key.startswith("KLAXON")}
    done = subprocess.run(["bash", str(ROOT / "deploy/slurm/klaxon.sbatch")], env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "KLAXON_CONFIG" in done.stderr
