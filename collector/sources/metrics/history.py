"""A whole run's metrics, read at once: what reference bands are learnt from and comparisons are made of.

A run is named by a path (JSON lines, a W&B run folder or `.wandb` file, a TensorBoard log folder or event file; told by what is there) or
by `wandb:entity/project/run_id` (the W&B server).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collector.errors import ConfigError, InputError
from collector.sources.lines import json_lines
from collector.sources.metrics.names import NameMap
from collector.sources.metrics.registry import SOURCES
from collector.sources.metrics.source import MetricsRow, row_of
from collector.sources.metrics.tensorboard import PATTERN
from collector.sources.metrics.wandb_run import newest_file

API = "wandb:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One metric of one run: steps int64 [K], ascending, and values float64 [K], finite. The last value logged for a step counts."""

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One run under standard names where they are known."""

    name: str
    series: dict[str, Series]
    framework: str | None
    nonfinite: dict[str, int]  # metric → values left out for being NaN or infinite
    refused: tuple[InputError, ...]


def read_history(run: str, names: NameMap | None = None) -> History:
    """Everything the run has logged.

    Raises:
        ConfigError: nothing Klaxon can read stands there, or the library it needs is missing.
        InputError: it holds no metric at all.
        Unavailable: the W&B server does not answer.
    """
    names = names or NameMap()
    rows, refused = list[MetricsRow](), list[InputError]()
    for item in _rows(run):
        (refused if isinstance(item, InputError) else rows).append(item)
    for row in rows:
        names.standard(row.values)  # the framework is told by all the names, not by those of the first step
    values: dict[str, dict[int, float]] = defaultdict(dict)
    nonfinite: dict[str, int] = defaultdict(int)
    for row in rows:
        for name, value in names.standard(row.values).items():
            if math.isfinite(value):
                values[name][row.step] = value
            else:
                nonfinite[name] += 1
    if not values:
        reason = f"no metric found; {len(refused)} lines refused, the first: {refused[0]}" if refused else "no metric found"
        raise InputError(reason, where=run)
    return History(name=run, series={name: _series(steps) for name, steps in sorted(values.items())}, framework=names.framework,
                   nonfinite=dict(nonfinite), refused=tuple(refused))


def kind_of(run: str) -> str:
    """Which source reads it.

    Raises:
        ConfigError: none does.
    """
    path = Path(run)
    if run.startswith(API):
        return "wandb_api"
    if not path.exists():
        raise ConfigError(f"{run}: no such file or folder; a run is a JSONL file, a W&B run folder, a TensorBoard folder, or wandb:entity/project/run_id")
    if path.is_file():
        if path.suffix == ".wandb":
            return "wandb"
        return "tensorboard" if "tfevents" in path.name else "jsonl"
    if newest_file(path) is not None:
        return "wandb"
    if next(path.rglob(PATTERN), None) is not None:
        return "tensorboard"
    raise ConfigError(f"{run}: holds neither a W&B run nor TensorBoard event files; for JSON lines name the file itself")


def _rows(run: str) -> Iterator[MetricsRow | InputError]:
    kind = kind_of(run)
    if kind == "jsonl":  # a whole file: its last line may lack the newline a tail waits for
        for where, item in json_lines(run):
            wrong = item if isinstance(item, InputError) else None if isinstance(item, dict) else InputError("an object is expected", where=where)
            yield wrong or row_of(item, where=where, now=0.0)
        return
    source = SOURCES[kind](run.removeprefix(API))
    while found := list(source.poll(0.0)):  # a poll reads a few megabytes at most
        yield from found
        if kind == "wandb_api":
            return


def _series(steps: dict[int, float]) -> Series:
    ordered = sorted(steps)
    return Series(steps=np.array(ordered, np.int64), values=np.array([steps[step] for step in ordered], np.float64))
