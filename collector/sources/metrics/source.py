"""The seam: a source is polled and yields what is new, one row a step it heard of, or what is wrong with a line.

A source never raises for bad data. It raises Unavailable where the other side does not answer: the next poll tries again.
Opening a source raises ConfigError where it can never work (its library is not installed).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from collector.errors import ConfigError, InputError

NOT_METRICS = frozenset({"step", "at", "time", "_step", "_timestamp", "_runtime", "_wandb"})
STEP_NAMES = ("step", "_step")
TIME_NAMES = ("at", "_timestamp", "time")


class MetricsRow(NamedTuple):
    """What the trainer logged under one step; the same step may come again with other names."""

    step: int
    values: dict[str, float]  # under the names the trainer logs
    at: float  # UTC seconds


class MetricsSource(Protocol):
    """A place trainer metrics are read from."""

    name: str  # kept with each stored value

    def poll(self, now: float) -> Iterator[MetricsRow | InputError]:
        """What is new since the last poll; `now` (UTC seconds) stands in where a row carries no time."""
        ...


def row_of(item: Mapping[str, Any], *, where: str, now: float) -> MetricsRow | InputError:
    """A logged object {step, at?, name: number, …} as a row; what is no number is left out, a dict is flattened with dots."""
    step = next((item[name] for name in STEP_NAMES if name in item), None)
    if not _finite(step) or step != int(step):
        return InputError("a whole number is expected", field="step", where=where)
    at = next((item[name] for name in TIME_NAMES if _finite(item.get(name))), now)
    return MetricsRow(step=int(step), values=dict(_numbers(item)), at=float(at))


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(item: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in item.items():
        if not prefix and name in NOT_METRICS:
            continue
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


def needed(module: str, *, extra: str) -> ModuleType:
    """An optional library.

    Raises:
        ConfigError: it is not installed; the text names the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.split(".")[0]
        raise ConfigError(f'metrics.sources: reading this needs {library}, which is not installed ({error}); '
                          f'pip install "klaxon-rl[{extra}]"') from None
