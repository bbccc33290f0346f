"""Configuration of [sources], [metrics] and [sampler]."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from collector.sources.metrics.names import STANDARD, NameMap

FrameworkName = Literal["auto", "none", "verl", "TRL", "OpenRLHF", "NeMo-RL", "PipelineRL", "prime-rl", "SkyRL", "slime", "open-instruct", "AReaL"]


class SourcesConfig(BaseModel):
    """[sources]: where rollouts come from."""

    model_config = ConfigDict(extra="forbid")

    tap: bool = Field(True, description="accept rollouts from taps (klaxon-tap in the engine) over the socket and HTTP")
    files: list[str] = Field([], description="rollout JSONL files to tail live (they may appear later)")
    inbox_rollouts: int = Field(4096, ge=1, description="rollouts held while the scorer is busy; beyond it taps are told to wait")


class MetricsSourceConfig(BaseModel):
    """One place trainer metrics are read from."""

    model_config = ConfigDict(extra="forbid")

    type: str = Field(description='jsonl, wandb (a run folder on this machine, or the `wandb` folder above it), wandb_api, tensorboard, or "module:Class"')
    path: str = Field(min_length=1, description="file or folder; for wandb_api entity/project/run_id")


class MetricsConfig(BaseModel):
    """[metrics]: where the trainer's own metrics are read from, besides what it pushes, and what it calls them."""

    model_config = ConfigDict(extra="forbid")

    framework: FrameworkName = Field("auto", description="whose metric names to expect: auto (told by the names that appear), none (keep every name), verl, TRL, OpenRLHF, NeMo-RL, PipelineRL, prime-rl, SkyRL, slime (and miles), open-instruct or AReaL")
    names: dict[str, str] = Field({}, description="standard name = the name your trainer logs, e.g. { reward = \"my/reward\" }; comes before the framework's; standard names: " + ", ".join(STANDARD))
    sources: list[MetricsSourceConfig] = Field([], description="Where trainer metrics are read from. wandb and tensorboard need `pip install klaxon-rl[wandb]` or `[tensorboard]`.")

    @field_validator("names")
    @classmethod
    def _known(cls, names: dict[str, str]) -> dict[str, str]:
        if unknown := sorted(set(names) - set(STANDARD)):
            raise ValueError(f"{', '.join(unknown)}: no standard name; those are {', '.join(STANDARD)}")
        return names

    def name_map(self) -> NameMap:
        """The map these keys describe."""
        return NameMap(own=self.names, framework=None if self.framework == "auto" else self.framework)


class SamplerConfig(BaseModel):
    """[sampler]: which rollouts are scored. Base coin first, hint coin second."""

    model_config = ConfigDict(extra="forbid")

    tokens_per_minute: int = Field(60_000, ge=1, description="budget of tokens to score a minute (completions, and each group's prompt once)")
    min_probability: float = Field(0.01, gt=0, le=1, description="the base coin never falls below this")
    hint_probability: float = Field(0.25, ge=0, le=1, description="second chance of a rollout that looks odd (loops, a very unlikely or a non-finite token)")
    seed: int = Field(20261121, description="seed of both coins")
