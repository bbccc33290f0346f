"""The false-alarm budget in operator words."""

import math

import pytest
from pydantic import ValidationError

from collector.errors import ConfigError
from detectors import budget
from detectors.config import DetectorsConfig


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1 per 30 days", 30 * 86400),
        ("2 per week", 3.5 * 86400),
        ("1 per 12 hours", 12 * 3600),
        ("1 per day", 86400),
        ("0.5 per month", 60 * 86400),
        ("3 every 90 Days", 30 * 86400),
    ],
)
def test_budgets_read_as_an_operator_writes_them(text: str, seconds: float) -> None:
    assert budget.parse_period_seconds(text) == seconds


def test_one_page_in_thirty_days_of_two_minute_batches_is_21600_batches() -> None:
    assert budget.batches("1 per 30 days", batch_seconds=120) == 21600
    assert budget.ln_a("1 per 30 days", batch_seconds=120) == math.log(21600)


@pytest.mark.parametrize("text", ["", "often", "1 per", "1 per fortnight", "one per day", "1 per 30", "-1 per day", "1 per day please"])
def test_an_unreadable_budget_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError, match=r'write for example "1 per 30 days"'):
        budget.parse_period_seconds(text)


@pytest.mark.parametrize("text", ["0 per day", "1 per 0 days"])
def test_zero_false_alarms_cannot_be_promised(text: str) -> None:
    with pytest.raises(ConfigError, match="zero false alarms"):
        budget.parse_period_seconds(text)


def test_a_budget_of_a_few_batches_is_refused() -> None:
    with pytest.raises(ConfigError, match="only 5.0 batches"):
        budget.batches("1 per 10 minutes", batch_seconds=120)


def test_the_config_refuses_an_unreadable_budget_by_its_key() -> None:
    with pytest.raises(ConfigError, match="detectors.false_alarms"):
        DetectorsConfig(false_alarms="never")


@pytest.mark.parametrize(
    "values",
    [
        {"bet_fractions": (0.3, 0.96)},
        {"bet_fractions": ()},
        {"bet_fractions": (0.3, 0.84)},
        {"self_bet_tilts": (0.0,)},
        {"weights": {"self_bets": 0.9}},
        {"battery": {"shifts": (5.0,)}},
        {"unknown": 1},
    ],
)
def test_values_that_would_break_the_guarantee_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DetectorsConfig.model_validate(values)
