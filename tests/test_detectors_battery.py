"""The battery follows a healthy floor down and up, and hears a step above it."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from collector import signals
from collector.records import BatchStats, Rollout, Score, SliceStats
from detectors import evaluate
from detectors.bank import Bank
from detectors.battery import CLIP, Battery, features, log_normalisers
from detectors.config import BatteryConfig, DetectorsConfig

CONFIG = DetectorsConfig()
EMPTY = np.zeros(signals.EDGES.size - 1, np.int64)


def batch(t: int, mean_abs_d: float, mean_surprise: float, tokens: int = 3000, mean_d: float = 0.0) -> BatchStats:
    sums = dict.fromkeys(signals.SUMS, 0.0)
    sums |= {"abs_d": mean_abs_d * tokens, "engine_logprob": -mean_surprise * tokens, "d": mean_d * tokens}
    whole = SliceStats(
        replica="e0", position="0-1k", version="1", cached=None, n_tokens=tokens, n_sequences=tokens / 60,
        hist_pos=EMPTY, hist_neg=EMPTY, sums=sums,
    )
    return BatchStats(t=t, opened_at=120.0 * t, closed_at=120.0 * (t + 1), slices=(whole,), counts={"seen": tokens // 60})


def run_of_a_policy(
    seed: int, count: int, *, log_surprise_end: float = -3.4, phi: float = 0.5, slope: float = 1.0,
    step: tuple[int, float] | None = None,
) -> Iterator[BatchStats]:
    """Mean |d| = .03 · surprise^slope with heavy-tailed AR(1) noise; the surprise moves by `log_surprise_end` over two
    thirds of the run; 2 % of the batches are missing; from batch step[0] on mean |d| is step[1] times as large."""
    rng = np.random.default_rng(seed)
    wobble = 0.0
    for t in range(count):
        wobble = phi * wobble + 0.12 * np.sqrt((1 - phi**2) * 3 / 5) * rng.standard_t(5)
        log_surprise = -0.1 + log_surprise_end * min(1.0, 1.5 * t / count) + 0.08 * rng.normal()
        log_d = np.log(0.03) + slope * log_surprise + wobble
        if step is not None and t >= step[0]:
            log_d += np.log(step[1])
        tokens = int(rng.integers(500, 6000))
        missing = rng.random() < 0.02
        yield BatchStats(t=t, opened_at=t, closed_at=t + 1) if missing else batch(t, np.exp(log_d), np.exp(log_surprise), tokens)


def watch(batches: Iterator[BatchStats]) -> evaluate.Run:
    return evaluate.run(batches, CONFIG, batch_seconds=120)


@pytest.mark.statistical
@pytest.mark.parametrize("log_surprise_end", [-3.4, 0.0, 1.2])
@pytest.mark.parametrize("slope", [0.8, 1.0])
def test_a_floor_that_follows_the_policy_thirty_fold_down_or_up_is_no_alarm(log_surprise_end: float, slope: float) -> None:
    for seed in range(2):
        watched = watch(run_of_a_policy(seed, 900, log_surprise_end=log_surprise_end, slope=slope))
        assert watched.drifts == ()
        assert max(watched.ln_m) < 8


@pytest.mark.statistical
@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_a_threefold_step_late_in_a_sharp_run_is_heard_within_a_few_batches(phi: float) -> None:
    for seed in range(2):
        watched = watch(run_of_a_policy(seed, 760, phi=phi, step=(750, 3.0)))
        (page,) = watched.drifts
        assert page.stream.startswith("battery:log_abs_d:")
        assert 750 <= page.alarm_t <= 755
        assert page.change_t[0] <= 751


@pytest.mark.statistical
def test_e_values_of_a_healthy_wobbling_run_average_below_one() -> None:
    bank = Bank(CONFIG, batch_seconds=120)
    gains = [e.gain for seed_batch in run_of_a_policy(11, 1500, phi=0.8) for e in bank.update(seed_batch)[0]]
    assert len(gains) > 3 * 1200
    assert np.exp(gains).mean() < 1


def test_every_bet_is_bounded_and_pays_for_heavy_tails() -> None:
    shifts = CONFIG.battery.shifts
    psi = log_normalisers(shifts)
    draws = np.clip(np.random.default_rng(0).standard_t(4, 200_000) * 1.25 / np.sqrt(2), -CLIP, CLIP)
    for shift, normaliser in zip(shifts, psi, strict=True):
        assert np.log(np.exp(shift * draws).mean()) == pytest.approx(normaliser, abs=0.05)
        assert shift**2 / 2 < normaliser < shift * CLIP


def test_it_learns_first_and_a_missing_batch_changes_nothing() -> None:
    battery = Battery(BatteryConfig(warmup_batches=20, delay_batches=5))
    rng = np.random.default_rng(0)
    for t in range(25):
        assert battery.learning
        assert battery.update(batch(t, 0.03 * np.exp(0.1 * rng.normal()), 0.9)) == {}
    before = battery.to_state()
    assert not battery.learning
    assert battery.update(BatchStats(t=25, opened_at=0, closed_at=1)) == {}
    assert battery.update(batch(26, 0.03, 0.9, tokens=10)) == {}
    assert battery.to_state() == before
    assert set(battery.update(batch(27, 0.03, 0.9))) == {f"battery:log_abs_d:{m:g}" for m in CONFIG.battery.shifts}


def test_a_fault_that_inflates_one_sides_surprise_does_not_explain_itself() -> None:
    _, healthy, _ = features(batch(0, 0.03, 0.5), min_tokens=50) or (0, 0, 0)
    _, engine_off, _ = features(batch(0, 0.5, 1.0, mean_d=0.5), min_tokens=50) or (0, 0, 0)
    _, trainer_off, _ = features(batch(0, 0.5, 0.5, mean_d=-0.5), min_tokens=50) or (0, 0, 0)
    assert healthy == pytest.approx(engine_off) == pytest.approx(trainer_off)


def test_its_features_come_from_the_signals_of_scored_rollouts() -> None:
    engine, trainer = np.array([-0.2, -1.0, -0.3], np.float32), np.array([-0.1, -1.3, np.nan], np.float32)
    rollout = Rollout(
        request_id="r", prompt_tokens_P=np.array([1], np.int32), completion_tokens_T=np.array([1, 2, 3], np.int32),
        engine_logprobs_T=engine, sampled_mask_T=np.ones(3, bool),
    )
    slices = signals.slice_stats(rollout, Score(request_id="r", views={"expected": trainer}))
    scored = BatchStats(t=0, opened_at=0, closed_at=1, slices=slices, counts={"seen": 1})
    assert features(scored, min_tokens=2) == pytest.approx((np.log(0.2), np.log(0.6), 2))
    assert features(scored, min_tokens=3) is None


def test_state_survives_json_bit_for_bit() -> None:
    one, two = Battery(CONFIG.battery), Battery(CONFIG.battery)
    batches = list(run_of_a_policy(4, 140))
    for item in batches[:120]:
        one.update(item)
    two.restore(json.loads(json.dumps(one.to_state(), allow_nan=False)))
    assert [one.update(item) for item in batches[120:]] == [two.update(item) for item in batches[120:]]
    assert one.to_state() == two.to_state()


def test_the_tail_of_the_heavy_tailed_model_is_the_textbook_one() -> None:
    scale = 1.25 / np.sqrt(2)
    u = np.linspace(-CLIP, CLIP, 4001)
    for shift, found in zip((0.5, 2.0), log_normalisers((0.5, 2.0)), strict=True):
        inside = np.trapezoid(np.exp(shift * u) * stats.t.pdf(u / scale, 4) / scale, u)
        outside = stats.t.sf(CLIP / scale, 4) * 2 * np.cosh(shift * CLIP)
        assert found == pytest.approx(np.log(inside + outside), abs=1e-9)
