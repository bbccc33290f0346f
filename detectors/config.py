"""The [detectors] section of config.toml."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from detectors.betting import largest_fraction
from detectors.budget import parse_period_seconds
from detectors.requests_config import RequestsConfig


class WeightsConfig(BaseModel):
    """How the false-alarm budget is split between kinds of streams; the shares add up to at most 1."""

    model_config = ConfigDict(extra="forbid")

    self_bets: float = Field(0.19, ge=0, le=1, description="share of the budget for self-bets (tier 0)")
    explanations: float = Field(0.19, ge=0, le=1, description="share for betting explanations (tier 2)")
    battery: float = Field(0.2, ge=0, le=1, description="share for the battery (tiers 1 and 2)")
    trainer_metrics: float = Field(0.05, ge=0, le=1, description="share for the trainer's own metrics")
    requests: float = Field(0.05, ge=0, le=1, description="share for streams about single requests")
    reference: float = Field(0.03, ge=0, le=1, description="share for leaving the band of reference runs ([reference])")
    contract: float = Field(0.03, ge=0, le=1, description="share for leaving the declared contract ([contract])")
    reserve: float = Field(0.01, ge=0, le=1, description="share kept for self-bets and explanations born later")
    second_pages: float = Field(0.25, ge=0, le=1, description="share kept for second pages of an open incident")

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        total = sum(getattr(self, name) for name in type(self).model_fields)
        if total > 1 + 1e-9:
            raise ValueError(f"the shares add up to {total:g}; they must add up to 1 or less, or the budget is overspent")
        return self


class BatteryConfig(BaseModel):
    """The battery: contrasts of the mismatch over replicas, positions and versions, beyond what certainty explains."""

    model_config = ConfigDict(extra="forbid")

    warmup_batches: int = Field(140, ge=20, description="batches learnt from before the first bet, delay_batches apart; shown as learning")
    delay_batches: int = Field(30, ge=1, description="a batch teaches the baseline only this many batches later")
    memory_batches: int = Field(800, ge=40, description="the baseline forgets with this time constant")
    dead_band_ratio: float = Field(1.01, ge=1, description="a rise of mean |d| by less than this factor is not worth a page")
    rebaseline_on: tuple[Literal["engine_restart", "engine_config"], ...] = Field(
        (), description="changes of an engine after which the battery learns again by itself; a faulty upgrade is such a change too")
    min_tokens: int = Field(50, ge=1, description="a slice with fewer scored tokens in a batch is left out of it")


class FactsConfig(BaseModel):
    """Grace periods and counts of the hard facts."""

    model_config = ConfigDict(extra="forbid")

    startup_seconds: float = Field(600, ge=0, description="patience with a part that has never been seen since the start")
    engine_gone_seconds: float = Field(120, ge=0, description="an engine that stops answering for this long is unreachable")
    no_rollouts_seconds: float = Field(300, ge=0, description="no rollout for this long, while one came before, is a fact")
    tap_silent_seconds: float = Field(30, ge=0, description="an engine that answers while its tap sends no heartbeat for this long")
    scorer_behind_seconds: float = Field(600, ge=0, description="the oldest unscored rollout may wait this long")
    weights_still_versions: int = Field(
        20, ge=1, description="an engine still on a version after the trainer published this many newer ones"
    )
    same_digest_versions: int = Field(5, ge=2, description="this many successive version labels with the same weights")
    nonfinite_tokens: int = Field(1, ge=1, description="non-finite logprobs in one batch that page")
    zero_tokens: int = Field(1, ge=1, description="zero logprobs in one batch, where the trainer expects less than -0.05 nats, that page")
    disk_free_mb: float = Field(256, ge=0, description="free space of the store's disk below this is a fact, MiB; 0 = never")
    store_refusing_seconds: float = Field(60, ge=0, description="the store may refuse to write for this long")
    forget_after_batches: int = Field(3, ge=1, description="a fact absent for this many batches may page again")


class DetectorsConfig(BaseModel):
    """When does a difference become an alarm? One budget for everything."""

    model_config = ConfigDict(extra="forbid")

    false_alarms: str = Field("1 per 30 days", description="how many false statistical pages you accept")
    dead_band_nats: float = Field(0.005, ge=0, description="a median error of the engine's logprob up to this is accepted")
    bet_scale_nats: float = Field(0.3, gt=0, description="explanations that differ from the expected view by less than this, summed over a block of tokens, bet less")
    bet_fractions: tuple[float, ...] = Field((0.3, 0.8), description="fractions bet by the explanations")
    self_bet_tilts: tuple[float, ...] = Field((-0.6, -0.3, -0.1, 0.1, 0.3, 0.6), description="tilts of the self-bets, log-odds")
    weights: WeightsConfig = Field(default_factory=WeightsConfig, description="how the budget is split")
    battery: BatteryConfig = Field(default_factory=BatteryConfig, description="the battery's baseline and bets")
    requests: RequestsConfig = Field(default_factory=RequestsConfig, description="single corrupted rollouts")
    facts: FactsConfig = Field(default_factory=FactsConfig, description="hard facts: grace periods and counts")

    @field_validator("false_alarms")
    @classmethod
    def _readable(cls, text: str) -> str:
        parse_period_seconds(text)
        return text

    @field_validator("self_bet_tilts")
    @classmethod
    def _distinct_tilts(cls, tilts: tuple[float, ...]) -> tuple[float, ...]:
        if not tilts or 0 in tilts or len(set(tilts)) < len(tilts) or max(map(abs, tilts)) > 2:
            raise ValueError("give distinct tilts between -2 and 2, without 0")
        return tilts

    @model_validator(mode="after")
    def _fractions_keep_wealth_positive(self) -> Self:
        limit = largest_fraction()
        fractions = self.bet_fractions
        if not fractions or min(fractions) <= 0 or max(fractions) >= limit or len(set(fractions)) < len(fractions):
            raise ValueError(
                f"bet_fractions must be distinct, above 0 and below {limit:.3f}"
            )
        return self
