"""Configuration of [detectors.requests]."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator


class RequestsConfig(BaseModel):
    """Per-request corruption: single rollouts that are confidently wrong while the rest are fine."""

    model_config = ConfigDict(extra="forbid")

    warmup_rollouts: int = Field(500, ge=50, description="healthy rollouts learnt from before the first bet on single requests")
    delay_rollouts: int = Field(500, ge=0, description="a rollout teaches what is normal only this many rollouts later")
    memory_rollouts: int = Field(4000, ge=200, description="rollouts the normal is learnt from, the newest")
    min_tokens: int = Field(4, ge=1, description="shorter rollouts are not judged")
    bet_fractions: tuple[float, ...] = Field((0.001, 0.01), description="shares of corrupted groups that are bet on")
    suspect_probability: float = Field(1e-4, gt=0, lt=0.1, description="a rollout at most this likely among healthy ones is named as a suspect")

    @field_validator("bet_fractions")
    @classmethod
    def _small(cls, fractions: tuple[float, ...]) -> tuple[float, ...]:
        if not fractions or min(fractions) <= 0 or max(fractions) > 0.5 or len(set(fractions)) < len(fractions):
            raise ValueError("give distinct fractions above 0 and up to 0.5")
        return fractions
