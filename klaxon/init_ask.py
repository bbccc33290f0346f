"""The questions of `klaxon init` on a terminal. Every one has a default, so that Enter alone ends in a config that works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.prompt import Confirm, Prompt

from collector.errors import ConfigError
from klaxon.init_config import receiver_of
from klaxon.presets import Preset, preset_named, presets

OTHER = "other"
ENGINE = "http://127.0.0.1:8000"
RECEIVER_HELP = "slack=CHANNEL (token in $SLACK_BOT_TOKEN), slack_webhook=env:NAME, pagerduty=env:NAME, webhook=file:PATH, …"


def ask_framework(console: Console) -> Preset | None:
    """Which framework trains; None = another one."""
    console.print("Which framework trains?", style="bold")
    for preset in presets().values():
        console.print(f"  {preset.name:14} {preset.about}", highlight=False, markup=False)
    console.print(f"  {OTHER:14} rollouts by the tap, or files in Klaxon's own format", highlight=False)
    while True:
        name = Prompt.ask("framework", default=OTHER, console=console)
        if name == OTHER:
            return None
        try:
            return preset_named(name)
        except ConfigError as error:
            console.print(str(error), style="yellow", markup=False)


def ask_engine(console: Console) -> str:
    """Its address; "" = none."""
    found = Prompt.ask("engine address, - for none", default=ENGINE, console=console)
    return "" if found.strip() == "-" else found.strip()


def ask_rollouts(console: Console, preset: Preset | None) -> str:
    """File or folder; "" = the tap, or not known yet."""
    if preset is None or preset.rollouts.by != "files":
        return ""
    return Prompt.ask(f"where {preset.title} writes rollouts ({preset.rollouts.path}), empty = the tap, or later", default="", show_default=False, console=console).strip()


def ask_weights(console: Console, preset: Preset | None) -> str:
    """Folder of versions; "" = none or announced."""
    known = f" ({preset.weights.dir})" if preset and preset.weights.dir else ""
    return Prompt.ask(f"folder the trainer publishes weight versions in{known}, empty = none, or announced", default="", show_default=False, console=console).strip()


def ask_temperature(console: Console) -> float:
    """What the trainer divides its logits by."""
    while True:
        text = Prompt.ask("temperature the TRAINER assumes", default="1.0", console=console)
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if 0 <= value < float("inf"):
            return value
        console.print("a number, e.g. 1.0 or 0.7", style="yellow")


def ask_receivers(console: Console) -> list[dict[str, Any]]:
    """Who hears of alerts; [] = the daemon's standard error alone."""
    found: list[dict[str, Any]] = []
    console.print(f"Who hears of alerts? {RECEIVER_HELP}", highlight=False, markup=False)
    while text := Prompt.ask("receiver, empty = no more", default="", show_default=False, console=console).strip():
        try:
            found.append(receiver_of(text))
        except ConfigError as error:
            console.print(str(error), style="yellow", markup=False)
    return found


def ask_page(console: Console) -> bool:
    """Will the page run here, so that alerts link to it?"""
    return Confirm.ask("link alerts to the page on this machine", default=True, console=console)


def ask_overwrite(console: Console, path: Path) -> bool:
    """Replace an existing file, keeping the old one beside it?"""
    return Confirm.ask(f"{path} exists; write a new one and keep the old as {path.name}.bak", default=False, console=console)
