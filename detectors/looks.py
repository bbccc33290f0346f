"""One batch as the battery sees it: named slices, fleet-wide numbers, nothing else. Live batches and files give the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from collector.records import BatchStats, SliceStats

@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One slice: counts by |d| bin, positive d first, then negative."""

    replica: str
    position: str
    counts: np.ndarray  # int64 [2 · bins]
    n_sequences: float
    lag: float | None = None  # weight versions
    version: str | None = None
    surprise: tuple[float, float] = (math.nan, math.nan)  # summed −log p of engine and trainer, nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One batch. `fleet`: numbers of the whole, two-sided and of low weight, e.g. entropy and reward."""

    t: int
    cells: tuple[Cell, ...] = ()
    unsure: float = math.nan  # log entropy of the policy; NaN where cells carry their own surprise or nothing is known
    fleet: Mapping[str, float] = field(default_factory=dict)


def of_batch(batch: BatchStats) -> Look:
    """A live batch: what the engine served, by replica, position and version."""
    served = [item for item in batch.slices if item.population == "served" and item.n_tokens]
    newest = _newest(item.version for item in served)
    return Look(t=batch.t, cells=tuple(_cell(item, newest) for item in served), fleet=_fleet(served))


def _cell(item: SliceStats, newest: int | None) -> Cell:
    number = int(item.version) if item.version is not None and item.version.isdecimal() else None
    engine = -item.sums.get("engine_logprob", math.nan)
    return Cell(
        replica=item.replica, position=item.position, counts=np.concatenate([item.hist_pos, item.hist_neg]),
        n_sequences=item.n_sequences, lag=None if newest is None or number is None else float(newest - number),
        version=item.version, surprise=(engine, engine - item.sums.get("d", math.nan)),
    )


def _newest(versions: Iterable[str | None]) -> int | None:
    return max((int(name) for name in versions if name is not None and name.isdecimal()), default=None)


def _fleet(served: list[SliceStats]) -> dict[str, float]:
    """log(N/ESS − 1), the squared variation of the weights, and the policy's entropy where it is known."""
    n = sum(item.n_tokens for item in served)
    w, w2 = (math.fsum(item.sums.get(name, 0.0) for item in served) for name in ("w", "w2"))
    found = {}
    if n and w > 0 and n * w2 > w * w:
        found["ess"] = math.log(n * w2 / w**2 - 1)
    tokens, entropy = (math.fsum(item.sums.get(name, 0.0) for item in served) for name in ("entropy_tokens", "entropy"))
    if tokens > 0 and entropy > 0:
        found["entropy"] = math.log(entropy / tokens)
    return found

