"""The battery keeps its promise on healthy fleets and hears faults where they are. Simulated fleets: tests/simulate."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, stats

from collector.metric_values import PUBLIC_EDGES
from collector.records import BatchStats, SliceStats
from detectors.bank import Bank
from detectors.battery import Battery
from detectors.bets import SHAPES, Bets, jump_log_ratio, log_normaliser
from detectors.config import BatteryConfig, DetectorsConfig
from detectors.contrasts import Grid, grid_values
from detectors.features import FEATURES, features, sums
from detectors.looks import Cell, Look, of_batch
from tests.simulate.fleet import Fleet
from tests.simulate.streams import FAULTS, NULLS, Simulation, rows

CONFIG = BatteryConfig()


def look(row: dict) -> Look:
    cells = [Cell(replica=str(s["replica"]), position=str(s["pos"]), counts=np.array(s["hist_pos"] + s["hist_neg"]),
                  n_sequences=s["n_seq"], lag=s["lag"]) for s in row["slices"]]
    return Look(t=row["t"], cells=tuple(cells), unsure=math.log(row["entropy"]))


def test_features_of_a_histogram_are_those_of_its_tokens() -> None:
    d = np.random.default_rng(0).standard_t(2, 40_000) * 0.05
    sides = [np.histogram(np.abs(d[side]), PUBLIC_EDGES)[0] for side in (d >= 0, d < 0)]
    found = dict(zip(FEATURES, features(sums(np.concatenate(sides).astype(float))).tolist(), strict=True))
    assert found["mean"] == pytest.approx(math.log(np.abs(d).mean()), abs=0.1)
    assert found["clip"] == pytest.approx(math.log((np.sum(np.abs(d) >= 0.2) + 0.5) / (d.size + 1)))
    assert found["tail3"] == pytest.approx(math.log((np.sum(np.abs(d) >= 3) + 1) / (d.size + 2)))
    far = d[np.abs(d) >= 1e-3]
    assert found["sign"] == pytest.approx((np.sum(far > 0) - np.sum(far < 0)) / (far.size + 1))
    assert np.isnan(features(np.zeros(8))).all()


def test_a_change_of_one_replica_moves_its_own_contrast_and_no_cell() -> None:
    counts = np.tile(np.array([400, 300, 200, 100, 50, 20, 5, 5, 2, 1, 0, 0] * 2, float), (4, 3, 1))
    counts[2] = np.roll(counts[2], 1, axis=-1)
    shape = counts.shape[:2]
    values = grid_values(Grid(sums=sums(counts), n_sequences=np.ones(shape), lag=np.zeros(shape), surprise=np.full((*shape, 2), np.nan)), min_tokens=50)
    mean = values.x[:, 0]
    assert np.nanargmax(mean[1:5]) == 2 and mean[3] > 0.5
    assert np.abs(mean[8:]).max() < 1e-9, "the replica explains its cells"


def test_normalisers_allow_for_heavier_tails_than_the_normal() -> None:
    draws = np.random.default_rng(1).standard_t(8, 400_000) * 1.05 / math.sqrt(8 / 6)
    for m in (0.4, 0.8, 1.6):
        assert math.log(np.exp(m * np.clip(draws, -5, 5)).mean()) == pytest.approx(log_normaliser(m), abs=0.05)
        assert m**2 / 2 < log_normaliser(m) < 5 * m


def test_the_jump_bet_is_an_e_value_under_the_pessimistic_null() -> None:
    def density(u: float) -> float:
        return float(stats.t.pdf(u, 8, scale=1.05 / math.sqrt(8 / 6)) * math.exp(jump_log_ratio(np.array(u))))

    assert integrate.quad(density, 4, 30)[0] == pytest.approx(1, abs=1e-6), "it is a density on [4, 30]"
    assert density(3.9) == 0 and jump_log_ratio(np.array(8.0)) > 8.5


def test_the_largest_gain_of_an_excursion_counts_at_most_the_cap() -> None:
    bets = Bets()
    bets.born(["up"])
    quiet, great = np.zeros(1), np.full(1, 12.0)
    for t in range(3):
        bets.step(t, quiet, np.zeros(1), 7.0)
    bets.step(3, great, np.zeros(1), 7.0)
    one = bets.mean_log_sr()[0]
    assert one < 7.0 + math.log(4) < bets.log_sr.max(), "SR + 1 starts on each of four batches, one capped gain"
    bets.step(4, great, np.zeros(1), 7.0)
    assert bets.mean_log_sr()[0] > one + 8, "the second one counts in full"


def test_rates_are_compared_with_what_is_expected_so_vanishing_counts_are_no_change() -> None:
    counts = np.zeros((4, 3, 24))
    counts[..., 3] = 1000.0
    counts[1] /= 20.0
    shape = counts.shape[:2]
    values = grid_values(Grid(sums=sums(counts), n_sequences=np.ones(shape), lag=np.zeros(shape), surprise=np.full((*shape, 2), np.nan)), min_tokens=10)
    rates = [FEATURES.index(name) for name in ("clip", "tail1", "tail3")]
    assert np.abs(values.x[1:, rates]).max() < 1e-12, "nothing was counted anywhere, on small slices as on large ones"
    counts[2, :, 10] = 4.0
    values = grid_values(Grid(sums=sums(counts), n_sequences=np.ones(shape), lag=np.zeros(shape), surprise=np.full((*shape, 2), np.nan)), min_tokens=10)
    assert values.x[3, rates[1]] == pytest.approx(math.log(12 + 1)) and abs(values.x[2, rates[1]]) < 0.6


@pytest.mark.statistical
def test_every_bet_is_an_e_value_on_normal_noise() -> None:
    bets = Bets()
    bets.born([kind for kind in SHAPES for _ in range(3000)])
    u = np.random.default_rng(2).normal(size=(10, bets.size))
    e = np.exp(np.stack([bets.gains(row, np.zeros(bets.size)) for row in u]))
    for kind, part in enumerate(SHAPES):
        mean = e[:, :, kind * 3000:(kind + 1) * 3000].mean(axis=(0, 2))
        assert (mean <= 1).all(), part


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["full", "ar2", "sharpen", "heavy"])
def test_false_pages_of_a_healthy_fleet_stay_within_the_budget(name: str) -> None:
    runs, a, count = 4, 300, 700
    fleet = Fleet(Simulation(family=NULLS[name], runs=runs, seed=71, replicas=4, positions=2))
    pages = batches = 0
    for step in fleet.watch(count, ln_a=math.log(a)):
        batches += runs * bool(fleet.block.told.any())
        for run in np.flatnonzero(step.ln_m >= math.log(a)):
            pages += 1
            fleet.restart(run)
    assert batches > runs * 500, "betting begins within 200 batches"
    low, _ = stats.binomtest(pages, batches).proportion_ci(0.99)
    assert low <= 1 / a and pages <= 1.2 * batches / a


@pytest.mark.statistical
@pytest.mark.parametrize(("name", "within", "where"), [
    ("global x2", 8, {"global", "fleet"}), ("replica x2", 10, {"replica=3"}), ("position x2", 10, {"position=1"}),
    ("clip 2 to 4 %", 10, {"global"}), ("sign shift", 10, {"global"}), ("tail only", 10, {"global", "fleet"})])
def test_faults_are_heard_soon_and_where_they_are(name: str, within: int, where: set[str]) -> None:
    fault = FAULTS[name] if FAULTS[name].position is None else replace(FAULTS[name], position=1)
    start, runs = 230, 4
    fleet = Fleet(Simulation(family=NULLS["ar1"], runs=runs, seed=72, fault=fault, start=start, replicas=4, positions=2))
    heard: dict[int, tuple[int, str, int]] = {}
    for step in fleet.watch(start + 3 * within, ln_a=math.log(21_600)):
        for run in np.flatnonzero(step.ln_m >= math.log(21_600)):
            if run not in heard:
                column = fleet.leading(step.worth[run])
                change = fleet.block.bets.change(column + run * len(fleet.keys))[0]
                heard[run] = step.t - start + 1, fleet.keys[column].split(":", 2)[2], change - start
    assert len(heard) == runs
    assert 2 <= np.median([delay for delay, _, _ in heard.values()]) <= within
    assert sum(slice_ in where for _, slice_, _ in heard.values()) >= runs - 1
    assert abs(np.median([change for _, _, change in heard.values()])) <= 3


def fed(bank: Bank, simulation: Simulation, count: int) -> list[tuple[int, str]]:
    pages = []
    for row in rows(simulation, count):
        pages += [(drift.alarm_t, drift.stream) for drift in bank.look(look(row), {})[1]]
    return pages


SMALL = DetectorsConfig(battery=BatteryConfig(warmup_batches=60, delay_batches=10))
FLEET = Simulation(family=NULLS["iid"], runs=1, seed=3, replicas=3, positions=2)


def test_one_corrupt_batch_of_any_size_pages_nobody_and_is_told_once() -> None:
    for scale in (3.0, 100.0, 1e4):
        bank = Bank(SMALL, batch_seconds=120)
        kept = list(rows(FLEET, 120))
        broken = list(rows(replace(FLEET, fault=replace(FAULTS["global x2"], scale=scale), start=100), 120))
        kept[100] = broken[100]
        pages = [drift for row in kept for drift in bank.look(look(row), {})[1]]
        assert pages == []
        assert len([notice for notice in bank.notices if "batch 100" in notice]) == 1 == len(bank.notices)


def test_it_learns_first_and_an_empty_batch_changes_nothing() -> None:
    bank, kept = Bank(SMALL, batch_seconds=120), list(rows(FLEET, 90))
    for row in kept[:70]:
        assert bank.learning and bank.ln_m == -math.inf
        bank.look(look(row), {})
    bank.look(look(kept[70]), {})
    assert not bank.learning
    before = bank.battery.to_state()
    assert bank.look(Look(t=71), {}) == ((), ())
    assert bank.battery.to_state() == before
    assert len(bank.look(look(kept[72]), {})[0]) == 20, "evidence is listed for the leading streams only"


def test_a_battery_restored_from_json_goes_on_bit_for_bit() -> None:
    kept = list(rows(replace(FLEET, fault=FAULTS["replica x2"], start=95, replicas=4), 120))
    whole, half = Bank(SMALL, batch_seconds=120), Bank(SMALL, batch_seconds=120)
    before = [half.look(look(row), {}) for row in kept[:97]]
    restored = Bank.from_state(json.loads(json.dumps(half.to_state(), allow_nan=False)), SMALL, batch_seconds=120)
    assert before + [restored.look(look(row), {}) for row in kept[97:]] == [whole.look(look(row), {}) for row in kept]
    assert restored.to_state() == whole.to_state() and whole.firing
    assert whole.alarm is not None and whole.slice_of(whole.alarm[1]) == {"replica": "3"}


def test_a_replica_that_joins_late_starts_with_the_fleets_noise() -> None:
    battery = Battery(replace_delay(), share=0.5)
    for row in rows(replace(FLEET, replicas=4), 160):
        row["slices"] = [s for s in row["slices"] if s["replica"] < 3 or row["t"] >= 100]
        battery.update(look(row), cap=5.0)
    keys, ready = battery.block.keys, battery.block.front.ready
    late = [i for i, key in enumerate(keys) if key.endswith("replica=3")]
    assert late and ready[late].all()
    assert np.exp(battery.block.log_weight[np.isfinite(battery.block.log_weight)]).sum() <= 0.5


def replace_delay() -> BatteryConfig:
    return BatteryConfig(warmup_batches=60, delay_batches=10, memory_batches=100)


def test_departed_replicas_make_room_and_their_share_is_dropped() -> None:
    battery = Battery(replace_delay(), share=0.5)
    for row in rows(replace(FLEET, replicas=2), 260):
        for item in row["slices"]:
            item["replica"] += 2 * (row["t"] // 130)
        battery.update(look(row), cap=5.0)
    assert battery.replicas == ["2", "3"] or len(battery.replicas) <= 4
    total = np.exp(battery.block.log_weight[np.isfinite(battery.block.log_weight)]).sum()
    assert 0.05 < total <= 0.5


def test_a_rebaseline_learns_again_and_says_so() -> None:
    bank = Bank(SMALL, batch_seconds=120)
    fed(bank, FLEET, 90)
    bank.notices.clear()
    bank.rebaseline(90, "a new curriculum")
    assert bank.notices == ["batch 90: learning again what normal looks like: a new curriculum"]
    kept = list(rows(replace(FLEET, fault=FAULTS["global x2"], start=0, seed=4), 200))
    assert not any(bank.look(look(row), {})[1] for row in kept[91:])


def test_live_slices_and_files_look_the_same() -> None:
    row = next(rows(FLEET, 1))
    parts = []
    for s in row["slices"]:
        parts.append(SliceStats(replica=str(s["replica"]), position=str(s["pos"]), version="5", cached=None, n_tokens=s["n_tok"],
                                n_sequences=s["n_seq"], hist_pos=np.array(s["hist_pos"]), hist_neg=np.array(s["hist_neg"]), sums={}))
    hinted = replace(parts[0], population="hinted")
    live = of_batch(BatchStats(t=0, opened_at=0, closed_at=1, slices=(*parts, hinted), counts={"seen": 1}))
    assert [(c.replica, c.position, c.counts.tolist()) for c in live.cells] == [(c.replica, c.position, c.counts.tolist()) for c in look(row).cells]
    assert {cell.lag for cell in live.cells} == {0.0}
