"""What comes from the trainer: metrics (pushed, or read from the configured sources) and weight announcements."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from collector.errors import InputError, Unavailable
from collector.sources.metrics.registry import open_sources
from collector.sources.metrics.source import NOT_METRICS, MetricsSource
from klaxon.config import Config

if TYPE_CHECKING:
    from collector.store import Store
    from klaxon.shadow import Say, Shadow

log = logging.getLogger("klaxon.trainer")


class TrainerSide:
    """Files the trainer's numbers; remembers its newest step and weight version."""

    def __init__(self, config: Config, store: Store, shadow: Shadow | None, say: Say) -> None:
        self.store, self.shadow, self.say = store, shadow, say
        self.sources = open_sources(config.metrics.sources, metrics_file=config.trainer.metrics_file)
        self.names = config.metrics.name_map()
        self.counts: Counter[str] = Counter()  # polls that failed, by source
        self._silent: set[int] = set()  # sources whose failure has been told
        self.latest: dict[str, Any] = {}
        self.announced: str | None = None
        self.refused = 0

    def take_metrics(self, message: dict[str, Any]) -> None:
        """One pushed {"step", "metrics", "at"}; names whose value is no finite number are left out."""
        self._file(int(message["step"]), message["metrics"], float(message.get("at") or time.time()), "push")

    def take_weights(self, message: dict[str, Any]) -> None:
        """One announcement {"version", "path", "at"}: the follower believes it only when the files are complete."""
        version = str(message["version"])
        self.announced = version
        self.say("weights_announced", f"trainer announces weight version {version}", {"version": version})
        if self.shadow is not None:
            self.shadow.follower.announce(version=version, path=str(message["path"]),
                                          at=float(message.get("at") or time.time()))

    def poll_weights(self) -> None:
        """Take new complete versions from the folder."""
        for version in self.shadow.refresh() if self.shadow else []:
            self.store.append_weights(version, seen_at=time.time())

    def poll_metrics(self) -> None:
        """Take what is new in every source; one that fails is told once, and tried again at the next poll."""
        for index, source in enumerate(self.sources):
            try:
                self._poll(source)
                self._silent.discard(index)
            except Exception as error:  # a source of the operator's own may raise anything
                self.counts[source.name] += 1
                if index not in self._silent:
                    self._silent.add(index)
                    log.error("metrics source %s fails: %s", source.name, error, exc_info=not isinstance(error, Unavailable))
                    self.say("metrics_unavailable", f"metrics source {source.name}: {error}", {"source": source.name})

    def _poll(self, source: MetricsSource) -> None:
        for row in source.poll(time.time()):
            if isinstance(row, InputError):
                self.refused += 1
                self.say("metrics_refused", str(row), {})
            else:
                self._file(row.step, row.values, row.at, source.name)

    def _file(self, step: int, metrics: dict[str, Any], at: float, source: str) -> None:
        numbers = {name: float(value) for name, value in metrics.items()
                   if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in NOT_METRICS}
        told = self.names.framework
        numbers = self.names.standard(numbers)
        if self.names.framework != told:
            self.say("metrics_named", f"the trainer's metrics are named as by {self.names.framework}", {"framework": self.names.framework})
        self.latest = {"step": step, "at": at, **numbers}
        self.store.append_metrics(step, at, numbers, source=source)
