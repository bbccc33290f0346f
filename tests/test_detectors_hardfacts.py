"""Hard facts: said when they hold, and quiet during an ordinary start."""

from dataclasses import replace

import pytest

from collector.records import BatchStats
from detectors.config import FactsConfig
from detectors.hardfacts import FACTS, EngineSeen, Observation, facts
from detectors.trainer_health import TrainerHealth

CONFIG = FactsConfig()
HEALTHY = Observation(
    now=10_000.0, started_at=0.0, last_rollout_at=9_995.0, published=(("1", "a"), ("2", "b"), ("3", "c")),
    engines={"e0": EngineSeen(reachable_since=100.0, reachable_at=9_999.0, heartbeat_at=9_999.0, version="3")},
)


def names(observation: Observation | None = None, batch: BatchStats | None = None) -> list[str]:
    found = facts(batch, observation, CONFIG)
    assert all(fact.name in FACTS and fact.text.endswith(".") for fact in found)
    return [fact.name for fact in found]


def engine(**changes: object) -> Observation:
    return replace(HEALTHY, engines={"e0": replace(HEALTHY.engines["e0"], **changes)})


def test_a_healthy_run_meets_no_fact() -> None:
    assert names(HEALTHY) == []
    assert names(None, BatchStats(t=0, opened_at=0, closed_at=1, counts={"seen": 5, "nonfinite": 0})) == []


@pytest.mark.parametrize("now", [1.0, 59.0, 300.0])
def test_the_first_minutes_of_a_start_do_not_page(now: float) -> None:
    starting = Observation(now=now, started_at=0.0, engines={"e0": EngineSeen(), "e1": EngineSeen(reachable_since=now, reachable_at=now)})
    assert names(starting) == []


def test_parts_that_never_came_are_named_after_the_start_up_grace() -> None:
    never = Observation(now=700.0, started_at=0.0, engines={"e0": EngineSeen(), "e1": EngineSeen(reachable_since=50.0, reachable_at=699.0)})
    assert names(never) == ["engine_unreachable", "tap_silent", "no_rollouts"]


@pytest.mark.parametrize(
    ("counted", "name"),
    [("nonfinite", "nonfinite_logprobs"), ("zeros", "zero_logprobs"), ("length_mismatch", "length_mismatch")],
)
def test_broken_logprobs_of_a_batch_are_facts(counted: str, name: str) -> None:
    batch = BatchStats(t=3, opened_at=0, closed_at=120.0, counts={"seen": 5, counted: 2})
    (fact,) = facts(batch, None, CONFIG)
    assert (fact.name, fact.at) == (name, 120.0)
    assert fact.text.startswith("2 ")


def test_a_label_that_moves_without_the_weights_is_a_fact_only_after_several_equal_digests() -> None:
    still = tuple((label, "b") for label in "23456")
    assert names(replace(HEALTHY, published=(("1", "a"), *still[:-1]))) == []
    assert names(replace(HEALTHY, published=(("1", "a"), *still))) == ["label_moved_weights_same"]


def test_an_engine_that_keeps_old_weights_is_a_fact_and_an_unknown_label_is_not() -> None:
    published = tuple((str(i), f"digest{i}") for i in range(21))
    assert names(replace(engine(version="0"), published=published)) == ["weights_never_move"]
    assert names(replace(engine(version="1"), published=published)) == []
    assert names(replace(engine(version="default"), published=published)) == []


def test_an_engine_that_stops_answering_is_unreachable_and_not_also_a_silent_tap() -> None:
    assert names(engine(reachable_since=None, reachable_at=9_900.0, heartbeat_at=9_900.0)) == []
    (fact,) = facts(None, engine(reachable_since=None, reachable_at=9_800.0, heartbeat_at=9_800.0), CONFIG)
    assert (fact.name, fact.slice) == ("engine_unreachable", {"replica": "e0"})


def test_a_tap_is_silent_only_when_its_engine_has_answered_all_the_while() -> None:
    assert names(engine(heartbeat_at=9_960.0)) == ["tap_silent"]
    restarted = engine(heartbeat_at=9_900.0, reachable_since=9_990.0)
    assert names(restarted) == []
    assert names(engine(heartbeat_at=9_000.0, expects_tap=False)) == []


def test_missing_rollouts_are_judged_by_the_longest_healthy_gap() -> None:
    silent = replace(HEALTHY, last_rollout_at=9_600.0)
    assert names(silent) == ["no_rollouts"]
    assert names(replace(silent, longest_rollout_gap_seconds=250.0)) == []
    assert names(replace(silent, expects_rollouts=False)) == []


def test_rollouts_waiting_for_a_score_make_klaxon_blind() -> None:
    assert names(replace(HEALTHY, oldest_unscored_at=9_500.0)) == []
    assert names(replace(HEALTHY, oldest_unscored_at=9_300.0)) == ["scorer_behind"]


def test_a_store_that_refuses_and_a_disk_that_fills_are_facts() -> None:
    assert names(replace(HEALTHY, store_refusing_since=9_950.0, disk_free_bytes=2**31)) == []
    assert names(replace(HEALTHY, store_refusing_since=9_900.0)) == ["store_refusing"]
    (fact,) = facts(None, replace(HEALTHY, disk_free_bytes=2**20 * 200), CONFIG)
    assert fact.name == "disk_low" and fact.text.startswith("200 MiB") and "256 MiB" in fact.text
    assert facts(None, replace(HEALTHY, disk_free_bytes=0), FactsConfig(disk_free_mb=0)) == ()


def test_an_engine_in_another_dtype_than_the_contract_is_a_fact_whatever_the_spelling() -> None:
    assert names(replace(HEALTHY, engine_dtype="torch.bfloat16", declared_dtype="bf16")) == []
    assert names(replace(HEALTHY, engine_dtype=None, declared_dtype="fp8")) == []
    assert names(replace(HEALTHY, engine_dtype="bfloat16", declared_dtype="fp8")) == ["contract_dtype"]


def test_what_the_trainer_shows_is_passed_on() -> None:
    shown = TrainerHealth()
    shown.take(4, {"loss": float("nan")})
    assert names(replace(HEALTHY, trainer=shown.facts(1.0))) == ["trainer_nonfinite"]
