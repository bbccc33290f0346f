"""A second kind of healthy fleet, held out from tuning: rollouts of real engines drawn again and again.

Every slice of a batch holds whole recorded rollouts (their d = trainer − engine, nats, with all its dependence inside a
rollout), a random number of them; nothing is modelled. One position bucket.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collector.metric_values import PUBLIC_EDGES
from collector.sources.rollout_json import read_rollouts
from tests.simulate.streams import Batch

RECORDINGS = Path(__file__).parents[2] / "klaxon" / "recordings"


def histograms(name: str) -> np.ndarray:
    """Counts of d of every recorded rollout, int64 [rollouts, 24]."""
    trainer = json.loads((RECORDINGS / "trainer_logprobs.json").read_text())[f"{name}.jsonl"]
    found = []
    for rollout in read_rollouts(RECORDINGS / f"{name}.jsonl"):
        d = np.array(trainer[rollout.request_id]) - rollout.engine_logprobs_T  # type: ignore[union-attr]
        found.append(np.concatenate([np.histogram(np.abs(d[side]), PUBLIC_EDGES)[0] for side in (d >= 0, d < 0)]))
    return np.stack(found)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """As streams.Simulation, from the recording `healthy`; from batch `start` on replica `replica` draws from `sick`."""

    healthy: str
    runs: int
    seed: int
    sick: str | None = None
    start: int = 10**9
    replica: int = 0
    replicas: int = 4
    positions: int = 1
    rollouts: float = 12.0

    def batches(self, count: int) -> Iterator[Batch]:
        """`count` batches."""
        rng, pool = np.random.default_rng(self.seed), histograms(self.healthy)
        other = histograms(self.sick) if self.sick else pool
        shape = (self.runs, self.replicas, self.positions)
        for t in range(count):
            n = rng.poisson(self.rollouts, shape)
            times = rng.multinomial(n, np.full(len(pool), 1 / len(pool)))
            counts = times @ pool
            if t >= self.start:
                counts[:, self.replica] = times[:, self.replica] @ other
            yield Batch(t=t, counts=counts, sequences=n.astype(float), lag=np.full(shape, np.nan), entropy=np.ones(self.runs), changed=t >= self.start)
