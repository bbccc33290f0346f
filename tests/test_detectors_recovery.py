"""After an alarm: a fault that stays is not called over, one that ends is, and a doubled one is told again."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from collector.records import BatchStats
from detectors.bank import Bank
from detectors.config import BatteryConfig, DetectorsConfig
from detectors.recovery import Aftermath
from tests.simulate.streams import FAULTS, NULLS, Simulation, rows
from tests.test_detectors_battery import look

LN_A = float(np.log(21_600))


def followed(seed: int, *, effect: float, end: int, count: int, phi: float = 0.0, growth: float = 1.0) -> list[str | None]:
    """What Aftermath says batch by batch of a fault of `effect` standard deviations that ends, or grows, at batch `end`."""
    rng, wobble = np.random.default_rng(seed), 0.0
    level = np.where(np.arange(count) < end, effect, effect * (growth if growth > 1 else 0.0))
    y = []
    for t in range(count):
        wobble = phi * wobble + np.sqrt(1 - phi**2) * rng.normal()
        y.append(0.1 * (level[t] + wobble))
    after = Aftermath(y[:6], sd=0.1, phi=phi, logarithmic=True, ln_a=LN_A)
    return [after.take(value) for value in y[6:]]


@pytest.mark.statistical
@pytest.mark.parametrize(("effect", "phi"), [(2.0, 0.0), (4.0, 0.0), (4.0, 0.6)])
def test_a_lasting_fault_is_hardly_ever_called_over(effect: float, phi: float) -> None:
    false = sum("recovered" in followed(seed, effect=effect, end=10**9, count=250, phi=phi) for seed in range(120))
    assert stats.binomtest(false, 120).proportion_ci(0.95).low <= 0.02 and false <= 4


@pytest.mark.statistical
@pytest.mark.parametrize("effect", [2.0, 4.0, 20.0])
def test_a_fault_that_ended_is_over_within_thirty_batches(effect: float) -> None:
    delays = []
    for seed in range(40):
        said = followed(seed, effect=effect, end=60, count=160)
        assert "recovered" in said
        delays.append(said.index("recovered") + 6 - 60 + 1)
    assert np.median(delays) <= 15 and np.mean([1 <= delay <= 30 for delay in delays]) >= 0.9


def test_a_doubled_effect_is_told_once() -> None:
    said = followed(1, effect=10.0, end=60, count=160, growth=2.0)
    assert said.count("grown") == 1 and 54 <= said.index("grown") <= 64


def test_the_state_goes_through_json() -> None:
    after = Aftermath([0.3, 0.2, 0.4, 0.3, 0.3], sd=0.1, phi=0.2, logarithmic=False, ln_a=LN_A)
    after.take(0.3)
    again = Aftermath.from_state(json.loads(json.dumps(after.to_state())))
    assert [after.take(0.0) for _ in range(20)] == [again.take(0.0) for _ in range(20)]
    assert after.to_state() == again.to_state()


CONFIG = DetectorsConfig(battery=BatteryConfig(warmup_batches=60, delay_batches=10))


def test_one_incident_from_the_fault_to_the_fix_and_silence_after() -> None:
    healthy = Simulation(family=NULLS["iid"], runs=1, seed=9, replicas=4, positions=2)
    ill = list(rows(replace(healthy, fault=FAULTS["replica x2"], start=0), 330))
    kept = [ill[t] if 100 <= t < 200 else row for t, row in enumerate(rows(healthy, 330))]
    bank, pages, over = Bank(CONFIG, batch_seconds=120), [], []
    for row in kept:
        pages += [drift.alarm_t for drift in bank.look(look(row), {})[1]]
        if bank.recovered:
            over.append(row["t"])
            bank.resolve(row["t"])
    assert len(pages) == 1 and 100 <= pages[0] <= 110
    assert len(over) == 1 and 200 <= over[0] <= 215
    assert bank.honesty()["alarms"] == 1 and bank.honesty()["promised_false_alarms"] < 0.02


def test_self_bets_recover_when_their_gains_do() -> None:
    bank, over = Bank(CONFIG, batch_seconds=120), []
    rng = np.random.default_rng(4)
    for t in range(120):
        mean = 3.0 if 20 <= t < 60 else -0.5
        gains = {"self_bet:+0.3": mean + rng.normal()}
        bank.update(BatchStats(t=t, opened_at=0.0, closed_at=1.0, gains=gains, counts={"seen": 1}))
        if bank.recovered:
            over.append(t)
            bank.resolve(t)
    assert len(over) == 1 and 60 <= over[0] <= 80


def test_another_replica_gone_wrong_is_a_second_page() -> None:
    healthy = Simulation(family=NULLS["iid"], runs=1, seed=9, replicas=6, positions=2)
    first = list(rows(replace(healthy, fault=FAULTS["replica x2"], start=0), 180))
    other = list(rows(replace(healthy, fault=replace(FAULTS["replica x2"], replica=1, scale=3.0), start=0), 180))
    bank, pages = Bank(CONFIG, batch_seconds=120), []
    for t, row in enumerate(rows(healthy, 180)):
        if t >= 100:
            row["slices"] = [s for s in first[t]["slices"] if s["replica"] == 3] + [s for s in row["slices"] if s["replica"] != 3]
        if t >= 140:
            row["slices"] = [s for s in other[t]["slices"] if s["replica"] == 1] + [s for s in row["slices"] if s["replica"] != 1]
        pages += bank.look(look(row), {})[1]
    assert [drift.slice for drift in pages] == [{"replica": "3"}, {"replica": "1"}]
    assert 140 <= pages[1].alarm_t <= 155 and "second page" in pages[1].text
