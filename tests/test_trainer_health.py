"""The trainer's own metrics: plain facts, and the table that says which way is bad."""

import math

import pytest

from collector.sources.metrics.names import STANDARD
from detectors.trainer_health import GRADIENT_STEPS, STILL_STEPS, TrainerHealth
from detectors.trainer_metrics import BY_NAME, TABLE, of, transformed


def after(*rows: dict[str, float], start: int = 0) -> list[tuple[str, str]]:
    health = TrainerHealth()
    for step, row in enumerate(rows, start):
        health.take(step, row)
    return [(fact.name, fact.slice["metric"]) for fact in health.facts(1.0)]


HEALTHY = {"loss": 0.1, "grad_norm": 1.0, "zero_std_share": 0.4, "reward_std": 0.5}


def test_an_ordinary_run_shows_nothing() -> None:
    assert after(*[HEALTHY] * 20) == []
    assert after() == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_a_fact_at_once_and_gone_with_the_next_good_step(value: float) -> None:
    assert after(HEALTHY, {**HEALTHY, "loss": value}) == [("trainer_nonfinite", "loss")]
    assert after(HEALTHY, {**HEALTHY, "loss": value}, HEALTHY) == []


def test_single_skipped_steps_of_mixed_precision_are_no_fact_and_a_row_of_them_is() -> None:
    skipped = {**HEALTHY, "grad_norm": math.inf}
    assert after(HEALTHY, skipped, HEALTHY, skipped) == []
    assert after(HEALTHY, *[skipped] * GRADIENT_STEPS) == [("trainer_nonfinite", "grad_norm")]


@pytest.mark.parametrize(("metric", "value"), [("zero_std_share", 1.0), ("grad_norm", 0.0), ("reward_std", 0.0), ("advantage_std", 0.0)])
def test_steps_that_learn_nothing_are_a_fact_only_in_a_row(metric: str, value: float) -> None:
    still = {**HEALTHY, metric: value}
    assert after(*[still] * (STILL_STEPS - 1)) == []
    assert after(*[still] * (STILL_STEPS - 1), HEALTHY | {metric: 0.3}, still) == []
    assert after(*[still] * STILL_STEPS) == [("trainer_learns_nothing", metric)]


def test_a_step_logged_in_pieces_counts_once_and_an_older_step_is_ignored() -> None:
    health = TrainerHealth()
    for step in range(STILL_STEPS - 1):
        health.take(step, {"grad_norm": 0.0})
        health.take(step, {"reward": 1.0})
        health.take(step, {"grad_norm": 0.0})
    assert health.facts(1.0) == ()
    health.take(0, {"loss": math.nan})
    assert health.facts(1.0) == ()
    health.take(STILL_STEPS, {"grad_norm": 0.0})
    (fact,) = health.facts(2.0)
    assert fact.at == 2.0 and "5 steps" in fact.text


def test_every_standard_metric_but_the_learning_rate_has_a_row() -> None:
    assert set(BY_NAME) == set(STANDARD) - {"learning_rate"}
    assert len(BY_NAME) == len(TABLE)
    assert all(row.directions and row.dead_band > 0 for row in TABLE)


def test_transforms_keep_order_and_refuse_what_has_no_value() -> None:
    for transform in ("level", "log", "logit"):
        values = [transformed(x, transform) for x in (0.0, 1e-3, 0.5, 0.999, 1.0)]
        assert values == sorted(values) and all(map(math.isfinite, values))
        assert math.isnan(transformed(math.nan, transform))
    assert math.isnan(transformed(-1.0, "log")) and math.isnan(transformed(1.5, "logit"))
    assert of("entropy").directions == (1, -1) and of("kl").directions == (1,) and of("ess").directions == (-1,)
    assert of("my/metric").directions == (1, -1)
