"""`klaxon quarantine`: a stored run and a live read API give a trainer the same list of tainted rollouts to filter on."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient

from alerts.config import AlertsConfig
from alerts.service import Alerts
from collector.records import BatchStats, Cause, Diagnosis, Drift, Rollout, Score, WeightSpan
from collector.store import Store
from klaxon.api import build_api
from klaxon.commands.quarantine import told
from klaxon.quarantine import choose

ROOT = Path(__file__).parent.parent
START, BATCH, BATCHES, A_BATCH, TOKENS = 1.7e9, 60.0, 10, 4, 8
CHANGED = range(5, 8)  # earliest plausible changed batch … the batch in which it was resolved


def rollout(t: int, number: int) -> Rollout:
    return Rollout(
        request_id=f"cmpl-{t}-{number}", engine=f"http://e{number % 2}", prompt_tokens_P=np.array([1, 7, number // 2], dtype=np.int32),
        completion_tokens_T=np.arange(TOKENS, dtype=np.int32), engine_logprobs_T=np.full(TOKENS, -1.0, dtype=np.float32),
        sampled_mask_T=np.ones(TOKENS, dtype=bool), weight_versions=(WeightSpan(start=0, end=TOKENS, version=str(40 + t)),),
        finished_at=START + BATCH * t + number, traffic="canary" if number == A_BATCH else "train", labels={"step": str(400 + t)})


def drift(stream: str, **fields: object) -> Drift:
    return Drift(stream=stream, **{"kind": "statistical", "statistic": 11.0, "threshold": 10.0, "alarm_t": 6, "change_t": (5, 6)} | fields)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of 10 batches: an open fact of one replica since batch 8, and a mismatch of batches 5 to 7."""
    folder = tmp_path_factory.mktemp("quarantine") / "run"
    folder.mkdir()
    with Store(folder / "klaxon.duckdb") as store:
        for t in range(BATCHES):
            store.append_batch(BatchStats(t=t, opened_at=START + BATCH * t, closed_at=START + BATCH * (t + 1),
                                          counts={"seen": A_BATCH + 2, "tokens_seen": (A_BATCH + 2) * TOKENS}))
            made = [rollout(t, number) for number in range(A_BATCH + 1)]
            store.append_rollouts(t, [(one, Score(request_id=one.request_id, views={"expected": np.full(TOKENS, -1.25, dtype=np.float32)}))
                                      for one in made])
        store.append_event(START + 8 * BATCH, "resolved", "it is back", {"t": CHANGED[-1], "fingerprint": "r1/mismatch"})
    alerts = Alerts(AlertsConfig(), folder / "control.sqlite", run="r1", budget_text="1 per 30 days", batch_seconds=BATCH)
    verdict = Diagnosis(verdict="raw_logprobs", confident=True, floor_nats=0.02, next="", tokens=9,
                        causes=(Cause(cause="raw_logprobs", residual_nats=0.02, tokens=9),))
    alerts.observe([drift("self_bet:+0.6")], now=START + 7 * BATCH, diagnosis=verdict)
    alerts.resolve("r1/mismatch", now=START + 8 * BATCH, why="back")
    alerts.observe([drift("nonfinite_logprobs", kind="fact", alarm_t=8, change_t=(8, 8), slice={"replica": "http://e1"})], now=START + 9 * BATCH)
    alerts.stop(drain_seconds=0.0)
    return folder


def klaxon(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "klaxon", "quarantine", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=240)


def mismatch_id(run: Path) -> str:
    found = json.loads(klaxon("last", "--run", run, "--json").stdout)
    assert found["state"] == "firing" and found["batches"] == [8, 9] and found["cause"] == "non_finite"
    assert (found["in_slice"], found["rollouts"]) == (2 * A_BATCH // 2, 2 * A_BATCH), "the alarm names one of two replicas"
    from alerts.incidents import incident_id

    return incident_id("r1/mismatch", 0)


def test_a_stored_run_gives_the_tainted_rollouts_and_nothing_else(run: Path, tmp_path: Path) -> None:
    out, incident = tmp_path / "ids.jsonl", mismatch_id(run)
    done = klaxon(incident.removeprefix("inc_")[:8], "--run", run, "-o", out)
    assert done.returncode == 0, done.stderr
    header, *lines = [json.loads(line) for line in out.read_text().splitlines()]
    with Store(run / "klaxon.duckdb") as store:
        key = store.query("SELECT value FROM meta WHERE key = 'request_key'")[0][0]
    expected = [(hashlib.blake2b(f"cmpl-{t}-{n}".encode(), key=bytes.fromhex(key), digest_size=12).hexdigest(), t, str(40 + t), str(400 + t))
                for t in CHANGED for n in range(A_BATCH)]
    assert [(line["request_hash"], line["t"], line["version"], line["step"]) for line in lines] == expected
    assert header["incident"] == incident and "blake2b" in header["ids"] and "request_key" in header["ids"]
    assert (header["last_clean_version"], header["last_clean_step"], header["tainted_versions"]) == ("44", "404", ["45", "46", "47"])
    assert (header["rollouts"], header["seen"], header["not_named"], header["groups"]) == (12, 18, 6, 6)
    assert header["token_share"] == header["group_share"] == pytest.approx(3 / BATCHES)
    assert header["since"] == START + 5 * BATCH and header["until"] == START + 8 * BATCH
    for word in ("12 rollouts of 6 groups", "batches 5 to 7", "45, 46, 47", "last clean version 44 (step 404)", "30.0%", "6 of 18"):
        assert word in done.stderr, done.stderr
    assert "cmpl-" not in out.read_text()


def test_the_trainers_own_ids_are_matched_and_bad_lines_counted(run: Path, tmp_path: Path) -> None:
    mine, out = tmp_path / "mine.jsonl", tmp_path / "tainted.jsonl"
    mine.write_text('{"request_id": "cmpl-9-1"}\n{"id": "cmpl-4-0"}\n"cmpl-8-3"\n{"request_id": 7}\nnot json\n\n')
    done = klaxon("last", "--run", run, "--match", mine, "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["asked"], found["matched"]) == (3, 2)
    assert [reason.partition(", ")[2] for reason in found["refused"]] == ["line 4: request_id: a text is expected", "line 5: is not JSON"]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["request_id"] for line in lines[1:]] == ["cmpl-9-1", "cmpl-8-3"] and lines[0]["matched"] == 2
    assert lines[1]["in_slice"] is True and lines[1]["t"] == 9


def test_a_live_read_api_gives_the_same_lines(run: Path, tmp_path: Path) -> None:
    ours, theirs, mine = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl", tmp_path / "mine.jsonl"
    mine.write_text('"cmpl-9-1"\n"other"\n')
    assert klaxon("last", "--run", run, "-o", ours).returncode == 0
    with serving(run) as url:
        done = klaxon("last", "--url", url, "-o", theirs)
        assert done.returncode == 0, done.stderr
        assert ours.read_text() == theirs.read_text()
        assert json.loads(klaxon("last", "--url", url, "--match", mine, "--json").stdout)["matched"] == 1
        locked = klaxon("last", "--run", run)
    assert locked.returncode == 2 and "--url" in locked.stderr and len(locked.stderr.splitlines()) == 1 and not locked.stdout


class serving:  # noqa: N801
    """The read API over a stored run, in another process as far as the file's lock goes: the command runs in its own."""

    def __init__(self, run: Path) -> None:
        self.store = Store(run / "klaxon.duckdb")
        self.alerts = Alerts(AlertsConfig(), run / "control.sqlite", run="r1", budget_text="", batch_seconds=BATCH)
        self.server = uvicorn.Server(uvicorn.Config(build_api(self.store, self), port=0, log_level="warning", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def incidents(self) -> list[dict]:
        return self.alerts.incidents()

    def status(self) -> dict:
        return {}

    def __enter__(self) -> str:
        self.thread.start()
        began = time.monotonic()
        while not self.server.started:
            assert time.monotonic() - began < 60
            time.sleep(0.02)
        return f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=60)
        self.alerts.stop(drain_seconds=0.0)
        self.store.close()


@pytest.mark.parametrize(("arguments", "named"), [
    (("inc_nosuch", "--run", "RUN"), "no incident 'inc_nosuch'"),
    (("last", "--run", "EMPTY"), "holds no klaxon.duckdb"),
    (("last", "--run", "RUN", "--match", "EMPTY/none.jsonl"), "cannot be read"),
    (("last", "--run", "RUN", "-o", "EMPTY/none/out.jsonl"), "cannot be written"),
    (("last", "--url", "http://127.0.0.1:9"), "no Klaxon daemon answers"),
    (("last", "--run", "RUN", "--url", "http://127.0.0.1:9"), "not both"),
])
def test_what_cannot_be_answered_is_one_clear_line(run: Path, tmp_path: Path, capsys, monkeypatch, arguments, named) -> None:
    from klaxon.cli import main

    given = [argument.replace("RUN", str(run)).replace("EMPTY", str(tmp_path)) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["klaxon", "quarantine", *given])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    assert left.value.code == 2 and named in said.err and len(said.err.strip().splitlines()) == 1 and not said.out
    assert not list(tmp_path.rglob("*.part"))


def found(*ids: str) -> Iterator[dict]:
    for one in ids:
        yield {"id": one, "run": "r", "fingerprint": "r/mismatch", "state": "firing", "title": "t", "diagnosis": None,
               "drifts": [{"kind": "statistical", "stream": "s", "alarm_t": 9, "change_t": [4, 6], "slice": {"replica": "a", "position": "0-1k"}},
                          {"kind": "statistical", "stream": "s", "alarm_t": 12, "change_t": [3, 3], "slice": {"replica": "a"}}]}


def test_the_incident_is_an_id_a_unique_beginning_or_last() -> None:
    known = list(found("inc_ab12", "inc_ab99", "inc_ab1"))
    assert choose(known, "last").id == "inc_ab12" and choose(known, "ab9").id == "inc_ab99" and choose(known, "inc_ab1").id == "inc_ab1"
    for wanted, said in (("ab", "begins several"), ("", "no incident"), ("zz", "the newest are inc_ab12")):
        with pytest.raises(Exception, match=said):
            choose(known, wanted)
    with pytest.raises(Exception, match="the run has none"):
        choose([], "last")


def test_the_earliest_change_and_the_slice_all_alarms_share_decide() -> None:
    fault = choose(list(found("inc_1")), "last")
    assert (fault.change_t, fault.alarm_t, fault.slice) == ((3, 6), 9, {"replica": "a"})


def test_a_fact_that_says_nothing_against_the_data_says_so(tmp_path: Path) -> None:
    alerts = Alerts(AlertsConfig(), tmp_path / "c.sqlite", run="r1", budget_text="", batch_seconds=BATCH)
    alerts.observe([drift("disk_low", kind="fact")], now=START)
    incidents = alerts.incidents()
    alerts.stop(drain_seconds=0.0)
    with Store(tmp_path / "k.duckdb") as store:
        client = TestClient(build_api(store, type("Live", (), {"incidents": lambda self: incidents, "status": lambda self: {}})()))
        summary = client.get("/v1/quarantine/last").json()
        assert client.get("/v1/quarantine/nosuch").status_code == 400
    assert "says nothing against the data" in summary["note"] and summary["rollouts"] == 0 and summary["token_share"] is None
    assert any("no rollout since batch 5 has a row" in line for line in told(summary))
