"""TensorBoard: one event file a start of the daemon, written synchronously, so that a full disk is seen at once.

The step is the trainer's where it is known, else the batch; the time is the end of the batch.
"""

from __future__ import annotations

import importlib
import os
import socket
import time
from pathlib import Path
from typing import Any

from collector.errors import ConfigError
from klaxon.exports.points import Note, Point

MISSING = 'exports.tensorboard_dir: this needs tensorboard, which is not installed ({error}); pip install "klaxon-rl[tensorboard]"'


def check(folder: Path) -> None:
    """Raises ConfigError: the library is missing, or the folder cannot be written."""
    _library("tensorboard.compat.proto.event_pb2")
    existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"exports.tensorboard_dir: {folder} cannot be written; name a folder that can")


class TensorBoardSink:
    """Scalars of one folder."""

    def __init__(self, folder: Path) -> None:
        """Opens a new event file. Raises OSError or ConfigError."""
        self._events: Any = _library("tensorboard.compat.proto.event_pb2")
        self._summaries: Any = _library("tensorboard.compat.proto.summary_pb2")
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        path = folder / f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}.klaxon"
        self._stream = path.open("xb")
        self._records: Any = _library("tensorboard.summary.writer.record_writer").RecordWriter(self._stream)
        self._put(self._events.Event(wall_time=now, file_version="brain.Event:2"))

    def write(self, item: Point | Note) -> None:
        """One point; TensorBoard knows no alerts. Raises OSError."""
        if isinstance(item, Note):
            return
        scalars = [self._summaries.Summary.Value(tag=name, simple_value=value) for name, value in sorted(item.values.items())]
        self._put(self._events.Event(wall_time=item.at, step=item.x, summary=self._summaries.Summary(value=scalars)))

    def close(self) -> None:
        """End the file."""
        self._stream.close()

    def trouble(self) -> str:
        """A written event is in the file: nothing comes later."""
        return ""

    def _put(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._stream.flush()


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(MISSING.format(error=error)) from None
