"""What the last batches say together, kept up as batches close: the part of the daemon's status that rests on many of them.

Every batch is put together once, when it is added; an answer merges those sums, and is kept until the next batch. So a question costs nothing
between two batches, whatever the number of replicas, and what is held are a few records a batch and not its slices.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from collector.populations import shares_by_lag
from collector.records import POPULATIONS, BatchStats, SliceStats
from collector.signal_sums import WEIGHTED
from collector.signals import metrics, total, weighted
from klaxon.filing import SEEN

BATCHES = 200
OF_INTEREST = (
    "n_tokens", "mean_d", "mean_abs_d", "mean_abs_d_se", "p50_abs_d", "p99_abs_d", "max_abs_d", "k1", "k2", "k3", "chi2", "tme", "ess", "seq_ess",
    "clip_rate", "gspo_clip_rate", "tis_truncated", "icepop_masked", "mis_masked", "dppo_masked", "sequence_masked", "geometric_masked",
    "product_masked", "veto_sequences", "ppl_ratio", "pearson", "probs_diff_mean", "mean_entropy", "confident_disagreements",
)
"""Signals of the metric table that `klaxon status --json` shows; the others come from GET /v1/series?signal=NAME."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One batch, put together."""

    t: int
    populations: dict[str, SliceStats]  # of each one that has slices
    stale: tuple[SliceStats, ...]  # a lag each, for the shares of mismatch and staleness
    replicas: tuple[SliceStats, ...]  # a replica and population each, with the WEIGHTED sums alone
    seen: dict[str, float]  # replica → sampled tokens


class Recent:
    """The newest BATCHES batches. Thread-safe: the watch adds, the API's threads ask."""

    def __init__(self, batches: int = BATCHES) -> None:
        self._parts: deque[_Part] = deque(maxlen=batches)
        self._lock = threading.Lock()
        self._added = 0
        self._kept: dict[str, tuple[int, Any]] = {}  # question → the batches added when it was answered, the answer

    def add(self, batch: BatchStats) -> None:
        """Take a closed batch; whoever asks from now on sees it."""
        part = _part(batch)
        with self._lock:
            self._parts.append(part)
            self._added += 1

    def since(self, t: int) -> SliceStats:
        """What was served in the batches from `t` on, as one."""
        return _together([part for part in self._now()[1] if part.t >= t], "served")

    def populations(self) -> dict[str, dict[str, float]]:
        """Tokens, mean |d| and clip rate of every population; those without tokens are left out.

        "estimate" is what all rollouts would show, weighted by the coins' probabilities.
        """
        return self._answer("populations", _populations)

    def staleness(self) -> list[dict[str, float | int | None]]:
        """Mismatch and staleness in the same differences, a lag each and together."""
        return self._answer("staleness", lambda parts: shares_by_lag(item for part in parts for item in part.stale))

    def signals(self) -> dict[str, float]:
        """The signals people ask for most, of everything served; {} where nothing was compared."""
        return self._answer("signals", _signals)

    def _now(self) -> tuple[int, tuple[_Part, ...]]:
        with self._lock:
            return self._added, tuple(self._parts)

    def _answer(self, name: str, compute: Callable[[Sequence[_Part]], Any]) -> Any:
        """Two that ask at once may both compute; the answer of an older state never replaces a newer one's."""
        added, parts = self._now()
        kept = self._kept.get(name)
        if kept is not None and kept[0] == added:
            return kept[1]
        found = compute(parts)
        with self._lock:
            if (kept := self._kept.get(name)) is None or kept[0] < added:
                self._kept[name] = (added, found)
        return found


def _part(batch: BatchStats) -> _Part:
    groups: dict[str, list[SliceStats]] = {}
    lags: dict[str | None, list[SliceStats]] = {}
    strata: dict[tuple[str, str], list[SliceStats]] = {}
    for item in batch.slices:
        groups.setdefault(item.population, []).append(item)
        if item.population == "stale":
            lags.setdefault(item.version, []).append(item)
        elif item.population in ("served", "hinted"):
            strata.setdefault((item.replica, item.population), []).append(item)
    return _Part(
        t=batch.t, populations={name: total(items, population=name) for name, items in groups.items()},
        stale=tuple(replace(total(items, population="stale"), version=version) for version, items in lags.items()),
        replicas=tuple(_stratum(*key, items) for key, items in strata.items()),
        seen={name.removeprefix(SEEN): count for name, count in batch.counts.items() if name.startswith(SEEN)})


def _stratum(replica: str, population: str, items: Sequence[SliceStats]) -> SliceStats:
    sums = {name: math.fsum(item.sums.get(name, 0.0) for item in items) for name in WEIGHTED}
    return replace(items[0], replica=replica, position="*", version=None, cached=None, population=population, sums=sums,
                   n_tokens=sum(item.n_tokens for item in items), n_sequences=math.fsum(item.n_sequences for item in items))


def _together(parts: Sequence[_Part], population: str) -> SliceStats:
    return total((part.populations[population] for part in parts if population in part.populations), population=population)


def _populations(parts: Sequence[_Part]) -> dict[str, dict[str, float]]:
    there = {name for part in parts for name in part.populations}
    found = {name: metrics(_together(parts, name)) for name in POPULATIONS if name in there}
    kept = {name: {"n_tokens": values["n_tokens"], "mean_abs_d": values["mean_abs_d"], "clip_rate": values["clip_rate"]}
            for name, values in found.items() if values["n_tokens"]}
    seen: Counter[str] = Counter()
    for part in parts:
        seen.update(part.seen)
    whole = weighted((item for part in parts for item in part.replicas), seen)
    if whole["tokens"]:
        kept["estimate"] = {"n_tokens": whole["tokens"], "mean_abs_d": whole["mean_abs_d"], "clip_rate": whole["clip_rate"],
                            "mean_abs_d_se": whole["mean_abs_d_se"]}
    return kept


def _signals(parts: Sequence[_Part]) -> dict[str, float]:
    whole = _together(parts, "served")
    values = metrics(whole) if whole.n_tokens else {}
    return {name: values[name] for name in OF_INTEREST if name in values and math.isfinite(values[name])}
