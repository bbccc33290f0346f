"""The shape of a mismatch: which tokens, rollouts, positions and batches carry it, as plain words a signature can ask for.

Question.    Not how large the mismatch is, but how it is spread. d = log q − log p in nats, of tokens both sides have.
Affected.    A rollout whose mean |d| is above AFFECTED times the clean rollouts' median, or above `band_nats` where no clean
             rollout is at hand. Everything but growth and period is read off the tokens since the change.
Words.       SHAPES and FEATURES below. A word is said only where enough tokens, rollouts or batches could have refuted it;
             what is not said is unknown or absent, and a signature that needs it does not match.
When it lies. Words are thresholds on ratios (each is named below), without an error statement: a resemblance, never a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from collector.records import Rollout, Score
from diagnosis.noise import SHIFT_RATIO, WORST_TENTH_TOKENS
from diagnosis.shape_facts import FACT_FEATURES, facts_of

Seen = tuple[int, Rollout, Score | None]
Shape = Literal["shift", "tail", "position", "growth", "step", "subset", "periodic"]
SHAPES: tuple[str, ...] = get_args(Shape)

FEATURES: dict[str, str] = {
    "engine_surer": "the engine gives its tokens more probability than the trainer (mean d below 0)",
    "trainer_surer": "the trainer gives the tokens more probability than the engine (mean d above 0)",
    "zero_mean": "d leans to neither side",
    "every_rollout": "at least 80 % of the rollouts are affected",
    "few_rollouts": "at most a quarter of the rollouts are affected",
    "heavy_tail": "the worst tenth of the tokens carries 70 % of Σ|d|",
    "late_positions": "mean |d| of the last quarter of positions is at least twice that of the first",
    "early_positions": "mean |d| of the first quarter of positions is at least twice that of the last",
    "last_token": "mean |d| of the last tokens is at least five times that of the others",
    "repeated_tokens": "mean |d| of tokens that occurred before in the completion is at least twice that of new ones",
    "one_replica": "one replica's mean |d| is at least twice that of the others together, or the alarm names one",
    "whole_fleet": "several replicas, and none stands out",
    "cache_hits": "mean |d| of rollouts that hit the prefix cache is at least twice that of the others",
    "growing": "mean |d| a batch rises from batch to batch, by half or more",
    "sharp": "mean |d| at least doubled at the change and does not grow from then on",
    "at_update": "the change begins with a new weight version",
    "within_version": "the change begins under the weight version that was clean before",
    "periodic": "mean |d| a batch comes and goes with a fixed period",
    **FACT_FEATURES,
}
"""Feature → what it means; a signature may name no other."""

AFFECTED, RATIO, LAST_RATIO = 3.0, 2.0, 5.0
ALL_SHARE, FEW_SHARE = 0.8, 0.25
MIN_TOKENS, MIN_ROLLOUTS, MIN_POINTS, MIN_PERIODIC = 100, 8, 6, 18
GROWN, RISING, SAME_PHASE = 1.5, 0.6, 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentShape:
    """What is known of an incident's mismatch. `numbers`: what the words were read off, for the evidence."""

    shapes: frozenset[str] = frozenset()  # of SHAPES
    features: frozenset[str] = frozenset()  # of FEATURES
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flat:
    """Tokens [N] of R rollouts."""

    rollouts: tuple[Rollout, ...]  # [R]
    t_R: np.ndarray
    d_N: np.ndarray
    owner_N: np.ndarray  # index into rollouts
    position_N: np.ndarray  # absolute: prompt + index in the completion
    last_N: np.ndarray  # bool: the last sampled token of its rollout
    repeat_N: np.ndarray  # bool: the token occurred before in the completion

    @property
    def level_R(self) -> np.ndarray:
        """Mean |d| a rollout, nats."""
        return np.bincount(self.owner_N, np.abs(self.d_N), len(self.rollouts)) / np.bincount(self.owner_N, minlength=len(self.rollouts))


def shape_of(records: Sequence[Seen], *, change_t: tuple[int, int] | None = None, slice_: Mapping[str, str] | None = None,
             band_nats: float = 0.05) -> IncidentShape:
    """The shape of these records' mismatch. `change_t` None: nothing is known to be clean; `slice_`: where the alarm points."""
    clean = _flat([record for record in records if change_t is not None and record[0] < change_t[0]])
    wrong = _flat([record for record in records if change_t is None or record[0] >= change_t[0]])
    said = {name for name in facts_of([rollout for t, rollout, _ in records if change_t is None or t >= change_t[0]],
                                      [score for t, _, score in records if change_t is None or t >= change_t[0]])}
    numbers: dict[str, float] = {}
    if wrong is not None:
        said |= _spread(wrong, numbers) | _rollouts(wrong, clean, band_nats, numbers) | _places(wrong) | _time(wrong, clean)
    if (slice_ or {}).get("replica"):
        said = (said - {"whole_fleet"}) | {"one_replica"}
    if (slice_ or {}).get("position") not in (None, "0-1k"):
        said |= {"late_positions"}
    return IncidentShape(shapes=frozenset(_shapes(said)), features=frozenset(said), numbers=numbers)


def _shapes(said: set[str]) -> set[str]:
    means: dict[str, tuple[str, ...]] = {
        "shift": ("engine_surer", "trainer_surer"), "tail": ("heavy_tail", "confident_disagreement"),
        "position": ("late_positions", "early_positions", "last_token", "repeated_tokens"), "growth": ("growing",), "step": ("sharp",),
        "subset": ("few_rollouts", "one_replica", "cache_hits", "non_finite", "exact_zeros"), "periodic": ("periodic",)}
    return {shape for shape, words in means.items() if said.intersection(words)}


def _flat(records: Sequence[Seen]) -> _Flat | None:
    kept = []
    for t, rollout, score in records:
        if score is None or score.views["expected"].size != rollout.n_tokens:
            continue
        d_T = score.views["expected"].astype(np.float64) - rollout.engine_logprobs_T.astype(np.float64)
        use_T = rollout.sampled_mask_T & np.isfinite(d_T) & (True if score.scored_mask_T is None else score.scored_mask_T)
        if use_T.any():
            kept.append((t, rollout, d_T, use_T))
    if not kept:
        return None
    return _Flat(
        rollouts=tuple(rollout for _, rollout, _, _ in kept), t_R=np.array([t for t, *_ in kept]),
        d_N=np.concatenate([d_T[use_T] for *_, d_T, use_T in kept]),
        owner_N=np.repeat(np.arange(len(kept)), [int(use_T.sum()) for *_, use_T in kept]),
        position_N=np.concatenate([rollout.prompt_tokens_P.size + np.flatnonzero(use_T) for _, rollout, _, use_T in kept]),
        last_N=np.concatenate([np.flatnonzero(use_T) == np.flatnonzero(rollout.sampled_mask_T)[-1] for _, rollout, _, use_T in kept]),
        repeat_N=np.concatenate([_repeats(rollout.completion_tokens_T)[use_T] for _, rollout, _, use_T in kept]))


def _repeats(tokens_T: np.ndarray) -> np.ndarray:
    """bool [T]: has this token occurred before?"""
    seen_T = np.ones(tokens_T.size, dtype=bool)
    seen_T[np.unique(tokens_T, return_index=True)[1]] = False
    return seen_T


def _spread(flat: _Flat, numbers: dict[str, float]) -> set[str]:
    abs_N = np.abs(flat.d_N)
    if abs_N.size < MIN_TOKENS or not abs_N.sum():
        return set()
    mean, level = float(flat.d_N.mean()), float(abs_N.mean())
    worst = np.sort(abs_N)[::-1][:max(1, abs_N.size // 10)]
    numbers |= {"mean_d": mean, "mean_abs_d": level, "tail_share": float(worst.sum() / abs_N.sum())}
    said = {"zero_mean"} if abs(mean) < SHIFT_RATIO * level else {"engine_surer" if mean < 0 else "trainer_surer"}
    return said | ({"heavy_tail"} if numbers["tail_share"] >= WORST_TENTH_TOKENS else set())


def _rollouts(wrong: _Flat, clean: _Flat | None, band_nats: float, numbers: dict[str, float]) -> set[str]:
    if len(wrong.rollouts) < MIN_ROLLOUTS:
        return set()
    limit = AFFECTED * float(np.median(clean.level_R)) if clean is not None else band_nats
    share = numbers["affected_share"] = float((wrong.level_R > limit).mean())
    return {"every_rollout"} if share >= ALL_SHARE else {"few_rollouts"} if 0 < share <= FEW_SHARE else set()


def _places(flat: _Flat) -> set[str]:
    abs_N, said = np.abs(flat.d_N), set()

    def larger(in_N: np.ndarray, out_N: np.ndarray, ratio: float = RATIO, least: int = MIN_TOKENS) -> bool:
        return min(in_N.sum(), out_N.sum()) >= least and bool(abs_N[in_N].mean() >= ratio * abs_N[out_N].mean() > 0)

    low, high = np.quantile(flat.position_N, [0.25, 0.75])
    first_N, fourth_N = flat.position_N <= low, flat.position_N >= high
    words: dict[str, Callable[[], bool]] = {
        "late_positions": lambda: larger(fourth_N, first_N), "early_positions": lambda: larger(first_N, fourth_N),
        "last_token": lambda: larger(flat.last_N, ~flat.last_N, LAST_RATIO, MIN_ROLLOUTS),
        "repeated_tokens": lambda: larger(flat.repeat_N, ~flat.repeat_N)}
    said |= {word for word, holds in words.items() if holds()}
    cached_R = np.array([bool(rollout.cached_prompt_tokens) for rollout in flat.rollouts])
    known_R = np.array([rollout.cached_prompt_tokens is not None for rollout in flat.rollouts])
    if larger((cached_R & known_R)[flat.owner_N], (~cached_R & known_R)[flat.owner_N]):
        said.add("cache_hits")
    names_R = np.array([rollout.replica for rollout in flat.rollouts])
    names = np.unique(names_R)
    if names.size > 1:
        alone = [larger((names_R == name)[flat.owner_N], (names_R != name)[flat.owner_N]) for name in names]
        said.add("one_replica" if any(alone) else "whole_fleet")
    return said


def _time(wrong: _Flat, clean: _Flat | None) -> set[str]:
    said = set()
    after, before = _by_batch(wrong), _by_batch(clean) if clean is not None else np.empty(0)
    third = max(1, after.size // 3)
    growing = after.size >= MIN_POINTS and _rank_correlation(after) >= RISING and after[-third:].mean() >= GROWN * after[:third].mean()
    if growing:
        said.add("growing")
    elif clean is not None and after[:third].mean() >= RATIO * before.mean():
        said.add("sharp")
    if clean is not None:
        old = {rollout.version for rollout in clean.rollouts}
        new = wrong.rollouts[int(np.argmin(wrong.t_R))].version
        if new is not None:
            said.add("within_version" if new in old else "at_update")
    if _periodic(np.concatenate([before, after])):
        said.add("periodic")
    return said


def _by_batch(flat: _Flat) -> np.ndarray:
    """Mean |d| of every batch that has tokens, in order."""
    _, owner_R = np.unique(flat.t_R, return_inverse=True)
    batch_N = owner_R[flat.owner_N]
    return np.bincount(batch_N, np.abs(flat.d_N)) / np.bincount(batch_N)


def _rank_correlation(series: np.ndarray) -> float:
    """Spearman's, with time."""
    ranks = np.argsort(np.argsort(series))
    return float(np.corrcoef(ranks, np.arange(series.size))[0, 1])


def _periodic(series: np.ndarray) -> bool:
    """Does the series, at some lag from 3 batches to a third of its length, repeat itself, and at half that lag not?"""
    if series.size < MIN_PERIODIC or not series.std():
        return False
    centred = series - series.mean()
    auto = [float(centred[lag:] @ centred[:-lag]) / float(np.linalg.norm(centred[lag:]) * np.linalg.norm(centred[:-lag]) or np.inf)
            for lag in range(1, series.size // 3 + 1)]
    return any(auto[lag - 1] >= SAME_PHASE and auto[lag // 2 - 1] < SAME_PHASE / 2 for lag in range(3, len(auto) + 1))
