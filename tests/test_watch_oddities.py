"""From a scored rollout to an alarm that names it; a store that refuses; a corrupt batch; a contract left."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from collector.errors import Unavailable
from collector.records import BatchStats, Drift, Rollout, Score
from collector.sources.rollout_json import read_rollouts
from detectors import bounded
from detectors.bank import Bank
from detectors.hardfacts import Observation, facts
from klaxon.app import Daemon
from klaxon.batches import BatchBuilder
from klaxon.checks import Finding, settings
from klaxon.config import Config
from klaxon.filing import Filing
from klaxon.watch import Hooks, Watch

HERE = Path(__file__).parent
RECORDING = "v0181_processed_t07.jsonl"
SWAPPED = json.loads((HERE / "fixtures" / "requests" / "swapped_prompts.json").read_text())
TRAINER = json.loads((HERE.parent / "klaxon" / "recordings" / "trainer_logprobs.json").read_text())[RECORDING]
ROLLOUTS = [one for one in read_rollouts(HERE.parent / "klaxon" / "recordings" / RECORDING) if isinstance(one, Rollout)]


class Disk:
    """A store that takes batches while it has room."""

    def __init__(self) -> None:
        self.room, self.stored = True, []

    def append_batch(self, batch: BatchStats, evidence, *, ln_m: float, ln_a: float) -> None:
        if not self.room:
            raise Unavailable("no room; check free disk space")
        self.stored.append(batch)


class Quiet:
    """Alerts that note what they were shown."""

    def __init__(self) -> None:
        self.seen: list[Drift] = []

    def observe(self, drifts, **_) -> None:
        self.seen += drifts

    def note_evidence(self, at: float, ln_m: float) -> None:
        """Nothing is drawn here."""

    def open_incidents(self) -> list:
        return []


@pytest.fixture
def parts() -> Iterator[tuple[Watch, Filing, list[float], list]]:
    """(watch, filing, the clock's one number, events)"""
    config = Config.model_validate({"daemon": {"batch_seconds": 10.0, "watermark_seconds": 0.0}, "contract": {"floor_nats": 0.05},
                                    "detectors": {"requests": {"warmup_rollouts": 100, "delay_rollouts": 0, "memory_rollouts": 400}}})
    builder, events, lock = BatchBuilder(started_at=0.0, batch_seconds=10.0, watermark_seconds=0.0), [], threading.Lock()
    filing = Filing(config, builder, has_shadow=False)
    hooks = Hooks(say=lambda kind, text, data: events.append((kind, data)), observe=lambda now: Observation(now=now, started_at=now),
                  quick=lambda drifts: None, diagnose=lambda drift: None, after_batch=lambda: None, take_counts=dict,
                  suspects=lambda first, last: [f"hash-of-{name}" for t, name in filing.suspects if first <= t <= last])
    now = [0.0]
    watch = Watch(config, bank=Bank(config.detectors, batch_seconds=10.0), builder=builder, builder_lock=lock, store=Disk(), alerts=Quiet(),
                  hooks=hooks, clock=lambda: now[0])
    yield watch, filing, now, events


def fill(filing: Filing, rng: np.random.Generator, count: int, *, at: float) -> None:
    for i in range(count):
        one = ROLLOUTS[rng.integers(len(ROLLOUTS))]
        pick = rng.integers(one.n_tokens, size=int(rng.integers(8, 40)))
        trainer = np.array(TRAINER[one.request_id])[pick]
        made = replace(one, request_id=f"{at}-{i}", prompt_tokens_P=np.array([i], np.int32), completion_tokens_T=one.completion_tokens_T[pick],
                       engine_logprobs_T=one.engine_logprobs_T[pick], sampled_mask_T=np.ones(pick.size, bool), top_tokens=(), top_logprobs=(),
                       trainer_logprobs_T=trainer.astype(np.float32), finished_at=at)
        filing.file(made, made, None, now=at)


def test_a_corrupted_rollout_is_carried_as_gains_named_by_hash_and_put_into_the_alarm(parts) -> None:
    watch, filing, now, events = parts
    rng = np.random.default_rng(0)
    fill(filing, rng, 300, at=5.0)
    fill(filing, rng, 40, at=15.0)
    bad = replace(ROLLOUTS[0], request_id="bad", prompt_tokens_P=np.array([999], np.int32), finished_at=15.0,
                  trainer_logprobs_T=np.array(SWAPPED[ROLLOUTS[0].request_id], np.float32))
    filing.file(bad, bad, None, now=15.0)
    assert filing.counts["suspect_rollouts"] == 1 and list(filing.suspects) == [(1, "bad")]
    now[0] = 20.0
    watch.tick(20.0)
    assert ("suspect_rollouts", {"t": 1, "requests": ["hash-of-bad"]}) in events
    gains = watch.store.stored[1].gains
    assert gains["requests:outlier:0.01"] > 3 and gains["requests:confident:0.01"] > 1
    assert watch.store.stored[0].gains["contract:floor:safe"] < 0 < gains["contract:floor:safe"], "one bad rollout lifts the mean of a small batch"
    drift = Drift(kind="statistical", stream="requests:outlier:0.01", statistic=10.0, threshold=9.0, alarm_t=1, change_t=(1, 1), text="Evidence.")
    named = watch._sized(drift)
    assert named.slice == {"requests": "hash-of-bad"} and "klaxon export rollouts" in named.text and named.effect is not None
    other = watch._sized(replace(drift, stream="battery:log_abs_d:1"))
    assert other.slice == {} and "hash-of" not in other.text


def test_a_store_that_refuses_is_noticed_and_a_corrupt_batch_is_logged(parts, caplog) -> None:
    watch, filing, now, _ = parts
    watch.store.room = False
    broken = replace(ROLLOUTS[0], engine_logprobs_T=np.full(ROLLOUTS[0].n_tokens, np.nan, np.float32), finished_at=5.0)
    filing.file(broken, broken, None, now=5.0)
    now[0] = 10.0
    with caplog.at_level(logging.ERROR):
        watch.tick(10.0)
    assert any(record.message.startswith("corrupt batch 0: 15 sampled tokens") for record in caplog.records)
    assert watch.store_refusing_since == 10.0 and not watch.store.stored
    now[0] = 20.0
    watch.tick(20.0)
    assert watch.store_refusing_since == 10.0
    watch.store.room, now[0] = True, 30.0
    watch.tick(30.0)
    assert watch.store_refusing_since is None and [batch.t for batch in watch.store.stored] == [0, 1, 2]


def test_check_prints_the_contract_and_where_it_contradicts_itself() -> None:
    def told(**contract: object) -> Finding:
        return settings.contract(Config.model_validate({"contract": contract}), {"engine": {"dtype": "torch.bfloat16"}})

    assert told().state == "off"
    fine = told(engine_dtype="bfloat16", floor_nats=0.05, correction="tis", cap=2.0, min_ess=0.95)
    assert (fine.state, fine.text) == ("ok", "accepts mean |d| up to 0.05 nats, ESS from 0.95, engine bfloat16, correction tis at 2")
    wrong = told(engine_dtype="fp8", correction="icepop", cap=3.0)
    assert wrong.state == "warn" and "signals.icepop = 5" in wrong.text and "the engine reports torch.bfloat16" in wrong.text


def test_a_healthy_first_rollout_is_judged_and_suspected_of_nothing() -> None:
    rollout = replace(ROLLOUTS[0], trainer_logprobs_T=np.array(TRAINER[ROLLOUTS[0].request_id], np.float32))
    filing = Filing(Config(), BatchBuilder(started_at=0.0, batch_seconds=10.0, watermark_seconds=0.0), has_shadow=False)
    t, judged = filing.file(rollout, rollout, None, now=1.0)
    assert t == 0 and isinstance(judged, Score) and filing.counts["suspect_rollouts"] == 0


def test_the_daemon_files_what_the_band_says_and_sees_its_disk(tmp_path) -> None:
    rows = {"steps": [0.0, 100.0], "center": [0.5, 0.5], "low": [0.4, 0.4], "high": [0.6, 0.6], "noise": 0.02, "phi": 0.0, "runs": 4}
    (tmp_path / "band.json").write_text(json.dumps({"klaxon_band": 1, "runs": ["a", "b", "c", "d"], "metrics": {"reward": rows}}))
    config = Config.model_validate({"run": {"dir": str(tmp_path / "state")}, "shadow": {"enabled": False}, "alerts": {"console": False},
                                    "reference": {"band": str(tmp_path / "band.json")}, "contract": {"engine_dtype": "fp8"}})
    daemon = Daemon(config)
    try:
        for step in (1, 2, 2):
            daemon.trainer.take_metrics({"step": step, "metrics": {"reward": 0.0, "loss": float("nan")}, "at": 1.0})
        daemon.taps.beat({"source": "vllm", "engine": "e", "pid": 1, "config": {"dtype": "torch.bfloat16"}}, now=time.time())
        seen = daemon.live.observation(time.time())
        assert seen.disk_free_bytes and seen.store_refusing_since is None
        assert {fact.name for fact in facts(None, seen, config.detectors.facts)} >= {"contract_dtype", "trainer_nonfinite"}
        daemon.watch.tick(time.time() + config.daemon.batch_seconds + config.daemon.watermark_seconds)
        (batch, *_) = daemon.store.read_batches()
        assert batch.gains["reference:reward:below:2"] == pytest.approx(2 * bounded.gain(4.0, 2.0)), "two steps, each once"
        assert json.dumps(daemon.live.status()["trainer"], allow_nan=False)
    finally:
        daemon.store.close()
