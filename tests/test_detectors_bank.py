"""The bank: one budget, latched alarms, exact replay."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from collector.errors import InputError
from collector.records import BatchStats, Fact
from detectors.bank import Bank
from detectors.betting import PLANNED_VARIANTS
from detectors.config import DetectorsConfig
from detectors.streams import Weights, cause_of

CONFIG = DetectorsConfig()
LN_A = math.log(21600)


def batch(t: int, gains: dict[str, float] | None = None, facts: tuple[Fact, ...] = (), **counts: int) -> BatchStats:
    return BatchStats(t=t, opened_at=120.0 * t, closed_at=120.0 * (t + 1), gains=gains or {}, facts=facts, counts={"seen": 1} | counts)


def fresh() -> Bank:
    return Bank(CONFIG, batch_seconds=120)


def test_no_single_batch_can_page_however_much_it_gains() -> None:
    bank = fresh()
    evidence, drifts = bank.update(batch(0, {"self_bet:+0.6": 1e6, "explain:raw_logprobs:0.8": 1e6}))
    assert drifts == () and not bank.firing
    assert {one.gain for one in evidence} == {(bank.ln_a - math.log(one.weight)) / 2 for one in evidence}
    assert bank.update(batch(1, {"self_bet:+0.6": 1e6}))[1], "two great batches do"


def test_lasting_evidence_pages_once_and_stays_latched() -> None:
    bank = fresh()
    pages = [drift for t in range(20) for drift in bank.update(batch(t, {"self_bet:+0.3": 2.0}))[1]]
    (page,) = pages
    assert bank.firing
    assert page.kind == "statistical" and page.stream == bank.leading == "self_bet:+0.3"
    assert page.statistic >= page.threshold == pytest.approx(LN_A)
    assert page.change_t[0] == 0
    assert "ln M" in page.text and "1 per 30 days" in page.text and "batch" in page.text


def test_a_fault_that_begins_half_way_is_dated_to_its_beginning() -> None:
    bank, pages = fresh(), []
    for t in range(220):
        pages += bank.update(batch(t, {"self_bet:+0.3": -1.5 if t < 200 else 3.0, "self_bet:-0.3": -1.0}))[1]
    (page,) = pages
    assert 197 <= page.change_t[0] <= 200 <= page.change_t[1] <= 201
    assert page.alarm_t <= 206


def test_an_empty_window_changes_no_evidence() -> None:
    bank = fresh()
    bank.update(batch(0, {"self_bet:+0.3": 1.0}))
    before = bank.ln_m
    evidence, drifts = bank.update(BatchStats(t=1, opened_at=120, closed_at=240))
    assert (evidence, drifts, bank.ln_m) == ((), (), before)


def test_batches_without_evidence_never_add_up_to_an_alarm() -> None:
    bank = Bank(DetectorsConfig(false_alarms="1 per 30 minutes"), batch_seconds=60)
    assert not any(bank.update(batch(t))[1] for t in range(200))


def test_resolving_starts_the_evidence_from_zero_and_a_lasting_fault_pages_again() -> None:
    bank = fresh()
    for t in range(10):
        bank.update(batch(t, {"self_bet:+0.3": 3.0}))
    bank.resolve(now_t=11)
    assert not bank.firing and bank.ln_m == -math.inf
    for t in (10, 11):
        assert bank.update(batch(t, {"self_bet:+0.3": 3.0})) == ((), ())
    pages = [drift for t in range(12, 22) for drift in bank.update(batch(t, {"self_bet:+0.3": 3.0}))[1]]
    assert len(pages) == 1 and pages[0].change_t[0] >= 12


def test_a_batch_handed_over_twice_counts_once() -> None:
    bank = fresh()
    bank.update(batch(4, {"self_bet:+0.3": 1.0}))
    before = bank.ln_m
    assert bank.update(batch(4, {"self_bet:+0.3": 1.0}, facts=(GONE,))) == ((), ())
    assert (bank.ln_m, bank.ignored) == (before, {"repeated_batch": 1})


def test_unknown_streams_and_broken_gains_are_counted_and_leave_the_rest_alone() -> None:
    bank = fresh()
    evidence, _ = bank.update(
        batch(0, {"self_bet:+0.3": 0.5, "oracle:yes": 1.0, "explain:gremlins:0.3": 1.0, "explain:raw_logprobs:0.3": math.nan})
    )
    assert [one.stream for one in evidence] == ["self_bet:+0.3"]
    assert bank.ignored == {"unknown_stream": 2, "nonfinite_gain": 1}


def test_weights_of_any_streams_add_up_to_at_most_the_whole_budget() -> None:
    weights = Weights(CONFIG)
    names = [f"self_bet:{tilt:+g}" for tilt in CONFIG.self_bet_tilts]
    names += [f"explain:{cause}:{fraction:g}" for cause in ("raw_logprobs", "stale_weights") for fraction in CONFIG.bet_fractions]
    names += [f"explain:{cause}:{i}:{fraction:g}" for cause in ("truncation", "penalties") for i in range(9) for fraction in CONFIG.bet_fractions]
    names += [f"explain:temperature:{i}:{fraction:g}" for i in range(50) for fraction in CONFIG.bet_fractions]
    names += [f"explain:stale_prefix_cache{v}:{fraction:g}" for v in ("", ":oldest") for fraction in CONFIG.bet_fractions]
    names += [f"self_bet:+{i}" for i in range(5, 50)] + [f"requests:new:{i}" for i in range(50)]
    names += [f"{kind}:new:{i}" for kind in ("trainer_metrics", "reference", "contract") for i in range(50)]
    total = sum(weights.birth(name) or 0.0 for name in names) + CONFIG.weights.battery + CONFIG.weights.second_pages
    assert 0.95 < total <= 1.0


def test_a_stream_keeps_the_weight_of_its_birth() -> None:
    bank = fresh()
    first = bank.update(batch(0, {"explain:temperature:0.8:0.3": 0.1}))[0][0].weight
    bank.update(batch(1, {f"explain:temperature:{i}:0.3": 0.1 for i in range(20)}))
    (again,) = bank.update(batch(2, {"explain:temperature:0.8:0.3": 0.1}))[0]
    assert again.weight == first == pytest.approx(CONFIG.weights.explanations / len(PLANNED_VARIANTS) / 2 / PLANNED_VARIANTS["temperature"])


@pytest.mark.parametrize(
    ("stream", "cause"),
    [
        ("self_bet:-0.1", "raw_logprobs"),
        ("explain:stale_prefix_cache:oldest:0.3", "stale_prefix_cache"),
        ("explain:stale_weights:0.8", "stale_weights"),
        ("battery:mean:replica=e0", "unexplained"),
        ("nonfinite_logprobs", "non_finite"),
        ("engine_unreachable", "unexplained"),
    ],
)
def test_every_stream_points_to_a_cause_while_diagnosis_is_at_work(stream: str, cause: str) -> None:
    assert cause_of(stream) == cause


GONE = Fact(name="engine_unreachable", text="e0 has not answered for 130 s.", slice={"replica": "e0"})


def test_a_fact_pages_at_once_and_only_once_while_it_holds() -> None:
    bank = fresh()
    pages = [drift for t in range(5) for drift in bank.update(batch(t, facts=(GONE,)))[1]]
    (page,) = pages
    assert (page.kind, page.stream, page.slice, page.alarm_t, page.text) == ("fact", GONE.name, {"replica": "e0"}, 0, GONE.text)
    assert not bank.firing


def test_the_same_fact_elsewhere_pages_on_its_own() -> None:
    other = replace(GONE, slice={"replica": "e1"})
    assert len(fresh().update(batch(0, facts=(GONE, other, GONE)))[1]) == 2


def test_a_fact_may_page_again_after_it_was_absent_long_enough() -> None:
    bank, paged = fresh(), []
    for t, holds in enumerate([1, 0, 0, 1, 0, 0, 0, 1]):
        if bank.update(batch(t, facts=(GONE,) if holds else ()))[1]:
            paged.append(t)
    assert paged == [0, 7]


def test_a_fact_seen_between_two_batches_pages_at_once_and_not_again_in_its_batch() -> None:
    bank = fresh()
    assert len(bank.note_facts((GONE,), t=0)) == 1
    assert bank.update(batch(0, facts=(GONE,)))[1] == ()


def history(seed: int) -> list[BatchStats]:
    rng = np.random.default_rng(seed)
    names = ["self_bet:+0.3", "self_bet:-0.3", "explain:raw_logprobs:0.3", "explain:temperature:0.8:0.3", "weird:1"]
    return [
        batch(t, {name: float(rng.normal(-0.3 if t < 40 else 1.0, 1.0)) for name in names if rng.random() < 0.8},
              facts=(GONE,) if t in (10, 11, 30) else ())
        for t in range(60)
    ]


def test_replaying_the_same_batches_gives_the_same_evidence_bit_for_bit() -> None:
    one, two = fresh(), fresh()
    assert [one.update(b) for b in history(3)] == [two.update(b) for b in history(3)]
    assert one.to_state() == two.to_state()


@pytest.mark.parametrize("stop", [0, 1, 11, 45])
def test_a_bank_restored_from_json_goes_on_bit_for_bit(stop: int) -> None:
    batches = history(3)
    whole, half = fresh(), fresh()
    before = [half.update(b) for b in batches[:stop]]
    restored = Bank.from_state(json.loads(json.dumps(half.to_state(), allow_nan=False)), CONFIG, batch_seconds=120)
    assert before + [restored.update(b) for b in batches[stop:]] == [whole.update(b) for b in batches]
    assert restored.to_state() == whole.to_state()
    assert whole.firing


def test_a_state_of_another_schema_is_refused() -> None:
    with pytest.raises(InputError, match="schema"):
        Bank.from_state({"schema": 99}, CONFIG, batch_seconds=120)
