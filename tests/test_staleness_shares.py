"""Mismatch and staleness in one difference: their shares, per lag, add up to the whole."""

from __future__ import annotations

import numpy as np
import pytest

from collector import populations, signals
from collector.config import SignalsConfig
from collector.records import Rollout, Score
from klaxon.commands.status import _stale

P, GENERATING = -1.0, -1.0


def scored(name: str, *, mismatch: np.ndarray, stale: np.ndarray, lag: int) -> tuple[Rollout, Score]:
    size = mismatch.size
    engine = np.full(size, P, np.float32)
    rollout = Rollout(request_id=name, prompt_tokens_P=np.array([1], np.int32), completion_tokens_T=np.zeros(size, np.int32),
                      engine_logprobs_T=engine, sampled_mask_T=np.ones(size, bool))
    generating = (engine + mismatch).astype(np.float32)
    views = {"expected": generating, f"newest:{lag}": (generating + stale).astype(np.float32)}
    return rollout, Score(request_id=name, views=views, source="shadow")


def slices_of(*pairs: tuple[Rollout, Score]):
    return signals.merge(item for pair in pairs for item in populations.slices_of(*pair, SignalsConfig()))


def test_shares_are_those_of_the_tokens_and_add_up_to_one() -> None:
    rng = np.random.default_rng(3)
    m, s = rng.normal(0, 0.02, 2000), rng.normal(0, 0.1, 2000)
    lag, everything = populations.shares_by_lag(slices_of(scored("a", mismatch=m, stale=s, lag=2)))
    t = m + s
    assert (lag["lag"], everything["lag"], lag["tokens"]) == (2, None, 2000)
    assert lag["mismatch_nats"] == pytest.approx(abs(m).mean(), rel=1e-4) and lag["total_nats"] == pytest.approx(abs(t).mean(), rel=1e-4)
    assert lag["staleness_nats"] == pytest.approx(abs(s).mean(), rel=1e-4)
    assert lag["staleness_share"] == pytest.approx((s * t).mean() / (t * t).mean(), rel=1e-4) and lag["staleness_share"] > 0.9
    assert lag["mismatch_share"] + lag["staleness_share"] == pytest.approx(1)


def test_a_lag_is_a_line_and_older_weights_weigh_more() -> None:
    rng = np.random.default_rng(4)
    pairs = [scored(f"r{lag}", mismatch=rng.normal(0, 0.05, 800), stale=rng.normal(0, 0.02 * lag, 800), lag=lag) for lag in (4, 1)]
    found = populations.shares_by_lag(slices_of(*pairs))
    assert [one["lag"] for one in found] == [1, 4, None] and found[2]["tokens"] == 1600
    assert found[0]["staleness_share"] < found[2]["staleness_share"] < found[1]["staleness_share"]
    lines = _stale(found)
    assert [name for name, _ in lines] == ["stale, 1 behind", "stale, 4 behind", "stale, all lags"] and "%" in lines[0][1]


def test_tokens_without_all_three_are_left_out_and_no_staleness_is_no_share() -> None:
    rollout, score = scored("a", mismatch=np.full(4, 0.1), stale=np.full(4, 0.1), lag=1)
    rollout.engine_logprobs_T[0] = np.nan
    score.views["newest:1"][1] = -np.inf
    (lag, _) = populations.shares_by_lag(slices_of((rollout, score)))
    assert lag["tokens"] == 2 and lag["mismatch_share"] == pytest.approx(0.5, rel=1e-5)
    assert populations.shares_by_lag(slices_of(scored("b", mismatch=np.zeros(3), stale=np.zeros(3), lag=1))) == []
    served = signals.metrics(signals.total(slices_of((rollout, score))))
    assert np.isnan(served["staleness_share"]) and np.isnan(served["lag_total_abs_d"])
