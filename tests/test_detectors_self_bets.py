"""Self-bets: exact under the null, blind where they say so."""

from dataclasses import replace

import numpy as np
import pytest

from collector.records import Rollout, Sampling
from detectors import self_bets
from detectors.config import DetectorsConfig
from detectors.gains import rollout_gains

CONFIG = DetectorsConfig()


def rollout(tokens: list[int], tops: list[list[tuple[int, float]] | None], **fields: object) -> Rollout:
    n = len(tokens)
    made = Rollout(
        request_id="r", prompt_tokens_P=np.array([1], np.int32), completion_tokens_T=np.array(tokens, np.int32),
        engine_logprobs_T=np.full(n, -0.5, np.float32), sampled_mask_T=np.ones(n, bool),
        top_tokens=tuple(None if top is None else np.array([t for t, _ in top], np.int32) for top in tops),
        top_logprobs=tuple(None if top is None else np.array([p for _, p in top], np.float32) for top in tops),
    )
    return replace(made, **fields)


def test_a_hit_and_a_miss_gain_the_likelihood_ratio_of_the_tilted_coin() -> None:
    p = np.float64(np.float32(np.log(0.5)))
    both = rollout([7, 9], [[(7, p), (8, -3.0)], [(7, p), (9, -3.0)]])
    tilted = 0.5 * np.e**0.3 / (0.5 + 0.5 * np.e**0.3)
    expected = np.log(tilted / 0.5) + np.log((1 - tilted) / 0.5)
    assert self_bets.gains(both, (0.3,)) == {"self_bet:+0.3": pytest.approx(expected, abs=1e-6)}


def test_every_tilt_is_an_e_value_for_every_reported_probability() -> None:
    for p in (1e-6, 0.3, 0.999, 1.0):
        for tilt in CONFIG.self_bet_tilts:
            hit = self_bets.gains(rollout([7], [[(7, np.log(p)), (8, -20.0)]]), (tilt,))[self_bets.stream(tilt)]
            missed = self_bets.gains(rollout([8], [[(7, np.log(p)), (8, -20.0)]]), (tilt,))[self_bets.stream(tilt)]
            if p > 1e-5:
                assert p * np.exp(hit) + (1 - p) * np.exp(missed) == pytest.approx(1.0, abs=1e-6)
            assert max(abs(hit), abs(missed)) <= abs(tilt) + 1e-9


def test_a_reported_probability_of_one_gains_nothing_when_hit_and_loses_when_missed() -> None:
    assert self_bets.gains(rollout([7], [[(7, 0.0), (8, -30.0)]]), (0.3,))["self_bet:+0.3"] == pytest.approx(0.0, abs=1e-12)
    assert self_bets.gains(rollout([8], [[(7, 0.0), (8, -30.0)]]), (0.3,))["self_bet:+0.3"] == pytest.approx(-0.3)


def test_tied_tokens_are_left_out_whatever_was_sampled() -> None:
    for token in (7, 8, 9):
        assert self_bets.gains(rollout([token], [[(7, -1.0), (8, -1.0), (9, -2.0)]]), (0.3,)) == {}


def test_with_one_reported_top_token_a_tie_means_the_other_token_is_the_top() -> None:
    p_N, hit_N = self_bets.top_one(rollout([7, 8], [[(7, -1.0)], [(8, -1.0), (7, -1.0)]]))
    assert hit_N.tolist() == [True, False]
    assert p_N == pytest.approx([np.exp(-1), np.exp(-1)])


def test_only_sampled_tokens_with_a_finite_top_probability_bet() -> None:
    made = rollout(
        [7, 7, 7, 7], [[(7, -0.1), (8, -3.0)], None, [(7, np.nan), (8, -3.0)], [(7, -0.1), (8, -np.inf)]],
        sampled_mask_T=np.array([False, True, True, True]),
    )
    p_N, hit_N = self_bets.top_one(made)
    assert p_N == pytest.approx([np.exp(-0.1)])
    assert hit_N.tolist() == [True]


@pytest.mark.parametrize("side", ["sampling", "engine_sampling"])
def test_greedy_rollouts_do_not_bet_and_say_so(side: str) -> None:
    greedy = rollout([7], [[(7, -0.5), (8, -1.0)]], **{side: Sampling(temperature=0.0)})
    assert self_bets.gains(greedy, CONFIG.self_bet_tilts) == {}
    assert "temperature 0" in (self_bets.why_not(greedy) or "")


def test_without_top_logprobs_nothing_is_bet_and_the_flag_to_set_is_named() -> None:
    assert self_bets.gains(rollout([7], []), CONFIG.self_bet_tilts) == {}
    assert "logprobs >= 1" in (self_bets.why_not(rollout([7], [])) or "")


def test_hint_coin_rollouts_do_not_bet() -> None:
    made = rollout([7], [[(7, -0.5), (8, -1.0)]])
    assert set(rollout_gains(made, None, CONFIG)) == {self_bets.stream(tilt) for tilt in CONFIG.self_bet_tilts}
    assert rollout_gains(replace(made, base_coin=False), None, CONFIG) == {}
