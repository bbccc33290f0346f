"""What `klaxon reference` and `klaxon compare` share: runs by name, tolerances as people write them, band files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from collector.errors import ConfigError, InputError
from collector.sources.config import MetricsConfig
from collector.sources.metrics.history import History, Series, read_history
from detectors.reference import Band, band_from
from detectors.trainer_metrics import BY_NAME

FRAMEWORK_HELP = "whose metric names to expect; auto = told by the names"


def read_runs(runs: Sequence[str], *, framework: str = "auto") -> dict[str, History]:
    """Every run, in order, with progress on standard error.

    Raises:
        ConfigError, InputError, Unavailable: as collector.sources.metrics.history.read_history; or a run named twice.
    """
    if len(set(runs)) < len(runs):
        raise ConfigError("a run is named twice: it would count as its own witness")
    try:
        config = MetricsConfig.model_validate({"framework": framework})
    except ValueError:
        raise ConfigError(f"--framework {framework!r} is unknown; docs/trainer-metrics.md lists them") from None
    found, console = {}, Console(stderr=True)
    with console.status("reading runs") as status:
        for number, run in enumerate(runs, 1):
            status.update(f"reading {run} ({number} of {len(runs)})")
            found[run] = read_history(run, config.name_map())
    return found


def series_of(runs: Mapping[str, History]) -> dict[str, Mapping[str, Series]]:
    """Run → metric → series."""
    return {name: history.series for name, history in runs.items()}


def choose(runs: Iterable[History], wanted: Sequence[str]) -> list[str]:
    """The metrics to look at: those asked for, else the standard ones every run logs, else all that every run logs.

    Raises:
        InputError: a metric asked for is in none of the runs.
    """
    histories = list(runs)
    logged = set().union(*(history.series for history in histories))
    if unknown := [name for name in wanted if name not in logged]:
        raise InputError(f"no run logs {', '.join(unknown)}; they log {', '.join(sorted(logged)[:20])}", field="--metric")
    if wanted:
        return list(dict.fromkeys(wanted))
    common = logged.intersection(*(history.series for history in histories))
    return [name for name in BY_NAME if name in common] or sorted(common)


def tolerances(given: Sequence[str], *, option: str = "--tolerance") -> dict[str, float]:
    """`10%`, `0.1` or `reward=5%` as metric → fraction ("" = all).

    Raises:
        ConfigError: not one of these.
    """
    found = {}
    for text in given:
        name, _, amount = text.rpartition("=")
        try:
            value = float(amount.removesuffix("%")) / (100 if amount.endswith("%") else 1)
        except ValueError:
            value = -1.0
        if not 0 < value < 10:
            raise ConfigError(f"{option} {text!r}: write 10%, 0.1 or reward=5%")
        found[name] = value
    return found


def read_band(path: str, *, only: Sequence[str] = ()) -> Band:
    """A band file, with the metrics `only` where some are named.

    Raises:
        ConfigError: it cannot be read, or lacks a metric of `only`.
        InputError: it is no band file of this version.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); `klaxon reference learn RUN… -o {path}` writes one") from None
    except ValueError as error:
        raise InputError(f"is not JSON ({error})", where=path) from None
    band = band_from(data, where=path)
    if missing := [name for name in only if name not in band.metrics]:
        raise ConfigError(f"{path} has no band of {', '.join(missing)}; it has {', '.join(band.metrics)}")
    return replace(band, metrics={name: one for name, one in band.metrics.items() if name in only}) if only else band
