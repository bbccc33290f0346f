"""A run with a fault, behind a real daemon's API, for the tests of the dashboard's pages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from alerts_helpers import diagnosis, mismatch
from alerts_served import Served, served_daemon
from collector import signals
from collector.records import BatchStats, Diagnosis, Evidence, Rollout, Score, WeightSpan
from collector.store import Store
from dashboard import asking, frame

BATCH_SECONDS = 10.0
BATCHES, FAULT_AT = 40, 25
HOSTILE = "![x](http://evil.example/p.png) <script>document.title='owned'</script> [click](javascript:alert(1)) :red[boo]"


def forget() -> None:
    """What the pages have been answered is asked anew; their connections stay."""
    st.cache_data.clear()
    for kept in (asking.shot, asking.of_signal, frame._cached_table, frame._cached_json, frame._cached_drawing):
        kept.clear()


@contextmanager
def faulty_run(folder: Path, *, incident: bool = True, batches: int = BATCHES, **sections: Any) -> Iterator[Served]:
    """A daemon whose run r1 has `batches` batches on one of two replicas of which a fault lies since batch FAULT_AT, and one incident."""
    with served_daemon(folder, daemon={"batch_seconds": BATCH_SECONDS}, **sections) as served:
        now = time.time()
        for t in range(batches):
            _append(served.daemon.store, t, now - BATCH_SECONDS * (batches - t))
        if incident:
            alarm_t = FAULT_AT + 3
            opened = now - BATCH_SECONDS * (batches - alarm_t)
            served.daemon.store.append_event(opened, "alarm", f"evidence crossed its threshold in batch {alarm_t}")
            served.alerts.observe([mismatch(alarm_t=alarm_t, change_t=(FAULT_AT - 1, FAULT_AT + 1), effect=0.21, slice={"replica": "http://e1:8000"})],
                                  now=opened, closed_at=opened, diagnosis=hostile_diagnosis())
        yield served


def hostile_diagnosis() -> Diagnosis:
    """A measured verdict whose evidence tries to act on the page."""
    found = diagnosis()
    causes = (type(found.causes[0])(cause="raw_logprobs", residual_nats=0.0182, tokens=1024, evidence=("the tap reports logprobs_mode = raw_logprobs", HOSTILE)),
              *found.causes[1:])
    return diagnosis(causes=causes)


def _append(store: Store, t: int, at: float) -> None:
    rng = np.random.default_rng(t)
    slices = tuple(part for replica in range(2) for part in _slices(rng, t, f"http://e{replica}:8000", shift=0.3 if replica and t >= FAULT_AT else 0.0, at=at))
    log_sr = 4.0 * max(0, t - FAULT_AT)
    store.append_batch(BatchStats(t=t, opened_at=at - BATCH_SECONDS, closed_at=at, slices=slices, counts={"seen": 2}),
                       [Evidence(t=t, stream=name, weight=0.5, gain=1.0, log_sr=share * log_sr, started_at=None)
                        for name, share in (("self_bet:+0.6", 1.0), ("explain:raw_logprobs:1", 0.6), ("battery/global", 0.1))], ln_m=log_sr, ln_a=9.98)


def _slices(rng: np.random.Generator, t: int, replica: str, *, shift: float, at: float) -> tuple:
    trainer = rng.uniform(-3, -0.1, 200).astype(np.float32)
    rollout = Rollout(
        request_id=f"{t}-{replica}", engine=replica, prompt_tokens_P=np.arange(5, dtype=np.int32), completion_tokens_T=np.zeros(200, np.int32),
        engine_logprobs_T=np.minimum(trainer + rng.normal(shift, 0.01, 200), 0).astype(np.float32), sampled_mask_T=np.ones(200, bool),
        weight_versions=(WeightSpan(start=0, end=200, version=str(t // 10)),), finished_at=at)
    return tuple(signals.slice_stats(rollout, Score(request_id=rollout.request_id, views={"expected": trainer})))
