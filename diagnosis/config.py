"""The [diagnosis] section of config.toml."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class DiagnosisConfig(BaseModel):
    """[diagnosis]: explanations compete on the same rollouts; the residual decides, on held-out tokens."""

    model_config = ConfigDict(extra="forbid")

    memory_rollouts: int = Field(1000, ge=1, description="recent rollouts kept in memory for diagnosis and impact")
    max_rollouts: int = Field(64, ge=4, description="rollouts one diagnosis re-scores at most, those nearest the alarm")
    max_tokens: int = Field(4000, ge=100, description="completion tokens one diagnosis re-scores, about; of more, evenly spread rollouts are taken")
    max_versions: int = Field(4, ge=0, description="older weight versions tried on every rollout; where there are more, a few rollouts choose among up to twice as many")
    min_tokens: int = Field(400, ge=1, description="held-out tokens a confident verdict needs at least")
    min_rollouts: int = Field(6, ge=4, description="held-out rollouts a confident verdict needs at least")
    margin_nats: float = Field(0.004, ge=0, description="a verdict must beat every rival's residual by this much, nats")
    confidence_z: float = Field(2.6, gt=0, description="and by this many standard errors, clustered by rollout (2.6 = 99 %)")
    at_floor_ratio: float = Field(2.0, gt=1, description="a residual up to this many times the intrinsic floor is explained")
    fp32_floor_nats: float = Field(0.002, gt=0, description="the floor is taken to be at least this (kernels differ even in float32)")
    temperature_min: float = Field(0.2, gt=0, description="lowest engine temperature tried")
    temperature_max: float = Field(2.0, gt=0, description="highest engine temperature tried")
    experiments: list[Literal["caching", "batch", "self_score"]] = Field(default_factory=list, description='canary requests Klaxon may send the engine after an alarm: '
                                                           '"caching" (cached prompts against computed anew), "batch" (alone against together), "self_score" (decoded against computed in one pass); empty = none')
    signatures: str = Field("", description="a TOML file of your own fault signatures, added to Klaxon's (docs/signatures.md); empty = none")
