"""Trainer metrics from TensorBoard event files: `path` is a log folder (searched through) or one event file.

Read with TensorBoard's own loader, which goes on where it stopped; a file that appears later (a restart) is found at the next
poll. Scalars of both kinds are taken (`simple_value` of TF1 and torch, scalar tensors of TF2), grouped by step.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from collector.errors import InputError
from collector.sources.metrics.source import MetricsRow, needed

PATTERN = "events.out.tfevents.*"
_REAL_DTYPES = (1, 2)  # DT_FLOAT, DT_DOUBLE of a tensor


class TensorBoardMetrics:
    """Scalars of a TensorBoard log folder.

    Raises:
        ConfigError: the tensorboard library is not installed.
    """

    name = "tensorboard"

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._loaders: Any = needed("tensorboard.backend.event_processing.event_file_loader", extra="tensorboard")
        self._tensors: Any = needed("tensorboard.util.tensor_util", extra="tensorboard")
        self._open: dict[Path, Any] = {}

    def poll(self, now: float) -> Iterator[MetricsRow | InputError]:
        """What was written since the last poll, one row a run of events with the same step."""
        files = [self.path] if self.path.is_file() else sorted(self.path.rglob(PATTERN))
        for file in files:
            if file not in self._open:
                self._open[file] = self._loaders.LegacyEventFileLoader(str(file))
            yield from self._rows(file)

    def _rows(self, file: Path) -> Iterator[MetricsRow | InputError]:
        row: MetricsRow | None = None
        try:
            for event in self._open[file].Load():
                values = dict(self._scalars(event))
                if row is not None and values and event.step != row.step:
                    yield row
                    row = None
                if values:
                    row = MetricsRow(step=int(event.step), values={**(row.values if row else {}), **values}, at=float(event.wall_time))
        except Exception as error:  # its own error tree, and protobuf's: counted by whoever polls
            yield InputError(f"cannot be read further ({type(error).__name__}: {error})", where=str(file))
            del self._open[file]
        if row is not None:
            yield row

    def _scalars(self, event: Any) -> Iterator[tuple[str, float]]:
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                yield value.tag, float(value.simple_value)
            elif value.WhichOneof("value") == "tensor" and value.tensor.dtype in _REAL_DTYPES and not value.tensor.tensor_shape.dim:
                yield value.tag, float(self._tensors.make_ndarray(value.tensor))
