"""A generated month for benchmarks/dashboard.py: the store, the detectors' state and one incident, as a daemon would have left them.

8 replicas, a batch every two minutes, three rollouts of 193 tokens a replica and batch: 10^8 token rows, rolled up into slices by the
product's own code. Batches draw from POOL sets of slices; per-rollout statistics are kept for the last RECENT_DAYS, as the default retention does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from alerts.config import AlertsConfig
from alerts.service import Alerts
from collector import signals
from collector.records import BatchStats, Cause, Diagnosis, Drift, Rollout, Sampling, Score, SliceStats, WeightSpan
from collector.store import Store
from collector.store_schema import batch_tables, rollout_row, to_arrow
from detectors.bank import Bank
from detectors.config import DetectorsConfig
from klaxon import bank_state

BATCH_SECONDS = 120.0
POOL, TOKENS, ROLLOUTS = 48, 193, 3
BATCHES_A_VERSION = 15
RECENT_DAYS = 7.0
CHUNK = 120  # batches written at a time
ALARM_BEFORE = 200  # batches before the end
BINS = ("math", "code", "chat")
MOVED = {"batches": ("opened_at", "closed_at"), "series": ("closed_at",), "rollouts": ("finished_at",), "metrics": ("at",), "events": ("at",),
         "weights": ("published_at", "seen_at", "engine_at")}
"""Columns of time, UTC seconds."""


@dataclass(frozen=True, slots=True)
class Made:
    """Three rollouts, one a position bucket, and what a batch keeps of them."""

    slices: tuple[SliceStats, ...]
    rows: tuple[dict[str, Any], ...]  # of the table `rollouts`


def make(folder: Path, *, batches: int, replicas: int) -> None:
    """Write the month that ends now into `folder`, which must not hold one."""
    from rich.progress import track

    folder.mkdir(parents=True)
    with Store(folder / "klaxon.duckdb"):
        pass  # the tables
    rng, pool = np.random.default_rng(5), [_made(number) for number in range(POOL)]
    bank, config = Bank(DetectorsConfig(), batch_seconds=BATCH_SECONDS), DetectorsConfig()
    began = time.time() - batches * BATCH_SECONDS
    with duckdb.connect(str(folder / "klaxon.duckdb"), config={"threads": 2, "memory_limit": "1GB"}) as connection:
        for first in track(range(0, batches, CHUNK), description="a month"):
            rows: dict[str, list[dict[str, Any]]] = {}
            for t in range(first, min(first + CHUNK, batches)):
                for table, found in _batch(t, batches, began, bank, [pool[int(one)] for one in rng.integers(POOL, size=replicas)]):
                    rows.setdefault(table, []).extend(found)
            for table, found in rows.items():
                if found:
                    part = to_arrow(table, found)  # noqa: F841  (DuckDB reads it by its name)
                    connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM part")
        connection.execute("CHECKPOINT")
    bank_state.save(bank, folder, config)
    (folder / "made.json").write_text(json.dumps({"batches": batches, "replicas": replicas, "ended_at": began + batches * BATCH_SECONDS,
                                                  "tokens": batches * replicas * ROLLOUTS * TOKENS}), encoding="utf-8")


def move_to_now(folder: Path) -> None:
    """Let the month end now, and open one incident in it."""
    made = json.loads((folder / "made.json").read_text(encoding="utf-8"))
    late = time.time() - made["ended_at"]
    with duckdb.connect(str(folder / "klaxon.duckdb")) as connection:
        for table, columns in MOVED.items():
            connection.execute(f"UPDATE {table} SET " + ", ".join(f'"{column}" = "{column}" + {late}' for column in columns))
        connection.execute("CHECKPOINT")
    alerts = Alerts(AlertsConfig(), folder / "control.sqlite", run="month", budget_text="1 per 30 days", batch_seconds=BATCH_SECONDS)
    alarm = made["batches"] - min(ALARM_BEFORE, made["batches"] // 2)
    drift = Drift(kind="statistical", stream="battery/global", statistic=12.0, threshold=10.0, alarm_t=alarm, change_t=(alarm - 12, alarm - 3), slice={},
                  text="Evidence of a mismatch", effect=0.21, effect_unit="nats")
    causes = tuple(Cause(cause=name, residual_nats=left, tokens=2000) for name, left in
                   (("raw_logprobs", 0.018), ("temperature", 0.11), ("stale_weights", 0.2), ("healthy", 0.21)))
    found = Diagnosis(verdict="raw_logprobs", confident=True, causes=causes, floor_nats=0.018, next="klaxon diagnose --incident last")
    opened = time.time() - (made["batches"] - alarm - 1) * BATCH_SECONDS
    alerts.observe([drift], now=opened, diagnosis=found, closed_at=opened)
    alerts.stop(drain_seconds=0.0)


def rollout_lines(replicas: int, number: int) -> str:
    """One rollout for POST /v1/ingest, with the trainer's logprobs: what keeps the daemon at work while it is looked at."""
    rng = np.random.default_rng(number)
    engine = -rng.gamma(1.0, 0.5, TOKENS)
    said = {"kind": "rollout", "schema": 1, "run": "month", "engine": f"http://10.0.0.{number % replicas}:8000", "request_id": f"live-{number}",
            "finished_at": time.time(), "prompt_token_ids": [1] * 200, "token_ids": [5] * TOKENS, "logprobs": engine.tolist(), "sampled_mask": [1] * TOKENS,
            "trainer_logprobs": np.minimum(engine + rng.normal(0, 0.02, TOKENS), 0).tolist(), "labels": {"env": BINS[number % 3]}}
    return json.dumps(said)


def _batch(t: int, batches: int, began: float, bank: Bank, chosen: list[Made]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(table, rows) of one batch."""
    closed, version = began + (t + 1) * BATCH_SECONDS, str(t // BATCHES_A_VERSION)
    slices = tuple(replace(one, replica=_replica(k), version=version) for k, made in enumerate(chosen) for one in made.slices)
    counts = {"seen": ROLLOUTS * len(chosen), "scored": ROLLOUTS * len(chosen), "tokens_seen": ROLLOUTS * TOKENS * len(chosen)}
    counts |= {f"tokens_seen@{_replica(k)}": ROLLOUTS * TOKENS for k in range(len(chosen))}
    batch = BatchStats(t=t, opened_at=closed - BATCH_SECONDS, closed_at=closed, slices=slices, counts=counts)
    evidence, _ = bank.update(batch)
    yield from batch_tables(batch, evidence, ln_m=bank.ln_m if t else None, ln_a=bank.ln_a).items()
    if (batches - t) * BATCH_SECONDS <= RECENT_DAYS * 86_400:
        yield "rollouts", [{**row, "request": f"{t:012x}{k:06x}{place:06x}", "t": t, "finished_at": closed - 60.0, "replica": _replica(k), "version": version,
                            "env": BINS[k % 3], "turn": str(place)} for k, made in enumerate(chosen) for place, row in enumerate(made.rows)]
    if t % BATCHES_A_VERSION == 0:
        yield "events", [{"at": closed, "kind": "weight_update", "text": f"version {version}", "data": "{}"}]
        yield "weights", [{"version": version, "seen_at": closed - BATCH_SECONDS, "engine_at": closed - BATCH_SECONDS + 5}]
        yield "metrics", [{"step": t // BATCHES_A_VERSION, "at": closed, "name": name, "value": value + 0.01 * np.sin(t / 900), "source": "trainer"}
                          for name, value in (("reward", 0.5), ("clip_rate", 0.02), ("kl", 0.02), ("entropy", 1.0), ("grad_norm", 1.0))]


def _replica(number: int) -> str:
    return f"http://10.0.0.{number}:8000"


def _made(number: int) -> Made:
    rng = np.random.default_rng([4, number])
    slices: list[SliceStats] = []
    rows = []
    for prompt in (200, 2000, 6000):  # one position bucket each
        engine = -rng.gamma(1.0, 0.5, TOKENS).astype(np.float32)
        rollout = Rollout(request_id="r", prompt_tokens_P=np.zeros(prompt, dtype=np.int32), completion_tokens_T=np.zeros(TOKENS, dtype=np.int32),
                          engine_logprobs_T=engine, sampled_mask_T=np.ones(TOKENS, dtype=bool), sampling=Sampling(temperature=1.0), cached_prompt_tokens=0,
                          weight_versions=(WeightSpan(start=0, end=TOKENS, version="0"),), inclusion_probability=0.5)
        score = Score(request_id="r", views={"expected": engine + rng.normal(0, 0.02, TOKENS).astype(np.float32)})
        slices += signals.slice_stats(rollout, score)
        rows.append(rollout_row(rollout, score, t=0, key="00" * 32))
    return Made(tuple(slices), tuple(rows))
