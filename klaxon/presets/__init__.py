"""What Klaxon knows of each trainer before it has seen one file of it: a TOML file a framework, read into `Preset`.

`klaxon init` writes config.toml from it, docs/quickstarts/ is rendered from it (`python -m klaxon.presets`), and `klaxon check`
names the preset that fits where files turn out to be another framework's. What is not in a preset is unknown.
"""

from __future__ import annotations

import difflib
import tomllib
from functools import cache
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from collector.config import LayoutName
from collector.errors import ConfigError
from collector.sources.config import FrameworkName

TrainerSide = Literal["push", "rollouts", "none"]


class Rollouts(BaseModel):
    """Where a framework's rollouts can be had."""

    model_config = ConfigDict(extra="forbid")

    by: Literal["files", "tap"]  # what works best with nothing but settings
    formats: list[str] = []  # names of collector/sources/formats, best first; [] = it writes none
    path: str = ""  # where the best of them lies, as the framework's own settings name it
    allow_pickle: bool = False


class Weights(BaseModel):
    """How versions of the weights can be followed."""

    model_config = ConfigDict(extra="forbid")

    layout: LayoutName = "auto"
    dir: str = ""  # as the framework's own settings name it; "" = it writes no folder a version
    how: str  # one sentence


class Page(BaseModel):
    """The sentences of a quickstart that no other data hold; a list item is a bullet."""

    model_config = ConfigDict(extra="forbid")

    mid_run: list[str]  # works beside a running job
    restart: list[str]  # needs the engine (or the trainer) started anew
    engine: list[str]  # what to set on the engine
    trainer: list[str]  # the trainer's side: lines of code or settings
    unknown: list[str]  # what stays unknown whatever is set


class Preset(BaseModel):
    """One framework."""

    model_config = ConfigDict(extra="forbid")

    name: str  # as typed after --framework
    title: str  # as its authors write it
    complete: bool  # False: a start, less of it was checked against its files
    about: str  # one line
    metrics: FrameworkName | Literal["auto"]  # [metrics] framework
    trainer_logprobs: TrainerSide  # rollouts: in the files; push: klaxon_tap.push_logprobs
    rollouts: Rollouts
    weights: Weights
    config: dict[str, dict[str, Any]] = Field({}, description="section → key → value, what differs from Klaxon's defaults")
    why: dict[str, str] = {}  # "section.key" → comment in config.toml
    page: Page

    @property
    def says_sampling(self) -> bool:
        """Do its own files say what was sampled with, so that nothing has to be assumed."""
        from collector.sources.formats import FORMATS

        return bool(self.rollouts.formats) and all("sampling" in FORMATS[name].knows for name in self.rollouts.formats)

    @property
    def tier_of_files(self) -> int | None:
        """The tier its files alone reach; None where they hold nothing to compare."""
        from collector.sources.formats import FORMATS

        if self.rollouts.by != "files":
            return None
        return 1 if "trainer logprobs" in FORMATS[self.rollouts.formats[0]].knows else 0


@cache
def presets() -> dict[str, Preset]:
    """Every preset by name, the complete ones first."""
    files = [file for file in resources.files(__name__).iterdir() if file.name.endswith(".toml")]
    found = [Preset.model_validate(tomllib.loads(file.read_text(encoding="utf-8"))) for file in files]
    return {one.name: one for one in sorted(found, key=lambda one: (not one.complete, one.name))}


def preset_named(name: str) -> Preset:
    """The preset, however its name is spelt (`NeMo_RL`, `nemorl`).

    Raises:
        ConfigError: there is none; the text lists them, the nearest first.
    """
    spelt = {_plain(known): known for known in presets()}
    if _plain(name) in spelt:
        return presets()[spelt[_plain(name)]]
    near = difflib.get_close_matches(_plain(name), spelt, n=1, cutoff=0.5)
    hint = f"did you mean {spelt[near[0]]}? " if near else ""
    raise ConfigError(f"--framework {name!r} is unknown; {hint}There are {', '.join(presets())}. "
                      "Another one: leave --framework away, and see docs/sources.md for a format of your own")


def preset_of_format(name: str) -> Preset | None:
    """The preset whose files are of this format; None for Klaxon's own."""
    found = [one for one in presets().values() if name in one.rollouts.formats]
    return next((one for one in found if one.name == name), found[0] if found else None)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
