"""Trainer metrics from a W&B server: `path` is entity/project/run_id; the key comes from WANDB_API_KEY or ~/.netrc.

Asked at most every 30 seconds, for the steps after the newest one seen. The server address is WANDB_BASE_URL, as for wandb itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from collector.errors import InputError, Unavailable
from collector.sources.metrics.source import MetricsRow, needed, row_of

POLL_SECONDS = 30.0
PAGE_ROWS = 500
TIMEOUT_SECONDS = 10


class WandbApi:
    """Rows of `wandb.Api().run(path).scan_history`.

    Raises:
        ConfigError: the wandb library is not installed.
    """

    name = "wandb_api"

    def __init__(self, path: str) -> None:
        self.path = path
        self._wandb: Any = needed("wandb", extra="wandb")
        self._api: Any = None
        self._next_step = 0
        self._asked_at = float("-inf")

    def poll(self, now: float) -> Iterator[MetricsRow | InputError]:
        """Steps logged since the last poll.

        Raises:
            Unavailable: the server does not answer, or knows no such run.
        """
        if now - self._asked_at < POLL_SECONDS:
            return
        self._asked_at = now
        try:
            self._api = self._api or self._wandb.Api(timeout=TIMEOUT_SECONDS)
            self._api.flush()  # it keeps runs it has seen
            rows = list(self._api.run(self.path).scan_history(min_step=self._next_step, page_size=PAGE_ROWS))
        except (self._wandb.errors.Error, OSError, ValueError, TypeError) as error:
            raise Unavailable(f"wandb run {self.path}: {error}; is WANDB_API_KEY set?") from None
        for item in rows:
            row = row_of(item, where=f"wandb run {self.path}", now=now)
            if isinstance(row, MetricsRow):
                self._next_step = max(self._next_step, row.step + 1)
            yield row
