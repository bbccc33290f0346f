"""What `look`, `score` and `diagnose` share: rollouts out of a file or folder of any format, and what was left out on the way."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collector.errors import InputError
from collector.records import Rollout

if TYPE_CHECKING:
    from collector.config import SignalsConfig

PATH_HELP = "file or folder of rollouts, any format (--format help lists them), .gz too; - reads standard input"


def _listed(name: str) -> str:
    """`--format help` lists the formats and needs no FILE."""
    from collector.sources.formats import list_formats

    if name == "help":
        print(f"rollout formats, recognised by their content (docs/sources.md):\n{list_formats()}")
        raise typer.Exit
    return name


FileFormat = Annotated[str, typer.Option("--format", callback=_listed, is_eager=True, help="name of the format, where it is not recognised; `help` lists them")]
TokenizerDir = Annotated[str, typer.Option("--tokenizer", help="folder with tokenizer.json, for formats that keep text only")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="read pickles (through a restricted unpickler); only from writers you trust")]
ConfigFile = Annotated[str, typer.Option("--config", "-c", help="config.toml whose [signals] says what your trainer clips, truncates and masks; without it GRPO's defaults hold")]

NOTES = {
    "duplicates": "repeated rollouts dropped (same request id, same tokens)",
    "clock_skew": "rollouts finished in the future: a clock is wrong",
    "text_only": "records hold text only: no logprobs, nothing to compare",
    "incomplete_files": "files left out: still being written",
    "trainer_side_not_matched": "rollouts whose trainer logprobs do not fit their tokens: left unknown",
    "trainer_files_unreadable": "files of the trainer's side could not be read",
    "padding_rows": "padding rows left out",
}
"""Counter → what it means, for people. Out-of-order times are normal and not mentioned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """Every rollout that can be compared, every refused record, and what was left out."""

    rollouts: list[Rollout]
    refused: list[InputError]
    counts: dict[str, int]

    @property
    def notes(self) -> list[str]:
        """One line for each thing left out."""
        return [f"{self.counts[name]:,} {meaning}" for name, meaning in NOTES.items() if self.counts.get(name)]


def read_contents(file: str, *, format: str = "", tokenizer: str = "", allow_pickle: bool = False) -> Contents:
    """Read it all.

    Raises:
        ConfigError: no such format, or a package it needs is missing.
        InputError: the path cannot be read at all.
    """
    from collector.sources.formats import ReadOptions, is_text_only, read_any

    counts: Counter[str] = Counter()
    options = ReadOptions(tokenizer=tokenizer, allow_pickle=allow_pickle, counts=counts)
    rollouts: list[Rollout] = []
    refused: list[InputError] = []
    for item in read_any(file, format or None, options=options, now=time.time()):
        if isinstance(item, InputError):
            refused.append(item)
        elif not is_text_only(item):
            rollouts.append(item)
    return Contents(rollouts=rollouts, refused=refused, counts={name: count for name, count in counts.items() if count})


def signals_of(config: str) -> SignalsConfig:
    """[signals] of the config file, or the defaults.

    Raises:
        ConfigError: the file cannot be read or is wrong.
    """
    from collector.config import SignalsConfig
    from klaxon.config import load_config

    return load_config(config).signals if config else SignalsConfig()


def limits_said(signals: SignalsConfig, config: str) -> dict[str, Any]:
    """Which limits the rates were counted by: a sentence, and every number for scripts."""
    limits = signals.limits()
    low = "none" if limits.eps_low is None else f"{1 - limits.eps_low:g}"
    high = "none" if limits.eps_high is None else f"{1 + limits.eps_high:g}"
    source = f"[signals] of {config}" if config else "the defaults of [signals]; --config FILE takes yours"
    return {"text": f"limits  {signals.algorithm}, clipped below {low} and above {high} a {limits.level} ({source})",
            "source": config or None, "algorithm": signals.algorithm, **asdict(limits)}


def usable(file: str, *, strict: bool, format: str = "", tokenizer: str = "", allow_pickle: bool = False) -> Contents:
    """The same for the commands that score it.

    Raises:
        InputError: nothing usable remains, or a record was refused and `strict` is set.
    """
    contents = read_contents(file, format=format, tokenizer=tokenizer, allow_pickle=allow_pickle)
    if not contents.rollouts:
        raise nothing_usable(file, contents)
    if strict and contents.refused:
        raise InputError(f"{len(contents.refused)} records refused (--strict), the first: {contents.refused[0]}", where=file)
    return contents


def nothing_usable(file: str, contents: Contents) -> InputError:
    """Why there is nothing to work with."""
    from collector.sources.formats.text_only import INSTEAD

    if contents.counts.get("text_only"):
        return InputError(f"{contents.counts['text_only']:,} records, all text: {INSTEAD.format(name='this framework')}", where=file)
    if not contents.refused:
        return InputError("is empty: no rollout in it", where=file)
    if len(contents.refused) == 1:
        return InputError(f"nothing usable: {contents.refused[0]}", where=file)
    return InputError(f"nothing usable: all {len(contents.refused)} lines refused, the first: {contents.refused[0]}", where=file)
