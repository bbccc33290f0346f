"""Signals against a float64 reference written out naively, and their mergeability."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector import signals
from collector.limits import Limits
from collector.records import Rollout, Score, WeightSpan


def make(engine, expected, *, prompt=10, mask=None, spans=(), request_id="r", cached=None, entropy=None, replica="a"):
    engine, expected = np.asarray(engine, np.float32), np.asarray(expected, np.float32)
    sampled = np.ones(engine.size, bool) if mask is None else np.asarray(mask, bool)
    rollout = Rollout(
        request_id=request_id, engine=replica, prompt_tokens_P=np.zeros(prompt, np.int32),
        completion_tokens_T=np.zeros(engine.size, np.int32), engine_logprobs_T=engine, sampled_mask_T=sampled,
        weight_versions=tuple(WeightSpan(start=s, end=e, version=v) for s, e, v in spans), cached_prompt_tokens=cached)
    return rollout, Score(request_id=request_id, views={"expected": expected}, entropy_T=entropy)


def naive(p, q):
    """Every signal of one rollout by its textbook formula, in float64."""
    p, q = np.asarray(p, np.float32).astype(float), np.asarray(q, np.float32).astype(float)
    d = q - p
    w = np.exp(d)
    mean_d = d.mean()
    return {
        "mean_d": mean_d, "mean_abs_d": np.abs(d).mean(), "max_abs_d": np.abs(d).max(), "k1": -mean_d,
        "k2": (d**2 / 2).mean(), "k3": (np.expm1(d) - d).mean(), "clip_rate": ((w < 0.8) | (w > 1.2)).mean(),
        "clip_rate_low": (w < 0.8).mean(), "clip_rate_high": (w > 1.2).mean(),
        "gspo_clip_rate": float(not 0.8 <= math.exp(mean_d) <= 1.2), "ess": w.sum() ** 2 / (d.size * (w**2).sum()),
        "chi2": (w**2).mean() - 1, "tme": np.exp(np.abs(d)).mean(), "ppl_ratio": math.exp(-mean_d),
        "pearson": np.corrcoef(np.exp(p), np.exp(q))[0, 1], "mean_engine_logprob": p.mean(),
    }


def test_every_signal_equals_its_textbook_formula() -> None:
    rng = np.random.default_rng(7)
    p = -rng.exponential(1.0, 400)
    q = np.minimum(p + rng.normal(0, 0.2, 400), -1e-7)
    got = signals.metrics(signals.total(signals.slice_stats(*make(p, q))))
    for name, value in naive(p, q).items():
        assert got[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    d = np.abs(q.astype(np.float32).astype(float) - p.astype(np.float32).astype(float))
    assert got["p50_abs_d"] == pytest.approx(np.quantile(d, 0.5), rel=0.05)
    assert got["p99_abs_d"] == pytest.approx(np.quantile(d, 0.99), rel=0.15)


def test_k3_keeps_its_digits_for_tiny_differences() -> None:
    d = 2.0**-20
    stats = signals.total(signals.slice_stats(*make([-1.0], [-1.0 + d])))
    assert signals.metrics(stats)["k3"] == pytest.approx(d * d / 2, rel=1e-4)


def test_the_trainers_own_clip_range_is_used() -> None:
    rollout, score = make([-1.0, -1.0, -1.0], [-1.05, -0.95, -1.0])
    got = signals.metrics(signals.total(signals.slice_stats(rollout, score, limits=Limits(eps_low=0.02, eps_high=0.1))))
    assert (got["clip_rate_low"], got["clip_rate_high"]) == (pytest.approx(1 / 3), 0.0)


def test_what_cannot_be_averaged_is_counted_apart() -> None:
    engine = [math.nan, 0.0, -0.7, -1.0, -1.0, -1.0]
    expected = [-1.0, -0.5, -math.inf, math.nan, -1.1, -9.0]
    got = signals.metrics(signals.total(signals.slice_stats(*make(engine, expected, mask=[1, 1, 1, 1, 1, 0]))))
    assert {k: got[k] for k in ("n_tokens", "nonfinite", "zeros", "outside_kept", "unscored")} == {
        "n_tokens": 2, "nonfinite": 1, "zeros": 1, "outside_kept": 1, "unscored": 1}
    assert got["max_abs_d"] == pytest.approx(0.5)


def test_a_zero_from_a_kept_set_of_one_is_honest() -> None:
    assert signals.total(signals.slice_stats(*make([0.0], [-0.04]))).sums["zeros"] == 0


def test_confident_disagreement_needs_a_sure_engine_and_two_nats() -> None:
    engine = [math.log(0.6), math.log(0.6), math.log(0.4)]
    expected = [engine[0] - 2.1, engine[1] - 1.9, engine[2] - 5.0]
    assert signals.total(signals.slice_stats(*make(engine, expected))).sums["confident"] == 1


def test_huge_ratios_are_capped_counted_and_finite() -> None:
    got = signals.metrics(signals.total(signals.slice_stats(*make([-900.0, -1.0], [-1.0, -900.0]))))
    assert got["w_clipped"] == 2 and all(math.isfinite(got[k]) for k in ("k3", "ess", "chi2", "tme"))


def test_unequal_lengths_are_a_counted_fact_not_a_crash() -> None:
    rollout, score = make([-1.0, -1.0], [-1.0])
    (stats,) = signals.slice_stats(rollout, score)
    assert stats.sums["length_mismatch"] == 1 and stats.n_tokens == 0
    assert math.isnan(signals.metrics(stats)["mean_abs_d"])


def test_slices_follow_absolute_position_and_version() -> None:
    rollout, score = make([-1.0] * 8, [-1.5] * 8, prompt=1020, spans=[(0, 6, "3"), (6, 7, "4")], cached=16)
    slices = signals.merge(signals.slice_stats(rollout, score))
    assert [(s.position, s.version, s.n_tokens) for s in slices] == [
        ("0-1k", "3", 4), ("1k-4k", "3", 2), ("1k-4k", "4", 1), ("1k-4k", None, 1)]
    assert all(s.cached for s in slices)
    assert sum(s.n_sequences for s in slices) == pytest.approx(1.0)
    assert signals.metrics(signals.total(slices))["gspo_clip_rate"] == pytest.approx(1.0)


def test_public_bins_are_a_collapse_of_the_stored_ones() -> None:
    rng = np.random.default_rng(3)
    d = 10 ** rng.uniform(-7, 1.2, 500)
    stats = signals.total(signals.slice_stats(*make(np.zeros(500) - 30, d - 30)))
    exact = (np.float32(d - 30).astype(float) + 30)
    public, _ = np.histogram(np.abs(exact), np.append(signals.PUBLIC_EDGES[:-1], 1e300))
    assert signals.collapse(stats.hist_pos + stats.hist_neg).tolist() == public.tolist()


def test_standard_errors_are_clustered_by_rollout() -> None:
    """Ten rollouts whose tokens move together: the error is that of ten values, not of a thousand."""
    rng = np.random.default_rng(5)
    shifts = rng.normal(0, 0.1, 10)
    slices = [s for i, shift in enumerate(shifts)
              for s in signals.slice_stats(*make([-2.0] * 100, [-2.0 + shift] * 100, request_id=str(i)))]
    got = signals.metrics(signals.total(slices))
    assert got["mean_d_se"] == pytest.approx(shifts.std() / math.sqrt(10), rel=1e-3)


finite = st.floats(-12, -0.0001220703125, width=32)
rollouts_strategy = st.lists(
    st.tuples(st.lists(st.tuples(finite, finite), min_size=1, max_size=12), st.sampled_from(["a", "b"]),
              st.sampled_from([5, 1022]), st.sampled_from(["1", "2"])), min_size=1, max_size=8)


@settings(deadline=None, max_examples=40)
@given(rollouts_strategy, st.integers(0, 8), st.randoms(use_true_random=False))
def test_slices_merge_in_any_order_and_any_grouping(rows, cut, random) -> None:
    slices = []
    for index, (pairs, replica, prompt, version) in enumerate(rows):
        engine, expected = zip(*pairs, strict=True)
        slices += signals.slice_stats(*make(engine, expected, prompt=prompt, replica=replica, request_id=str(index),
                                            spans=[(0, len(pairs), version)]))
    shuffled = list(slices)
    random.shuffle(shuffled)
    once, other = signals.merge(slices), signals.merge(shuffled)
    twice = signals.merge(signals.merge(slices[:cut]) + signals.merge(slices[cut:]))
    for left, same, grouped in zip(once, other, twice, strict=True):
        assert left.sums == same.sums and left.n_tokens == grouped.n_tokens
        assert (left.hist_pos == grouped.hist_pos).all() and (left.hist_neg == grouped.hist_neg).all()
        for name in signals.SUMS:
            assert left.sums[name] == pytest.approx(grouped.sums[name], rel=1e-12, abs=1e-12)
        assert left.hist_pos.sum() + left.hist_neg.sum() == left.n_tokens


def test_the_trainers_logprobs_are_a_score_of_their_own() -> None:
    rollout, _ = make([-1.0, -2.0], [-1.0, -2.0])
    assert signals.trainer_score(rollout) is None
    told = Rollout(request_id="r", prompt_tokens_P=rollout.prompt_tokens_P, completion_tokens_T=rollout.completion_tokens_T,
                   engine_logprobs_T=rollout.engine_logprobs_T, sampled_mask_T=rollout.sampled_mask_T,
                   trainer_logprobs_T=np.array([-1.25, math.nan], np.float32))
    score = signals.trainer_score(told)
    assert score is not None and score.source == "trainer"
    got = signals.metrics(signals.total(signals.slice_stats(told, score)))
    assert (got["mean_d"], got["n_tokens"], got["unscored"]) == (-0.25, 1, 1)
