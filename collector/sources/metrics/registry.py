"""The metrics sources by type; others by "module:Class" with the same two methods (MetricsSource)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

from collector.errors import ConfigError
from collector.sources.config import MetricsSourceConfig
from collector.sources.metrics.jsonl import JsonlMetrics
from collector.sources.metrics.source import MetricsSource
from collector.sources.metrics.tensorboard import TensorBoardMetrics
from collector.sources.metrics.wandb_api import WandbApi
from collector.sources.metrics.wandb_run import WandbRun

SOURCES: dict[str, Callable[[str], MetricsSource]] = {
    "jsonl": JsonlMetrics, "wandb": WandbRun, "wandb_api": WandbApi, "tensorboard": TensorBoardMetrics,
}


def open_sources(configs: Iterable[MetricsSourceConfig], *, metrics_file: str = "") -> list[MetricsSource]:
    """The configured sources, `metrics_file` (the older key) first.

    Raises:
        ConfigError: a type nobody knows, or a library that is not installed.
    """
    first: list[MetricsSource] = [JsonlMetrics(metrics_file)] if metrics_file else []
    return first + [_class_of(config.type)(config.path) for config in configs]


def _class_of(kind: str) -> Callable[[str], MetricsSource]:
    if kind in SOURCES:
        return SOURCES[kind]
    module, colon, name = kind.partition(":")
    try:
        if colon:
            return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"metrics.sources: type {kind!r} cannot be loaded ({error})") from None
    raise ConfigError(f"metrics.sources: type {kind!r} is none of {', '.join(SOURCES)}, and no \"module:Class\"")
