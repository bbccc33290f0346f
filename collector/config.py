"""Configuration of [shadow], [weights], [signals] and [contract]."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from collector.limits import PRESETS, Algorithm, Limits

BodyDtype = Literal["bfloat16", "float16", "float32", "float64"]
LayoutName = Literal["auto", "marker", "prime-rl", "hf-checkpoint", "slime", "areal", "lora"]
HeadDtype = Literal["float32", "bfloat16", "float16", "float64"]
Range = tuple[float, float]


class ShadowConfig(BaseModel):
    """[shadow]: the second scorer. body_dtype and head_dtype declare the TRAINER's precision, not the engine's."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = Field(True, description="score rollouts with the trainer's weights (tier 2); needs `pip install klaxon-rl[scorer]`")
    body_dtype: BodyDtype = Field("bfloat16", description="precision of the trainer's forward up to the head (float64: reference only, slow)")
    head_dtype: HeadDtype = Field("float32", description="precision of the trainer's head: logits and log-softmax (float64: reference only, slow)")
    kv_on_update: Literal["reset", "keep"] = Field("reset", description="what the engine does with running requests' KV at a weight update: reset (recompute) or keep (continue new weights on old KV, on purpose)")
    device: str = Field("auto", description="auto (cuda if there is one), cpu, cuda, cuda:1, …")
    devices: list[str] = Field([], description="several devices instead, e.g. [\"cuda:0\", \"cuda:1\"]; empty = the one above")
    split: Literal["layers", "replicas"] = Field("layers", description="several devices share one model by its layers, or each holds a replica and scores its share of the rollouts")
    vocab_size: int = Field(0, ge=0, description="rows of the head in the TRAINER's softmax; 0 = the vocab_size of the model's config.json (rows padded beyond it do not count)")
    versions_held: int = Field(3, ge=1, description="weight versions kept in memory; others are loaded again from disk when needed")
    chunk_tokens: int = Field(1024, ge=1, description="tokens whose logits exist at once, at most")
    logits_mb: int = Field(0, ge=0, description="memory of those logits, at most, MiB; the views take about five times that; 0 = 16 on a CPU, 512 on a GPU")
    forward_tokens: int = Field(0, ge=0, description="tokens of one forward pass; longer rollouts are fed in pieces; 0 = 512 on a CPU, 8192 on a GPU")
    prompt_kv_mb: int = Field(512, ge=0, description="memory for the KV of prompts already computed, so that a shared system prompt runs once a weight version; 0 = none, MiB")
    max_rollout_tokens: int = Field(32768, ge=2, description="a longer rollout (prompt + completion) is refused and counted")
    threads: int = Field(1, ge=1, description="CPU threads of the scorer, so that a trainer on the same machine is not slowed")
    bf16_on_cpu: Literal["auto", "native", "rounded"] = Field("auto", description="bfloat16 matmuls on a CPU: native kernels, or float32 kernels with the same roundings (docs/numerics.md); auto = rounded where the CPU has no bfloat16 unit")
    staleness_share: float = Field(0.1, ge=0, le=1, description="share of the groups that are also scored with the newest weights, to tell staleness from mismatch")
    temperatures: list[float] = Field([0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3], description="grid of the `temperature:…` views")

    @field_validator("temperatures")
    @classmethod
    def _above_zero(cls, values: list[float]) -> list[float]:
        if any(value <= 0 for value in values):
            raise ValueError("a temperature of the grid is not above 0")
        return values


class WeightsConfig(BaseModel):
    """[weights]: where the trainer publishes its weights."""

    model_config = ConfigDict(extra="forbid")

    dir: str = Field("", description="folder whose sub-folders are weight versions, or a glob of them, e.g. runs/r1/weights/step_*; empty = announced versions only")
    announced: bool = Field(True, description="take versions the trainer announces (klaxon_tap.announce_weights, POST /v1/weights), with or without dir; they alone open tier 2 where the scorer is installed")
    layout: LayoutName = Field("auto", description="how the versions lie there (docs/weights.md): auto, marker, prime-rl, hf-checkpoint, slime, areal, lora")
    base: str = Field("", description="folder of the base model, where the versions are LoRA adapters: they are merged onto it when loaded")
    marker: str = Field("", description="file the trainer writes last; a folder with it is believed once its safetensors are whole; empty = the layout's")
    accept_unmarked: bool = Field(True, description="also believe a folder without the marker once its safetensors are whole and unchanged for settle_seconds (prime-rl: never)")
    every: int = Field(1, ge=1, description="score only the rollouts of every N-th version, for models whose versions cannot all be loaded; the others are counted as skipped_by_stride")
    settle_seconds: float = Field(5.0, ge=0, description="how long an unmarked folder must stay unchanged, seconds")
    version_regex: str = Field("", description="how a folder's name gives the version label the engine reports: group 1, e.g. step_(.+); empty = the layout's")
    poll_seconds: float = Field(2.0, gt=0, description="how often the folders are looked at, seconds")

    @field_validator("version_regex")
    @classmethod
    def _one_group(cls, value: str) -> str:
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if value and groups < 1:
            raise ValueError("needs one group in parentheses: the version label, e.g. step_(.+)")
        return value


class SignalsConfig(BaseModel):
    """[signals]: what the trainer clips, truncates and masks, for the rates Klaxon reports. Klaxon itself corrects nothing."""

    model_config = ConfigDict(extra="forbid")

    algorithm: Algorithm = Field("grpo", description="ppo, grpo, dapo, gspo (one ratio a sequence), cispo and reinforce (cut from above only) or dpo (nothing is clipped); sets eps_low and eps_high")
    eps_low: float | None = Field(None, gt=0, lt=1, description="policy ratios below 1 − eps_low count as clipped; unset = the algorithm's")
    eps_high: float | None = Field(None, gt=0, description="policy ratios above 1 + eps_high count as clipped; unset = the algorithm's")
    tis_cap: float = Field(2.0, gt=0, description="token weights are truncated here (verl, slime, NeMo-RL: 2)")
    icepop: Range = Field((0.5, 5.0), description="token weights outside are masked (IcePop)")
    mis: Range = Field((0.5, 2.0), description="token weights outside are masked (slime's MIS)")
    dppo: float = Field(0.2, gt=0, lt=1, description="tokens whose two probabilities differ by more are masked (prime-rl)")
    veto: float = Field(1e-4, gt=0, lt=1, description="token weights below are catastrophic; one of them vetoes its sequence")
    outlier_high: float = Field(100.0, gt=1, description="a sequence with a token weight above this, or below veto, is an outlier (SkyRL)")
    geometric: Range = Field((0.99, 1.01), description="sequences whose geometric mean weight is outside are masked (SkyRL)")
    product: Range = Field((0.5, 2.0), description="sequences whose product of weights is outside are masked (SkyRL, verl)")
    sequence_tis_cap: float = Field(2.0, gt=0, description="products of weights are truncated here (verl 2, SkyRL 5)")
    sequence_mask_cap: float = Field(3.0, gt=0, description="sequences whose product of weights is above are masked (TRL)")
    sequence_k3: float = Field(0.01, gt=0, description="sequences whose mean k3 is above are masked, nats (verl)")
    sequence_tme: float = Field(2.0, gt=1, description="sequences whose mean e^|d| is above are masked (NeMo-RL)")

    @field_validator("icepop", "mis", "geometric", "product")
    @classmethod
    def _around_one(cls, pair: Range) -> Range:
        if not 0 <= pair[0] < 1 < pair[1]:
            raise ValueError("give [low, high] with 0 ≤ low < 1 < high")
        return pair

    def limits(self) -> Limits:
        """The algorithm's clip range with every threshold set here."""
        given = {key: value for key, value in self.model_dump(exclude={"algorithm"}).items() if value is not None}
        return replace(PRESETS[self.algorithm], **given)


class ContractConfig(BaseModel):
    """[contract]: a mismatch this run accepts on purpose; Klaxon pages on leaving it."""

    model_config = ConfigDict(extra="forbid")

    engine_dtype: str = Field("", description="dtype the engine is meant to run in, e.g. bfloat16 or fp8; empty = not declared")
    floor_nats: float | None = Field(None, gt=0, description="accepted mean |d| at the same weight version, nats")
    correction: Literal["none", "tis", "icepop", "mask"] = Field("none", description="what the trainer does about the mismatch: none, tis (truncated importance weights), icepop (mask tokens outside [signals] icepop), mask (outside [signals] mis)")
    cap: float | None = Field(None, gt=1, description="cap of that correction on the policy ratio, e.g. 2.0; Klaxon computes with [signals], and `klaxon check` says where the two differ")
    min_ess: float | None = Field(None, gt=0, lt=1, description="effective share of the tokens that the correction must leave, e.g. 0.95")
