"""The e-Shiryaev–Roberts recursion against its own definition."""

import time

import numpy as np
import pytest

from detectors.esr import PLAUSIBLE_NATS, ShiryaevRoberts


def run_one(gains: list[float]) -> ShiryaevRoberts:
    sr = ShiryaevRoberts()
    sr.add()
    for t, gain in enumerate(gains):
        sr.update(t, np.array([0]), np.array([gain]))
    return sr


def plausible_starts(gains: list[float]) -> tuple[int, int, int]:
    """(earliest, best, latest) start by brute force over all summands."""
    summands = np.array([sum(gains[j:]) for j in range(len(gains))])
    near = np.flatnonzero(summands >= summands.max() - PLAUSIBLE_NATS)
    return int(near[0]), int(np.flatnonzero(summands == summands.max())[-1]), int(near[-1])


def test_it_is_the_sum_over_all_starting_batches() -> None:
    gains = np.random.default_rng(0).normal(-0.2, 1.0, size=30).tolist()
    brute = np.logaddexp.reduce([sum(gains[j:]) for j in range(len(gains))])
    assert run_one(gains).log_sr[0] == pytest.approx(brute, abs=1e-9)


def test_a_change_half_way_is_dated_to_its_first_batch() -> None:
    sr = run_one([-1.0] * 50 + [2.0] * 5)
    assert sr.start[0] == 50
    earliest, latest = sr.interval(0)
    assert 44 <= earliest <= 50 <= latest <= 51


def test_the_interval_holds_every_plausible_start_and_the_best_one_exactly() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        changed = int(rng.integers(5, 40))
        noise = rng.normal(0, rng.choice([0.3, 1.0, 3.0]), size=50)
        gains = (np.where(np.arange(50) < changed, -0.5, 0.7) + noise).tolist()
        sr = run_one(gains)
        earliest, best, latest = plausible_starts(gains)
        found = sr.interval(0)
        if sr.height[0] > 0:
            assert sr.start[0] == best
            assert found[0] <= earliest and found[1] == latest


def test_streams_that_do_not_tick_stay_as_they_are() -> None:
    sr = ShiryaevRoberts()
    sr.add(3)
    sr.update(0, np.array([0, 2]), np.array([0.5, 1.0]))
    assert sr.log_sr[1] == -np.inf
    assert sr.log_sr[[0, 2]] == pytest.approx([0.5, 1.0])
    sr.add()
    assert sr.size == 4 and sr.log_sr[2] == pytest.approx(1.0)


def test_state_survives_json_bit_for_bit() -> None:
    import json

    sr = run_one(np.random.default_rng(2).normal(size=20).tolist())
    sr.add()
    back = ShiryaevRoberts.from_state(json.loads(json.dumps(sr.to_state(), allow_nan=False)))
    for one in (sr, back):
        one.update(20, np.array([0, 1]), np.array([0.1, -0.3]))
    assert back.to_state() == sr.to_state()


def test_ten_thousand_streams_tick_in_ten_milliseconds() -> None:
    sr = ShiryaevRoberts()
    sr.add(10_000)
    everyone = np.arange(10_000)
    gains = np.random.default_rng(0).normal(-0.5, 1.0, size=(20, 10_000))
    times = []
    for t, row in enumerate(gains):
        began = time.perf_counter()
        sr.update(t, everyone, row)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.010
