"""Configuration of [sources], [metrics] and [sampler]."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from collector.errors import ConfigError
from collector.sources.formats import format_named
from collector.sources.metrics.names import STANDARD, NameMap

FrameworkName = Literal["auto", "none", "verl", "TRL", "OpenRLHF", "NeMo-RL", "PipelineRL", "prime-rl", "SkyRL", "slime", "open-instruct", "AReaL"]


class FileSource(BaseModel):
    """One entry of sources.files."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(min_length=1, description="file, folder, or redis://HOST:PORT/KEY; it may appear later")
    format: str = Field("", description="name of a rollout format; empty = recognised by its content")
    tokenizer: str = Field("", description="folder of a tokenizer, for formats that keep text only")
    allow_pickle: bool = Field(False, description="read pickles, through a restricted unpickler")
    version_at_start: bool = Field(False, description="the version at the start of a request holds for all its tokens")

    @field_validator("format")
    @classmethod
    def _known(cls, name: str) -> str:
        if name:
            try:
                format_named(name)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return name


class SourcesConfig(BaseModel):
    """[sources]: where rollouts come from."""

    model_config = ConfigDict(extra="forbid")

    tap: bool = Field(True, description="accept rollouts from taps (klaxon-tap in the engine) over the socket and HTTP")
    files: list[str | dict[str, Any]] = Field(
        [], description='files and folders to tail live, as "path" or {path = "…", format = "prime-rl"} (docs/sources.md); they may appear later')
    trainer_files: list[str] = Field([], description="JSONL files the trainer appends its own logprobs to (docs/tap.md), tailed live and joined to the rollouts: tier 1, no weights and no GPU needed")
    join_rollouts: int = Field(4096, ge=1, description="rollouts remembered until the trainer speaks of them")
    join_tokens: int = Field(8_000_000, ge=1, description="tokens of those rollouts at most (about 20 bytes each)")
    join_seconds: float = Field(600.0, gt=0, description="how long the trainer's word waits for a rollout that has not arrived yet")
    inbox_rollouts: int = Field(4096, ge=1, description="rollouts held while the scorer is busy; beyond it taps are told to wait")

    @field_validator("files")
    @classmethod
    def _entries(cls, entries: list[str | dict[str, Any]]) -> list[str | dict[str, Any]]:
        for entry in entries:
            if isinstance(entry, dict):
                FileSource.model_validate(entry)
        return entries

    @property
    def tailed(self) -> list[FileSource]:
        """The entries of `files`, each as a table."""
        return [FileSource(path=entry) if isinstance(entry, str) else FileSource.model_validate(entry) for entry in self.files]


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

    detect: list[str] = Field(
        ["clip_rate", "kl", "mismatch_kl", "mismatch_abs_d", "ess", "entropy", "reward", "reward_std", "zero_std_share", "advantage_std", "loss",
         "value_loss", "grad_norm"],
        description="metrics (standard names) that bet on leaving their own past, up or down, out of the one false-alarm budget; [] = none")

    @field_validator("detect")
    @classmethod
    def _standard(cls, names: list[str]) -> list[str]:
        if unknown := sorted(set(names) - set(STANDARD)):
            raise ValueError(f"{', '.join(unknown)}: no standard name; those are {', '.join(STANDARD)}")
        return names

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
    hint_probability: float = Field(0.5, ge=0, le=1, description="second chance of a rollout that looks odd (loops, unusual length, a very unlikely or a non-finite token, a trainer that disagrees)")
    hint_share: float = Field(0.2, ge=0, le=1, description="the hint coin spends at most this share of the budget, so that faults without a hint are not missed for it")
    seed: int = Field(20261121, description="seed of both coins")
