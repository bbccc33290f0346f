"""Configuration of [store]."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

TokenTier = Literal["off", "numbers", "hashes", "ids", "text"]
"""What is kept a token of the rollouts furthest off, each with all before it: nothing, d and its parts, keyed hashes of the ids, the ids, the text."""


class StoreConfig(BaseModel):
    """[store]: the DuckDB file, owned by the daemon alone. No rollout text and no token ids, unless `tokens` says so."""

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
    tokens: TokenTier = Field("numbers", description="what is kept a token of the rollouts furthest off: off, numbers (logprobs, entropy, rank; no ids), "
                              "hashes (keyed, of the ids), ids, text; private data from hashes on, never in an alert")
    tokens_tokenizer: str = Field("", description="folder of the tokenizer that tokens = \"text\" reads them with, where the weights' own folder has none")
    tokens_worst: int = Field(3, ge=0, le=100, description="rollouts a batch whose tokens are kept: those furthest off")
    tokens_ordinary: int = Field(1, ge=0, le=100, description="rollouts a batch beside them, drawn by chance, to compare with")
    tokens_longest: int = Field(1024, ge=1, le=32_768, description="completion tokens kept of one rollout: of a longer one the stretch furthest off")
    tokens_prompt: int = Field(256, ge=0, le=32_768, description="the last prompt tokens kept with it, where ids, hashes or text are kept at all")
    tokens_rollouts: int = Field(10_000, ge=1, description="rollouts whose tokens are kept at most; the oldest go first")
    tokens_ttl_days: float = Field(7.0, gt=0, description="numbers of tokens are deleted after this many days")
    tokens_words_ttl_hours: float = Field(72.0, gt=0, description="hashes, ids and text of tokens are deleted after this many hours")
