"""The first message's guess: the leading explanation at the moment of the alarm. No scorer, no model; never confident."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from collector.records import Cause, Diagnosis, Drift
from detectors.streams import cause_of
from diagnosis.audit import engine_facts
from diagnosis.causes import CAUSE_TEXTS


def quick_diagnosis(drifts: Sequence[Drift], *, engine_config: Mapping[str, Any] | None = None,
                    expected_mode: str = "processed_logprobs") -> Diagnosis | None:
    """What the alarming streams and the engine's own settings point to; None without a drift."""
    if not drifts:
        return None
    facts = engine_facts(engine_config or {}, expected_mode=expected_mode)
    ranked = {fact.cause: None for fact in facts if fact.contradicts and fact.cause}
    ranked |= {cause_of(drift.stream): None for drift in sorted(drifts, key=lambda drift: -(drift.statistic - drift.threshold))}
    if len(ranked) > 1:
        ranked.pop("unexplained", None)
    causes = tuple(
        Cause(cause=cause, residual_nats=None, tokens=0, evidence=(
            *(drift.text for drift in drifts if cause_of(drift.stream) == cause and drift.text),
            *(fact.text for fact in facts if fact.cause == cause)))
        for cause in ranked
    )
    text = CAUSE_TEXTS[causes[0].cause]
    return Diagnosis(verdict=causes[0].cause, confident=False, causes=causes, floor_nats=None, next=text.next, fix=text.fix)
