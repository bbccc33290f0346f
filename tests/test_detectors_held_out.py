"""On rollouts of real engines, which no constant was chosen on: silence while healthy, the right replica when not."""

import math

import numpy as np
import pytest
from scipy import stats

from tests.simulate.fleet import Fleet
from tests.simulate.recorded import Recorded


@pytest.mark.statistical
@pytest.mark.parametrize("engine", ["v0181_processed_t07", "v085_t07"])
def test_a_real_engines_own_floor_pages_no_more_than_stated(engine: str) -> None:
    runs, a, pages, batches = 5, 300, 0, 0
    fleet = Fleet(Recorded(healthy=engine, runs=runs, seed=5))  # type: ignore[arg-type]
    for step in fleet.watch(500, ln_a=math.log(a)):
        batches += runs * bool(fleet.block.told.any())
        for run in np.flatnonzero(step.ln_m >= math.log(a)):
            pages += 1
            fleet.restart(run)
    assert batches > runs * 300
    assert stats.binomtest(pages, batches).proportion_ci(0.99).low <= 1 / a and pages <= 1.2 * batches / a


@pytest.mark.statistical
def test_a_real_upgrade_of_one_replica_is_heard_and_placed() -> None:
    runs, start = 5, 230
    fleet = Fleet(Recorded(healthy="v0181_processed_t07", sick="v0181_raw_t07", start=start, replica=2, runs=runs, seed=6))  # type: ignore[arg-type]
    heard = {}
    for step in fleet.watch(start + 20, ln_a=math.log(21_600)):
        for run in np.flatnonzero(step.ln_m >= math.log(21_600)):
            heard.setdefault(run, (step.t - start + 1, fleet.keys[fleet.leading(step.worth[run])]))
    assert len(heard) == runs
    assert all(1 <= delay <= 10 and "replica=2" in stream for delay, stream in heard.values()), heard
