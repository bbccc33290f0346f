"""The false-alarm promise under the null, with every kind of rollout bet at once, and the delay after a real change.

A = 200 batches here, so that a false alarm is common enough to count. Gains come from the detectors' own formulas,
vectorised over many rollouts and checked against the per-rollout code.
"""

import numpy as np
import pytest
from scipy import stats

from collector.records import BatchStats, Rollout, Score
from detectors import betting, evaluate, self_bets
from detectors.config import DetectorsConfig
from detectors.gains import rollout_gains

CONFIG = DetectorsConfig(false_alarms="1 per 200 minutes")
A, BATCH_SECONDS = 200, 60.0
ROLLOUTS, TOKENS = 4, 12  # per batch, per rollout
DELTA, SCALE = CONFIG.dead_band_nats, CONFIG.bet_scale_nats


def simulate(rng: np.random.Generator, batches: int, *, raw_from: int | None) -> dict[str, np.ndarray]:
    """Two-token vocabulary: top-1 logit gap z, sampled at T = .7 from logits with .03 nats of noise.

    The engine reports the distribution it samples from, until batch `raw_from`, when it reports raw logprobs.
    Returns p, hit, e, h, raw and warm, each [batches, ROLLOUTS, TOKENS].
    """
    shape = (batches, ROLLOUTS, TOKENS)
    z = rng.gamma(1.5, 1.0, size=shape)
    noisy = np.abs(z + 0.03 * rng.normal(size=shape))
    hit = rng.random(shape) < 1 / (1 + np.exp(-noisy / 0.7))

    def logprob(gap: np.ndarray, temperature: float, of: np.ndarray) -> np.ndarray:
        return -np.log1p(np.exp(np.where(of, -1, 1) * gap / temperature))

    reported_at = np.full((batches, 1, 1), 0.7)
    if raw_from is not None:
        reported_at[raw_from:] = 1.0
    top = np.ones(shape, bool)
    return {
        "p": np.exp(logprob(noisy, reported_at, top)), "hit": hit, "e": logprob(noisy, reported_at, hit),
        "h": logprob(z, 0.7, hit), "raw": logprob(z, 1.0, hit), "warm": logprob(z, 0.8, hit),
    }


def stream_gains(sim: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stream → log gain of each rollout, [batches, ROLLOUTS]."""
    gains = {
        self_bets.stream(tilt): (tilt * sim["hit"] - np.log1p(sim["p"] * np.expm1(tilt))).sum(axis=-1)
        for tilt in CONFIG.self_bet_tilts
    }
    for view, values in (("raw", sim["raw"]), ("temperature:0.8", sim["warm"])):
        apart = np.abs(sim["h"] - values)
        weight = np.where(apart < betting.LEAST_DIFFERENCE * DELTA, 0.0, np.minimum(1, 1 / np.maximum(apart, 1e-12)))
        worth = weight * (np.abs(sim["e"] - sim["h"]) - np.abs(sim["e"] - values) - DELTA)
        g = worth.sum(axis=-1) / np.maximum((weight * apart).sum(axis=-1), SCALE)
        name = betting.explanation(view) or ""
        gains |= {betting.stream(name, fraction): np.log1p(fraction * g) for fraction in CONFIG.bet_fractions}
    return gains


def batches_of(gains: dict[str, np.ndarray]) -> list[BatchStats]:
    summed = {name: values.sum(axis=1) for name, values in gains.items()}
    count = len(next(iter(summed.values())))
    return [
        BatchStats(t=t, opened_at=60.0 * t, closed_at=60.0 * (t + 1), counts={"seen": ROLLOUTS},
                   gains={name: float(values[t]) for name, values in summed.items()})
        for t in range(count)
    ]


def watch(seed: int, count: int, *, raw_from: int | None = None) -> evaluate.Run:
    gains = stream_gains(simulate(np.random.default_rng(seed), count, raw_from=raw_from))
    return evaluate.run(batches_of(gains), CONFIG, batch_seconds=BATCH_SECONDS)


def test_the_simulated_gains_are_those_of_the_detectors() -> None:
    sim = simulate(np.random.default_rng(0), 1, raw_from=0)
    row = {name: values[0, 0] for name, values in sim.items()}
    top = np.log(row["p"])
    rest = np.log1p(-row["p"])
    rollout = Rollout(
        request_id="r", prompt_tokens_P=np.array([1], np.int32), completion_tokens_T=np.where(row["hit"], 0, 1).astype(np.int32),
        engine_logprobs_T=row["e"], sampled_mask_T=np.ones(TOKENS, bool),
        top_tokens=(np.array([0, 1], np.int32),) * TOKENS, top_logprobs=tuple(np.stack([top, rest], axis=1)),
    )
    score = Score(request_id="r", views={"expected": row["h"], "raw": row["raw"], "temperature:0.8": row["warm"]})
    expected = {name: float(values[0, 0]) for name, values in stream_gains(sim).items()}
    assert rollout_gains(rollout, score, CONFIG) == pytest.approx(expected)


@pytest.mark.statistical
def test_false_alarms_stay_within_the_budget_while_the_engine_is_healthy() -> None:
    runs = [watch(seed, 300) for seed in range(50)]
    alarms, promised = evaluate.false_alarms_per_period(runs, period_batches=A)
    assert promised > 50
    low, _ = stats.binomtest(alarms, round(promised * A)).proportion_ci(0.99)
    assert low <= 1 / A
    assert alarms <= promised


@pytest.mark.statistical
def test_each_stream_is_an_e_value_on_average_while_the_engine_is_healthy() -> None:
    gains = stream_gains(simulate(np.random.default_rng(99), 4000, raw_from=None))
    for name, values in gains.items():
        e = np.exp(values.ravel())
        assert e.mean() <= 1 + 3 * e.std() / np.sqrt(e.size), name


@pytest.mark.statistical
def test_a_fault_that_begins_half_way_is_paged_and_dated_within_a_few_batches() -> None:
    runs = [watch(1000 + seed, 130, raw_from=100) for seed in range(20)]
    delays = [one.delay(101) for one in runs]
    heard = [delay for delay in delays if delay is not None]
    assert len(heard) >= 16
    assert np.median(heard) <= 7
    dated = [one.drifts[0].change_t for one, delay in zip(runs, delays, strict=True) if delay is not None]
    assert np.mean([first <= 100 <= last for first, last in dated]) >= 0.8
