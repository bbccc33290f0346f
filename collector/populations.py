"""The comparisons one rollout allows: what was served, what is trained on, and whether trainer and shadow agree.

A trainer that recomputed the logprobs under the version that generated the tokens (or does not say which) is a second
opinion on the same weights. One that had moved on measures mismatch and staleness together: it is filed apart, as
"lagged", and never as mismatch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from collector.config import SignalsConfig
from collector.records import Rollout, Score, SliceStats
from collector.signals import metrics, slice_stats, total, trainer_score

NEWEST_VIEW = "newest"
"""View "newest:3" = the newest published weights, three versions after the generating ones."""


def slices_of(rollout: Rollout, shadow: Score | None, config: SignalsConfig) -> tuple[SliceStats, ...]:
    """Slices of every population this rollout belongs to. `shadow` None = tier 1: the trainer's logprobs alone."""
    return (*served(rollout, shadow, config), *late(rollout, shadow, config))


def primary(rollout: Rollout, shadow: Score | None) -> Score | None:
    """Whose logprobs the engine is judged by: the shadow's, else the trainer's of the generating version; None = nobody's."""
    if shadow is not None:
        return shadow
    return None if trainer_moved_on(rollout) else trainer_score(rollout)


def trainer_moved_on(rollout: Rollout) -> bool:
    """Did the trainer recompute with other weights than those that generated (some of) the tokens?"""
    generated = {span.version for span in rollout.weight_versions}
    return rollout.trainer_version is not None and bool(generated - {rollout.trainer_version})


def served(rollout: Rollout, shadow: Score | None, config: SignalsConfig) -> Iterator[SliceStats]:
    """What the engine sampled; rollouts that only the hint coin kept apart."""
    score = primary(rollout, shadow)
    if score is not None:
        yield from _slices(rollout, score, config, "served" if rollout.base_coin else "hinted")


def late(rollout: Rollout, shadow: Score | None, config: SignalsConfig) -> Iterator[SliceStats]:
    """What only the trainer's side can tell, and often tells minutes later."""
    if not rollout.base_coin:
        return
    score, trainer = primary(rollout, shadow), trainer_score(rollout)
    if score is not None and learnt_from(rollout):
        mask_T = rollout.sampled_mask_T if rollout.loss_mask_T is None else rollout.sampled_mask_T & rollout.loss_mask_T
        if mask_T.any():
            yield from _slices(replace(rollout, sampled_mask_T=mask_T), score, config, "trained")
    if score is not None and rollout.dropped:
        yield from _slices(rollout, score, config, "dropped")
    yield from _stale(rollout, shadow, config)
    if trainer is None:
        return
    if trainer_moved_on(rollout):
        yield from _slices(rollout, trainer, config, "lagged")
    elif shadow is not None:
        as_engine = replace(rollout, engine_logprobs_T=rollout.trainer_logprobs_T,
                            sampled_mask_T=rollout.sampled_mask_T & ~np.isnan(rollout.trainer_logprobs_T))
        yield from _slices(as_engine, shadow, config, "trainer_check")


def _stale(rollout: Rollout, shadow: Score | None, config: SignalsConfig) -> Iterator[SliceStats]:
    """Staleness without mismatch: what the newest weights say against what the generating ones said."""
    for name in shadow.views if shadow is not None else ():
        kind, _, lag = name.partition(":")
        if kind == NEWEST_VIEW:
            yield from _aged(rollout, shadow, config, name, lag)


def _aged(rollout: Rollout, shadow: Score, config: SignalsConfig, newest: str, lag: str) -> Iterator[SliceStats]:
    """d = newest − generating of one rollout; beside it, on the same tokens, what mismatch and both together are."""
    finite_T = np.isfinite(rollout.engine_logprobs_T) & np.isfinite(shadow.views["expected"]) & np.isfinite(shadow.views[newest])
    served = replace(rollout, sampled_mask_T=rollout.sampled_mask_T & finite_T)
    generating = replace(served, engine_logprobs_T=shadow.views["expected"])
    limits = config.limits()
    stale = slice_stats(generating, shadow, limits=limits, view=newest)
    apart = (slice_stats(served, shadow, limits=limits), slice_stats(served, shadow, limits=limits, view=newest))
    for item, mismatch, whole in zip(stale, *apart, strict=True):
        sums = {"lag_mismatch": mismatch.sums["abs_d"], "lag_mismatch2": mismatch.sums["d2"],
                "lag_total": whole.sums["abs_d"], "lag_total2": whole.sums["d2"]}
        yield replace(item, population="stale", version=f"lag {lag}", sums={**item.sums, **sums})


def shares_by_lag(slices: Iterable[SliceStats]) -> list[dict[str, float | int | None]]:
    """How much of engine-against-newest-weights is mismatch and how much staleness: one entry a lag, then one for all (lag None).

    nats: mean |d| of mismatch, staleness and both together, on the same tokens. The shares are of the mean d² and add up to 1;
    one is negative where mismatch and staleness point in opposite directions.
    """
    groups: dict[int | None, list[SliceStats]] = {}
    for item in slices:
        if item.population == "stale" and item.sums.get("lag_total2"):
            lag = int((item.version or "").removeprefix("lag ") or 0)
            groups.setdefault(lag, []).append(item)
    everything = [item for items in groups.values() for item in items]
    found: list[dict[str, float | int | None]] = []
    for lag, items in [*sorted(groups.items()), *([(None, everything)] if everything else [])]:
        values = metrics(total(items, population="stale"))
        found.append({"lag": lag, "tokens": int(values["n_tokens"]), "mismatch_nats": values["lag_mismatch_abs_d"],
                      "staleness_nats": values["mean_abs_d"], "total_nats": values["lag_total_abs_d"],
                      "mismatch_share": values["mismatch_share"], "staleness_share": values["staleness_share"]})
    return found


def needed_later(shadow: Score) -> dict[str, np.ndarray]:
    """The views `late` reads; the others need not be kept in memory until the trainer speaks."""
    return {name: values for name, values in shadow.views.items() if name == "expected"}


def learnt_from(rollout: Rollout) -> bool:
    """Is it known that the trainer takes this rollout, or at least did it tell its mask or logprobs, and not drop it?"""
    if rollout.dropped or rollout.traffic in ("eval", "judge", "warmup", "canary"):
        return False
    return rollout.dropped is False or rollout.loss_mask_T is not None or rollout.trainer_logprobs_T is not None


def _slices(rollout: Rollout, score: Score, config: SignalsConfig, population: str) -> Iterator[SliceStats]:
    for item in slice_stats(rollout, score, limits=config.limits()):
        yield replace(item, population=population)
