"""Configuration of [store]."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class StoreConfig(BaseModel):
    """[store]: the DuckDB file, owned by the daemon alone. Statistics only; no rollout text, no token ids."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field("", description="the DuckDB file; empty = <run.dir>/klaxon.duckdb")
    memory_limit: str = Field("512MB", pattern=r"^\d+(\.\d+)?\s*([KMGT]i?B)$",
                              description="memory DuckDB may use; the trainer lives on this machine too")
    threads: int = Field(2, ge=1, description="threads DuckDB may use")
    checkpoint_seconds: float = Field(600.0, gt=0, description="how often the write-ahead log is folded into the file, seconds")
    rollouts_ttl_days: float = Field(7.0, gt=0, description="per-rollout statistics are deleted after this many days")
    evidence_ttl_days: float = Field(30.0, gt=0, description="per-stream evidence is deleted after this many days")
    metrics_ttl_days: float = Field(365.0, gt=0, description="trainer metrics, events and weight versions are deleted after this many days")
    seal: list[Literal["series", "slices", "rollouts", "evidence", "metrics", "events"]] = Field(
        ["series", "rollouts", "events"], description="tables of which each hour that is over is also written to <run.dir>/sealed as Parquet, for other tools and beyond the times above; [] = none")
    sealed_ttl_days: float = Field(365.0, gt=0, description="sealed hours are deleted after this many days")
    max_gb: float = Field(0.0, ge=0, description="the store keeps to this many GB: beyond it the oldest evidence, then rollout statistics, then batches go before their time, never the newest day; 0 = no limit")
    batches_ttl_days: float = Field(365.0, gt=0, description="batches (what a replay needs) are deleted after this many days")
