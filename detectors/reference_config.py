"""Configuration of [reference]."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ReferenceConfig(BaseModel):
    """[reference]: trusted runs this one should go like (docs/reference-runs.md)."""

    model_config = ConfigDict(extra="forbid")

    band: str = Field("", description="band file written by `klaxon reference learn`; the trainer's metrics are watched for leaving it; empty = none")
    metrics: list[str] = Field([], description="metrics of the band that are watched; empty = all of it")
