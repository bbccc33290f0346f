"""Configuration owned by the spine: [run], [daemon], [engine], [trainer]."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from collector.records import LogprobsMode, Sampling


class RunConfig(BaseModel):
    """[run]: which training run this daemon watches. One daemon per run, many taps."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("default", min_length=1, description="name of the run, shown in every alert")
    dir: str = Field("runs/default", description="folder for Klaxon's own state: statistics, incidents, outbox, socket")


class DaemonConfig(BaseModel):
    """[daemon]: addresses and the clock."""

    model_config = ConfigDict(extra="forbid")

    host: str = Field("127.0.0.1", description="address of the read API and of HTTP taps; keep it on loopback unless a token is set")
    port: int = Field(8765, ge=1, le=65535, description="port of the read API and of HTTP taps")
    socket: str = Field("", description="Unix socket for taps on this machine; empty = <run.dir>/klaxon.sock")
    token_env: str = Field("KLAXON_TOKEN", description="environment variable that holds the tap token; unset = no token asked")
    token_file: str = Field("", description="file that holds the tap token instead (a mounted secret)")
    tls_cert: str = Field("", description="certificate (PEM) for taps on other machines; with tls_key the port speaks https, the socket stays as it is")
    tls_key: str = Field("", description="its private key (PEM, a mounted secret)")
    batch_seconds: float = Field(120.0, gt=0, description="length of one batch: the tick of every detector, seconds")
    recovery_batches: int = Field(10, ge=1, description="an alarm resolves when its leading stream is back where it was, at the earliest this many batches after it")
    watermark_seconds: float = Field(10.0, ge=0, description="how long a batch waits for late rollouts after its end, seconds")


    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key belong together: set both or none")
        return self


class EngineConfig(BaseModel):
    """[engine]: where to ask the engine about itself. Klaxon only reads."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field("", description="base URL of the engine, e.g. http://127.0.0.1:8000; empty = known from the tap alone")
    probe_seconds: float = Field(15.0, gt=0, description="how often the engine's health and version are asked, seconds")


class TrainerSamplingConfig(BaseModel):
    """[trainer.sampling]: what the TRAINER assumes the rollouts were sampled with. -1 and 0 switch top_k off."""

    model_config = ConfigDict(extra="forbid")

    temperature: float | None = Field(None, ge=0, description="temperature the trainer divides its logits by")
    top_p: float | None = Field(None, gt=0, le=1, description="nucleus the trainer renormalises over")
    top_k: int | None = Field(None, ge=-1, description="top-k the trainer renormalises over")
    min_p: float | None = Field(None, ge=0, le=1, description="min-p the trainer renormalises over")
    repetition_penalty: float | None = Field(None, gt=0, description="repetition penalty the trainer applies")
    presence_penalty: float | None = Field(None, description="presence penalty the trainer applies")
    frequency_penalty: float | None = Field(None, description="frequency penalty the trainer applies")

    def sampling(self) -> Sampling:
        """The same as a record; None = unknown."""
        return Sampling(**self.model_dump())


class TrainerConfig(BaseModel):
    """[trainer]: the other side of the comparison."""

    model_config = ConfigDict(extra="forbid")

    expected_logprobs_mode: LogprobsMode = Field("processed_logprobs", description="what the trainer takes the engine's logprobs for: processed_logprobs or raw_logprobs")
    metrics_file: str = Field("", description="JSONL the trainer appends its metrics to (one object a step), the same as a jsonl source in [metrics]; empty = pushed by klaxon_tap.push, or read from [metrics] sources")
    sampling: TrainerSamplingConfig = Field(default_factory=TrainerSamplingConfig, description="what the trainer assumes about sampling")


class CanaryConfig(BaseModel):
    """[canary]: probes of Klaxon's own while the run is quiet. The only requests Klaxon ever sends to be sampled; off without prompts."""

    model_config = ConfigDict(extra="forbid")

    prompts: list[str | list[int]] = Field([], description="fixed prompts, as text or token ids, taken in turn; empty = no canaries")
    every_seconds: float = Field(60.0, ge=1, description="one probe at most this often, seconds")
    quiet_seconds: float = Field(60.0, ge=0, description="only when no rollout came for this long, seconds")
    max_tokens: int = Field(64, ge=1, le=4096, description="tokens of one probe")
    logprobs: int = Field(1, ge=0, le=20, description="top logprobs asked for, as the run's own requests do")
