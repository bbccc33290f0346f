"""How trainers lay their weights out: one table. docs/weights.md says the same with the trainer's side of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from collector.config import WeightsConfig
from collector.records import WeightVersion
from collector.weights.checkpoint import inspect

Kind = Literal["any", "model", "adapter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One way versions lie in a folder. Every kind must be whole by its safetensors headers, with or without a marker."""

    markers: tuple[str, ...]  # any of these files, written last, ends the wait
    version_regex: str  # the folder's whole name; the first group that matched is the label
    unmarked: bool  # believe a folder without a marker once it is whole and at rest
    kind: Kind  # model: config.json and all tensors; adapter: adapter_config.json and adapter_model.safetensors
    note: str  # what the trainer has to be told, for docs and `klaxon check`


LAYOUTS = {
    "auto": Layout(markers=("COMPLETE", "STABLE"), unmarked=True, kind="any",
                   version_regex=r"(?:global_step_?|step_|checkpoint-|iter_|weight_update_v|weight_v)0*(\d+)|(.+)",
                   note="any of the layouts below; a number behind a known word is the label, else the whole name"),
    "marker": Layout(markers=("COMPLETE",), version_regex="(.+)", unmarked=True, kind="model",
                     note="one folder a version, a marker written last; what klaxon_tap.publish_weights writes"),
    "prime-rl": Layout(markers=("STABLE",), version_regex=r"step_(\d+)", unmarked=False, kind="any",
                       note="dir = <output_dir>/broadcasts; keep a few: the trainer deletes broadcasts that are behind"),
    "hf-checkpoint": Layout(markers=("COMPLETE", "trainer_state.json"), version_regex=r"checkpoint-(\d+)", unmarked=True, kind="any",
                            note="dir = the Trainer's output_dir; label = the step of the checkpoint; sharded (FSDP) checkpoints are refused"),
    "slime": Layout(markers=("COMPLETE",), version_regex=r"weight_v0*(\d+)", unmarked=True, kind="model",
                    note="dir = --update-weight-disk-dir, with --update-weight-mode full --update-weight-transport disk --update-weight-disk-keep-files"),
    "areal": Layout(markers=("COMPLETE",), version_regex=r"weight_update_v0*(\d+)", unmarked=True, kind="any",
                    note="weight_update_mode = disk and clear_checkpoint_after_load = False: AReaL deletes a version once its engines have it"),
    "lora": Layout(markers=("COMPLETE", "STABLE", "trainer_state.json"), unmarked=True, kind="adapter",
                   version_regex=r"(?:global_step_?|step_|checkpoint-|lora_|adapter_)0*(\d+)|(.+)",
                   note="adapter_config.json + adapter_model.safetensors a version, and [weights] base: merged when loaded"),
}
"""Name of [weights] layout → its rules."""


def layout_of(config: WeightsConfig) -> Layout:
    """The configured layout; a marker or version_regex of the config's own replaces the layout's."""
    layout = LAYOUTS[config.layout]
    if config.marker:
        layout = replace(layout, markers=(config.marker,))
    if config.version_regex:
        layout = replace(layout, version_regex=config.version_regex)
    return replace(layout, unmarked=layout.unmarked and config.accept_unmarked)


def label_of(name: str, pattern: re.Pattern[str]) -> str | None:
    """The version label in a folder's name; None when it is no version.

    >>> label_of("weight_v000123", re.compile(LAYOUTS["slime"].version_regex))
    '123'
    """
    match = pattern.fullmatch(name)
    return next((group for group in match.groups() if group), None) if match else None


def look(folder: str | Path, *, version: str, config: WeightsConfig) -> WeightVersion:
    """The version in a folder by the rules of the configured layout.

    Raises:
        Unavailable: missing, incomplete or of another kind; the text names the file and what to do.
    """
    layout = layout_of(config)
    return inspect(folder, version=version, markers=layout.markers, kind=layout.kind, base=config.base)
