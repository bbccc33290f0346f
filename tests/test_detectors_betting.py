"""Betting explanations: bounded, and not above zero on average while the engine is healthy."""

from dataclasses import replace

import numpy as np
import pytest

from collector.errors import InputError
from collector.records import Rollout, Score, WeightSpan
from detectors import betting
from detectors.config import DetectorsConfig
from detectors.contexts import Contexts
from detectors.gains import rollout_gains

CONFIG = DetectorsConfig()
DELTA, SCALE = CONFIG.dead_band_nats, CONFIG.bet_scale_nats
T = 0.7


def bet(e: object, h: object, f: object) -> float | None:
    return betting.bet(np.array(e), np.array(h), np.array(f), dead_band=DELTA, scale=SCALE)


def scored(e: list[float], views: dict[str, list[float]], mask: list[bool] | None = None) -> tuple[Rollout, Score]:
    n = len(e)
    rollout = Rollout(
        request_id="r", prompt_tokens_P=np.array([1], np.int32), completion_tokens_T=np.arange(n, dtype=np.int32),
        engine_logprobs_T=np.array(e, np.float32), sampled_mask_T=np.ones(n, bool),
    )
    arrays = {name: np.array(values, np.float32) for name, values in views.items()}
    return rollout, Score(request_id="r", views=arrays, scored_mask_T=None if mask is None else np.array(mask))


def test_the_bet_is_the_weighted_difference_of_the_two_errors_less_the_dead_band() -> None:
    assert bet([-1.0], [-1.5], [-1.0]) == pytest.approx((0.5 - DELTA) / 0.5)
    assert bet([-1.0], [-1.0], [-1.1]) == pytest.approx((-0.1 - DELTA) / SCALE), "little to gain, little to lose"
    assert bet([-1.0, -2.0], [-1.5, -2.2], [-1.0, -1.9]) == pytest.approx((0.5 - DELTA + 0.2 - 0.1 - DELTA) / 0.8)


def test_tokens_on_which_the_predictions_agree_are_left_out() -> None:
    assert bet([-1.0, -3.0], [-1.5, -2.0], [-1.0, -2.0 - 4 * DELTA]) == bet([-1.0], [-1.5], [-1.0])
    assert bet([-1.0], [-2.0], [-2.0]) is None and bet([-1.0], [-2.0], [-2.0 - 4 * DELTA]) is None


def test_one_token_counts_for_one_nat_at_most() -> None:
    assert bet([-9.0, -1.0], [-1.0, -1.5], [-9.0, -1.0]) == pytest.approx((1 - DELTA / 8 + 0.5 - DELTA) / 1.5)


def test_the_bet_stays_within_its_bounds_for_any_numbers() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        e, h, f = (rng.choice([np.nan, -np.inf, np.inf, -0.0, -1e-9, -0.03, -0.06, -3.0, -1e3], size=5) for _ in range(3))
        g = bet(e, h, f)
        assert g is None or -1.2 - 1e-9 <= g <= 1
        assert g is None or all(1 + fraction * g > 0 for fraction in CONFIG.bet_fractions)


def test_unscored_tokens_are_left_out_and_missing_engine_logprobs_count_as_the_worst() -> None:
    assert bet([-1.0, -9.0], [-1.5, np.nan], [-1.0, -1.0]) == bet([-1.0], [-1.5], [-1.0])
    assert bet([np.nan], [-1.5], [-1.0]) == pytest.approx((-0.5 - DELTA) / 0.5)
    assert bet([-1.0], [-np.inf], [-1.0]) is None


def test_a_token_the_explanation_calls_impossible_speaks_against_it() -> None:
    assert bet([-1.0], [-1.0], [-np.inf]) == -1.0
    assert bet([-1.0, -1.0], [-1.0, -1.5], [-np.inf, -1.0]) == pytest.approx((-1 + 0.5 - DELTA) / 1.5)


def test_a_rollout_bets_once_for_every_nat_its_predictions_differ_by() -> None:
    """Fifty tokens .09 nats apart: 4.5 nats, four blocks; the last takes the rest. Every block is the bet on its own tokens."""
    h = np.full(50, -1.5)
    f, e = h + 0.09, h + 0.03 * np.random.default_rng(5).normal(size=50)
    found = betting.bets(e, h, f, dead_band=DELTA, scale=SCALE)
    cuts = [0, 12, 23, 34, 50]
    assert found == pytest.approx([bet(e[a:b], h[a:b], f[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)])
    assert betting.bets(e[:10], h[:10], f[:10], dead_band=DELTA, scale=SCALE) == pytest.approx([bet(e[:10], h[:10], f[:10])])
    assert betting.bets(h, h, h, dead_band=DELTA, scale=SCALE).size == 0


def test_a_repeated_answer_of_a_group_bets_once() -> None:
    """Same prompt, version and words: the same number with the same rounding error. Other words: a bet from there on."""
    seen = Contexts()
    first, score = scored([-1.0, -1.0], {"expected": [-1.5, -1.5], "raw": [-1.0, -1.0]})
    second = replace(first, request_id="s", completion_tokens_T=np.array([0, 7], np.int32))
    fresh = [seen.fresh(one) for one in (first, first, second)]
    assert [mask.tolist() for mask in fresh] == [[True, True], [False, False], [False, True]]
    assert rollout_gains(first, score, CONFIG, fresh_T=fresh[1]) == {}
    for other in (replace(first, prompt_tokens_P=np.array([2], np.int32)),
                  replace(first, weight_versions=(WeightSpan(start=0, end=2, version="8"),))):
        assert seen.fresh(other).all(), "another prompt or other weights: another measurement"


def test_each_explanation_and_fraction_is_a_stream_named_by_its_cause() -> None:
    rollout, score = scored([-1.0], {"expected": [-1.5], "raw": [-1.0], "temperature:0.8": [-1.4], "entropy_of_nothing": [-1.0]})
    gains = rollout_gains(rollout, score, CONFIG)
    assert set(gains) == {
        "explain:raw_logprobs:0.3", "explain:raw_logprobs:0.8", "explain:temperature:0.8:0.3", "explain:temperature:0.8:0.8",
    }
    assert gains["explain:raw_logprobs:0.3"] == pytest.approx(np.log1p(0.3 * (0.5 - DELTA) / 0.5))


def test_variants_of_stale_prefix_cache_keep_their_names() -> None:
    rollout, score = scored([-1.0], {"expected": [-1.5], "stale_prefix_cache:oldest": [-1.0], "stale_weights": [-1.0]})
    assert {name.rpartition(":")[0] for name in rollout_gains(rollout, score, CONFIG)} == {
        "explain:stale_prefix_cache:oldest", "explain:stale_weights",
    }


def test_tokens_without_a_loaded_version_are_left_out() -> None:
    rollout, score = scored([-1.0, -5.0], {"expected": [-1.5, -1.0], "raw": [-1.0, -1.0]}, mask=[True, False])
    alone, alone_score = scored([-1.0], {"expected": [-1.5], "raw": [-1.0]})
    assert rollout_gains(rollout, score, CONFIG) == rollout_gains(alone, alone_score, CONFIG)


def test_a_view_of_another_length_is_refused() -> None:
    rollout, score = scored([-1.0, -2.0], {"expected": [-1.5, -1.0], "raw": [-1.0]})
    with pytest.raises(InputError, match=r"views\[raw\]"):
        rollout_gains(rollout, score, CONFIG)


def log_softmax(logits_N_V: np.ndarray) -> np.ndarray:
    return logits_N_V - np.logaddexp.reduce(logits_N_V, axis=1, keepdims=True)


def noisy_engine_bets(explanation: str, *, sigma: float, sharpness: float, raw_engine: bool = False) -> np.ndarray:
    """g of 250 rollouts of 12 tokens; the engine samples from, and reports, logits with noise of `sigma` nats."""
    rng = np.random.default_rng(7)
    rollouts, tokens, vocabulary = 250, 12, 100
    logits = rng.normal(size=(rollouts * tokens, vocabulary)) * sharpness
    engine = logits + T * sigma * rng.normal(size=logits.shape)
    sampler = log_softmax(engine / T)
    chosen = (np.cumsum(np.exp(sampler), axis=1) > rng.random((len(logits), 1))).argmax(axis=1)
    predictions = {
        "raw": log_softmax(logits), "temperature": log_softmax(logits / 0.75),
        "stale_weights": log_softmax((logits + 0.03 * rng.normal(size=logits.shape)) / T),
    }
    rows = np.arange(len(logits))
    e = (log_softmax(engine) if raw_engine else sampler)[rows, chosen]
    h, f = log_softmax(logits / T)[rows, chosen], predictions[explanation][rows, chosen]
    shaped = (x.reshape(rollouts, tokens) for x in (e, h, f))
    return np.array([g for row in zip(*shaped, strict=True) if (g := bet(*row)) is not None])


@pytest.mark.statistical
@pytest.mark.parametrize("explanation", ["raw", "temperature", "stale_weights"])
@pytest.mark.parametrize(("sigma", "sharpness"), [(0.0, 3.0), (0.03, 1.0), (0.03, 3.0), (0.07, 3.0)])
def test_the_bets_lose_on_average_when_tokens_come_from_a_noisy_healthy_engine(
    explanation: str, sigma: float, sharpness: float
) -> None:
    g = noisy_engine_bets(explanation, sigma=sigma, sharpness=sharpness)
    assert g.mean() + 3 * g.std() / np.sqrt(g.size) < 0
    for fraction in CONFIG.bet_fractions:
        assert (1 + fraction * g).mean() < 1


@pytest.mark.statistical
def test_a_median_shift_of_the_dead_band_in_the_explanations_favour_still_earns_nothing() -> None:
    rng = np.random.default_rng(3)
    h = np.full((2000, 12), -2.0)
    for distance in (0.03, 0.1, 0.5):
        e = h + DELTA + 0.05 * rng.standard_t(3, size=h.shape)
        g = np.array([bet(*row) for row in zip(e, h, h + distance, strict=True)])
        assert g.mean() - 3 * g.std() / np.sqrt(g.size) <= 0


@pytest.mark.statistical
@pytest.mark.parametrize("explanation", ["raw", "temperature", "stale_weights"])
def test_the_e_values_of_whole_rollouts_stay_at_most_one_when_they_bet_block_by_block(explanation: str) -> None:
    """The product over the blocks of a rollout of 60 tokens, from a noisy healthy engine: a bet that pays only now and then shows here."""
    rng = np.random.default_rng(17)
    e_values = {fraction: [] for fraction in CONFIG.bet_fractions}
    for _ in range(400):
        logits = rng.normal(size=(60, 50)) * 2.0
        engine = log_softmax((logits + T * 0.03 * rng.normal(size=logits.shape)) / T)
        chosen = (np.cumsum(np.exp(engine), axis=1) > rng.random((60, 1))).argmax(axis=1)
        other = {"raw": logits, "temperature": logits / 0.8, "stale_weights": (logits + 0.1 * rng.normal(size=logits.shape)) / T}[explanation]
        rows = np.arange(60)
        g = betting.bets(engine[rows, chosen], log_softmax(logits / T)[rows, chosen], log_softmax(other)[rows, chosen], dead_band=DELTA, scale=SCALE)
        for fraction, found in e_values.items():
            found.append(np.log1p(fraction * g).sum())
    for found in e_values.values():
        assert np.exp(found).mean() + 3 * np.exp(found).std() / np.sqrt(len(found)) < 1


@pytest.mark.statistical
def test_the_true_explanation_earns_a_third_of_a_nat_a_rollout() -> None:
    g = noisy_engine_bets("raw", sigma=0.03, sharpness=3.0, raw_engine=True)
    assert np.log1p(CONFIG.bet_fractions[-1] * g).mean() > 1 / 3
