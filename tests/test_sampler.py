from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from collector.records import Rollout, WeightSpan
from collector.sampler import TwoCoinSampler, Usual, base_probabilities, suspicious
from collector.sources.config import SamplerConfig


def rollout(name, *, tokens=10, replica="a", logprob=-0.5, prompt=20):
    return Rollout(request_id=name, engine=replica, prompt_tokens_P=np.frombuffer(name.ljust(4 * prompt).encode(), np.int32),
                   completion_tokens_T=np.arange(tokens, dtype=np.int32), sampled_mask_T=np.ones(tokens, bool),
                   engine_logprobs_T=np.full(tokens, logprob, np.float32),
                   weight_versions=(WeightSpan(start=0, end=tokens, version="1"),))


@pytest.mark.statistical
def test_the_base_coin_keeps_what_the_budget_allows_and_says_with_which_probability():
    sampler = TwoCoinSampler(SamplerConfig(tokens_per_minute=6000, hint_probability=0))
    for i in range(1000):  # 30,000 tokens in the first minute
        sampler.draw(rollout(f"first-{i}"), now=0.0)
    draws = [sampler.draw(rollout(f"second-{i}"), now=61.0) for i in range(2000)]
    kept = [draw.rollout for draw in draws if draw.rollout is not None]
    assert {r.inclusion_probability for r in kept} == {0.2}
    assert stats.binomtest(len(kept), 2000, 0.2).pvalue > 1e-4


def test_a_small_stratum_is_kept_whole_while_a_large_one_is_thinned():
    found, unseen = base_probabilities({("a", "1", 0): 100_000, ("b", "1", 0): 500}, SamplerConfig(tokens_per_minute=10_000))
    assert found["b", "1", 0] == 1.0
    assert found["a", "1", 0] == pytest.approx(0.095)
    assert unseen == pytest.approx(0.095)


def test_the_base_coin_never_falls_below_its_floor():
    found, _ = base_probabilities({("a", None, 0): 10**9}, SamplerConfig(tokens_per_minute=1, min_probability=0.02))
    assert found["a", None, 0] == 0.02


def test_a_group_is_kept_or_left_as_a_whole_and_its_prompt_counts_once():
    sampler = TwoCoinSampler(SamplerConfig(tokens_per_minute=1500, hint_probability=0))
    for i in range(100):  # 100 groups of 8: 20 prompt and 80 completion tokens each
        for j in range(8):
            sampler.draw(replace(rollout(f"g{i}"), request_id=f"g{i}-{j}"), now=0.0)
    kept = [{sampler.draw(replace(rollout(f"h{i}"), request_id=f"h{i}-{j}"), now=61.0).base for j in range(8)} for i in range(200)]
    assert all(len(coins) == 1 for coins in kept)
    assert sampler.draw(rollout("h0"), now=61.0).rollout is None or sampler.draw(rollout("h0"), now=61.0).rollout.inclusion_probability == pytest.approx(0.15)
    assert stats.binomtest(sum(coins == {True} for coins in kept), 200, 0.15).pvalue > 1e-4


def test_the_same_request_gets_the_same_coin_on_every_replay():
    def keep():
        sampler = TwoCoinSampler(SamplerConfig(tokens_per_minute=300, hint_probability=0))
        return [sampler.draw(rollout(f"r{i}"), now=i / 2).rollout is not None for i in range(400)]
    assert keep() == keep()


def test_the_base_coin_does_not_look_at_the_tokens_or_their_logprobs():
    """Its probability must be fixed before the rollout is seen, or the self-bets lose their null."""
    sampler = TwoCoinSampler(SamplerConfig(tokens_per_minute=300, hint_probability=0))
    for i in range(100):
        sampler.draw(rollout(f"warm-{i}"), now=0.0)
    names = [f"same-{i}" for i in range(200)]
    plain = [sampler.draw(rollout(name), now=61.0).base for name in names]
    odd = [sampler.draw(rollout(name, logprob=-15.0, tokens=17), now=61.0).base for name in names]
    assert plain == odd and 0 < sum(plain) < 100


def test_a_rollout_only_the_hint_coin_keeps_is_marked_so():
    sampler = TwoCoinSampler(SamplerConfig(tokens_per_minute=1, min_probability=1e-9, hint_probability=1.0))
    for i in range(50):
        sampler.draw(rollout(f"warm-{i}"), now=0.0)
    draw = sampler.draw(rollout("odd", logprob=-12.0), now=61.0)
    assert draw.rollout is not None and not draw.rollout.base_coin and draw.hinted


def test_hints_are_loops_and_unlikely_or_missing_logprobs():
    assert not suspicious(rollout("fine"))
    assert suspicious(rollout("unlikely", logprob=-10.0))
    assert suspicious(rollout("nan", logprob=np.nan))
    looping = replace(rollout("loop", tokens=40), completion_tokens_T=np.ones(40, np.int32))
    assert suspicious(looping)
    usual = Usual(length=20, low=-12.0)
    assert not suspicious(rollout("usual", tokens=60), usual) and suspicious(rollout("long", tokens=90), usual)
    assert not suspicious(rollout("common here", logprob=-11.0), usual) and suspicious(rollout("rare even here", logprob=-13.0), usual)
    told = replace(rollout("told"), trainer_logprobs_T=np.full(10, -0.6, np.float32))
    assert not suspicious(told) and suspicious(replace(told, trainer_logprobs_T=np.full(10, -2.0, np.float32)))


def test_the_hint_coin_spends_at_most_its_share_of_the_budget():
    """Half of everything loops: the hint coin gives way, and both coins together keep to the budget."""
    sampler = TwoCoinSampler(SamplerConfig(tokens_per_minute=8000, hint_share=0.2))
    loop = np.ones(20, np.int32)
    for minute in range(3):
        made = [rollout(f"{minute}-{i}", tokens=20) for i in range(2000)]
        made = [replace(one, completion_tokens_T=loop) if i % 2 else one for i, one in enumerate(made)]
        kept = [sampler.draw(one, now=61.0 * minute) for one in made]
    hint_tokens = sum(40 for draw in kept if draw.rollout is not None and not draw.base)
    all_tokens = sum(40 for draw in kept if draw.rollout is not None)
    assert 800 < hint_tokens < 2000 and 6500 < all_tokens < 9500


def test_a_scorer_too_slow_for_its_budget_is_offered_less_until_it_keeps_up() -> None:
    sampler = TwoCoinSampler(SamplerConfig(tokens_per_minute=100_000, hint_probability=0))
    kept: dict[int, int] = {}
    for minute in range(48):
        slow = minute < 20  # 100 groups of 30 tokens arrive a minute, 900 tokens of them can be scored
        waiting = 0.0 if not slow or kept.get(minute - 1, 10**6) <= 900 and minute > 1 else 90.0
        sampler.note_wait(waiting, backlog=0)
        draws = [sampler.draw(rollout(f"{minute}-{i}"), now=60.0 * minute) for i in range(100)]
        sampler.note_wait(waiting, backlog=0)
        kept[minute] = sum(30 for draw in draws if draw.rollout is not None)
        assert {draw.rollout.inclusion_probability for draw in draws if draw.rollout} <= {sampler._probability.get(("a", "1", 0), 1.0)}
    assert kept[0] == 3000 and max(kept[minute] for minute in range(8, 20)) < 2000, "every minute late takes a part away"
    assert kept[47] == 3000 and sampler.limit is None, "and minutes in time give it back"


def test_a_backlog_counts_as_offered() -> None:
    sampler = TwoCoinSampler(SamplerConfig(tokens_per_minute=100_000, hint_probability=0))
    for i in range(50):
        sampler.draw(rollout(f"a{i}"), now=0.0)
    sampler.note_wait(120.0, backlog=450)
    sampler.draw(rollout("b"), now=61.0)
    assert sampler.limit == pytest.approx(0.7 * 1500)
    assert sampler._probability["a", "1", 0] == pytest.approx(1050 / 15_000, abs=1e-3), "ten times as much is on its way"
