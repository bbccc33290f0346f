"""[contract]: what is declared is normal, what leaves it is found, and the safe bet's promise is exact."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from collector.config import ContractConfig
from collector.records import BatchStats, Rollout, Score
from collector.signals import merge, slice_stats
from detectors import bounded, contract
from detectors.esr import ShiryaevRoberts

FLOOR = ContractConfig(engine_dtype="fp8", floor_nats=0.05)
LN_A, SHARE = 10.0, 0.1


def of_d(d: np.ndarray, t: int = 0) -> BatchStats:
    """A batch whose rollouts (rows) differ by d, through the real sums."""
    slices = []
    for i, row in enumerate(d):
        made = Rollout(request_id=str(i), prompt_tokens_P=np.zeros(3, np.int32), completion_tokens_T=np.zeros(row.size, np.int32),
                       engine_logprobs_T=np.full(row.size, -20.0), sampled_mask_T=np.ones(row.size, bool))
        slices += slice_stats(made, Score(request_id=str(i), views={"expected": np.minimum(-20.0 + row, 0.0)}))
    return BatchStats(t=t, opened_at=0.0, closed_at=1.0, slices=merge(slices), counts={"seen": len(d)})


def drawn(rng: np.random.Generator, level: float, *, rollouts: int = 16, tokens: int = 40) -> np.ndarray:
    """d of one batch: heavy-tailed, mean |d| `level` nats on average, at levels that differ by 10 % from batch to batch."""
    d = rng.standard_t(3, size=(rollouts, tokens))
    return d * level / (2 * math.sqrt(3) / math.pi) * np.exp(0.1 * rng.normal() - 0.005)  # mean |t(3)| = 2√3/π


def batch(rng: np.random.Generator, level: float, *, t: int = 0, rollouts: int = 16) -> BatchStats:
    """The same with only the sums the contract reads (checked against the real ones below)."""
    a = np.abs(drawn(rng, level, rollouts=rollouts))
    n, sums = a.shape[1], a.sum(axis=1)
    read = {"abs_d": sums.sum(), "cluster_n2": float(n * n * rollouts), "cluster_a2": (sums**2).sum(), "cluster_an": (sums * n).sum()}
    whole = replace(TEMPLATE, n_tokens=a.size, n_sequences=float(rollouts), sums={**TEMPLATE.sums, **read})
    return BatchStats(t=t, opened_at=0.0, closed_at=1.0, slices=(whole,), counts={"seen": rollouts})


TEMPLATE = of_d(np.full((2, 4), 0.1)).slices[0]


def test_the_simulated_batches_gain_what_real_sums_gain() -> None:
    quick, real = batch(np.random.default_rng(7), 0.06), of_d(drawn(np.random.default_rng(7), 0.06))
    assert contract.gains(quick, FLOOR) == pytest.approx(contract.gains(real, FLOOR), rel=1e-6)


def path(seed: int, level: float, batches: int, agreed: ContractConfig) -> list[float]:
    """ln M of the contract's streams alone."""
    rng, names, process = np.random.default_rng(seed), contract.streams(agreed), ShiryaevRoberts()
    process.add(len(names))
    found = []
    for t in range(batches):
        gains = contract.gains(batch(rng, level, t=t), agreed)
        process.update(t, np.arange(len(names)), np.minimum([gains[name] for name in names], LN_A / 2))
        found.append(float(np.logaddexp.reduce(process.log_sr)) + math.log(SHARE / len(names)))
    return found


def test_without_a_contract_nothing_is_bet() -> None:
    assert contract.gains(batch(np.random.default_rng(0), 0.5), ContractConfig()) == {}
    assert contract.gains(BatchStats(t=0, opened_at=0, closed_at=1), FLOOR) == {}


@pytest.mark.statistical
def test_every_stream_is_an_e_value_at_exactly_the_declared_floor() -> None:
    rng = np.random.default_rng(1)
    gains = [contract.gains(batch(rng, 0.05), FLOOR) for _ in range(800)]
    assert set(gains[0]) == set(contract.streams(FLOOR))
    for name in contract.streams(FLOOR):
        e = np.exp([one[name] for one in gains])
        assert e.mean() <= 1 + 3 * e.std() / math.sqrt(e.size), name


@pytest.mark.statistical
def test_a_mismatch_within_the_contract_does_not_page_however_large_and_one_beyond_it_does() -> None:
    for seed in range(4):
        assert max(path(seed, 0.042, 150, FLOOR)) < LN_A
        above = path(seed, 0.1, 12, FLOOR)
        assert above[-1] >= LN_A and above[1] < LN_A, "no two batches can page"


@pytest.mark.statistical
def test_false_pages_at_the_very_bound_stay_within_the_promise() -> None:
    ln_a, names = math.log(50.0), contract.streams(FLOOR)
    alarms = watched = 0
    for seed in range(12):
        rng, process = np.random.default_rng(100 + seed), ShiryaevRoberts()
        process.add(len(names))
        for t in range(100):
            gains = contract.gains(batch(rng, 0.05, t=t, rollouts=8), FLOOR)
            process.update(t, np.arange(len(names)), np.minimum([gains[name] for name in names], ln_a / 2))
            watched += 1
            if np.logaddexp.reduce(process.log_sr) - math.log(len(names)) >= ln_a:
                alarms += 1
                break
    assert stats.binomtest(alarms, watched, 1 / 50).proportion_ci(0.99).low <= 1 / 50, (alarms, watched)


def test_the_share_left_after_each_correction() -> None:
    rng = np.random.default_rng(2)
    whole = of_d(drawn(rng, 1.0)).slices[0]
    left = {rule: contract.effective_share(whole, ContractConfig(correction=rule)) for rule in ("none", "tis", "icepop", "mask")}
    assert 0 < left["none"] < left["tis"] < 1 and left["mask"] < left["icepop"] < 1
    agreed = ContractConfig(correction="tis", min_ess=0.99)
    assert contract.gains(of_d(drawn(rng, 1.0)), agreed)["contract:ess:safe"] > 1
    assert contract.gains(of_d(drawn(rng, 0.01)), agreed)["contract:ess:safe"] < 0


def test_a_bounded_bet_is_an_e_value_against_its_own_null_and_never_unbounded() -> None:
    draws = stats.t.rvs(4, size=200_000, random_state=3) * 1.25 / math.sqrt(2)
    for shift in bounded.SHIFTS:
        e = np.exp(shift * np.clip(draws, -4, 4) - bounded.normaliser(shift))
        assert e.mean() == pytest.approx(1.0, abs=5 * e.std() / math.sqrt(e.size))
        assert bounded.gain(1e9, shift) == pytest.approx(4 * shift - bounded.normaliser(shift))
