"""[exports]: who else gets Klaxon's numbers. Prometheus needs no key: /metrics is always there."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class WandbConfig(BaseModel):
    """[exports.wandb]: Klaxon's numbers as `klaxon/*` in Weights & Biases, incidents as alerts; needs `pip install klaxon-rl[wandb]`."""

    model_config = ConfigDict(extra="forbid")

    mode: Literal["off", "online", "offline", "shared"] = Field("off", description="off; online = a run of Klaxon's own beside the trainer's; offline = the same, written to a folder for `wandb sync`; shared = into the trainer's run, which must itself run in shared mode")
    entity: str = Field("", description="team or user; empty = WANDB_ENTITY, the [metrics] source's, or the key's default")
    project: str = Field("", description="project; empty = WANDB_PROJECT, or the [metrics] source's")
    group: str = Field("", description="group of the run, so that it stands beside the trainer's; empty = WANDB_RUN_GROUP, else the name of the run")
    run_id: str = Field("", description="id of the run; shared: the trainer's; empty = one made of the run's name, taken up again after a restart")
    base_url: str = Field("", description="address of the server; empty = WANDB_BASE_URL, else https://api.wandb.ai")
    key_env: str = Field("WANDB_API_KEY", description="environment variable that holds the API key; where it is not set, what `wandb login` stored is used")
    key_file: str = Field("", description="file that holds the API key instead (a mounted secret)")
    dir: str = Field("", description="folder for W&B's own files; empty = <run.dir>")

    @model_validator(mode="after")
    def _shared_needs_a_run(self) -> Self:
        if self.mode == "shared" and not self.run_id:
            raise ValueError('mode = "shared" writes into the trainer\'s run: name it with run_id (the last part of its address)')
        return self


class ExportsConfig(BaseModel):
    """[exports]: who else gets the numbers of every batch. /metrics for Prometheus is always there (docs/monitoring.md)."""

    model_config = ConfigDict(extra="forbid")

    tensorboard_dir: str = Field("", description="folder for TensorBoard event files; empty = none; needs `pip install klaxon-rl[tensorboard]`")
    queue_batches: int = Field(200, ge=1, le=100_000, description="batches held in memory for one exporter; the rest waits in the store")
    wandb: WandbConfig = Field(default_factory=WandbConfig, description="Weights & Biases")
