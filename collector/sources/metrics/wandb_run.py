"""Trainer metrics from a W&B run folder on this machine, without a server: live or offline, finished or still running.

`path` is a run folder (wandb/run-…, wandb/offline-run-…), the `wandb` folder above it (the newest run, followed when the
trainer restarts), or a `.wandb` file. Read are, the first that is there: the `.wandb` file (everything logged; up to 32 KiB
late), files/wandb-history.jsonl (old clients), files/wandb-summary.json (the newest values only).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from collector.errors import InputError
from collector.sources.metrics.jsonl import JsonlMetrics
from collector.sources.metrics.source import MetricsRow, needed, row_of
from collector.sources.metrics.wandb_log import WandbLog


class WandbRun:
    """Rows of the history records of a run folder.

    Raises:
        ConfigError: the wandb library, whose protobufs describe the records, is not installed.
    """

    name = "wandb"

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._messages: Any = needed("wandb.proto.wandb_internal_pb2", extra="wandb")
        self._decode_error: Any = needed("google.protobuf.message", extra="wandb").DecodeError
        self._reading: Path | None = None  # the file in hand
        self._log: WandbLog | JsonlMetrics | None = None
        self._summary: dict[str, Any] = {}

    def poll(self, now: float) -> Iterator[MetricsRow | InputError]:
        """What the run logged since the last poll; an older run's rest comes before a newer run."""
        yield from self._read(now)
        newest = newest_file(self.path)
        if newest is not None and newest != self._reading:
            self._reading = newest
            self._log = (WandbLog(newest) if newest.suffix == ".wandb"
                         else JsonlMetrics(str(newest)) if newest.suffix == ".jsonl" else None)
            yield from self._read(now)

    def _read(self, now: float) -> Iterator[MetricsRow | InputError]:
        if isinstance(self._log, WandbLog):
            yield from self._history(self._log, now)
        elif self._log is not None:
            yield from self._log.poll(now)
        elif self._reading is not None:
            yield from self._newest_values(self._reading, now)

    def _history(self, log: WandbLog, now: float) -> Iterator[MetricsRow | InputError]:
        for data in log.records():
            if isinstance(data, InputError):
                yield data
                continue
            record = self._messages.Record()
            try:
                record.ParseFromString(data)
                logged = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            except (self._decode_error, ValueError) as error:
                yield InputError(f"not a record this wandb library knows ({error})", where=str(log.path))
                continue
            if record.HasField("history"):
                logged.setdefault("_step", record.history.step.num)
                yield row_of(logged, where=str(log.path), now=now)

    def _newest_values(self, path: Path, now: float) -> Iterator[MetricsRow | InputError]:
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return  # being written: the next poll sees it whole
        if isinstance(summary, dict) and summary != self._summary:
            self._summary = summary
            yield row_of(summary, where=str(path), now=now)


def newest_file(path: Path) -> Path | None:
    """The file to read of a run folder, a `wandb` folder, or a `.wandb` file; None while there is none."""
    if path.suffix == ".wandb":
        return path if path.exists() else None
    runs = [folder for pattern in ("run-*", "offline-run-*") for folder in path.glob(pattern) if folder.is_dir()]
    runs = sorted(runs, key=lambda folder: folder.name.removeprefix("offline-"))  # run-<date>_<time>-<id>
    folder = runs[-1] if runs else path
    candidates = [*sorted(folder.glob("run-*.wandb")), folder / "files" / "wandb-history.jsonl", folder / "files" / "wandb-summary.json"]
    return next((file for file in candidates if file.exists()), None)
