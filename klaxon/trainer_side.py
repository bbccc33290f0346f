"""What comes from the trainer: metrics (pushed or tailed) and weight announcements."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from collector.errors import InputError
from collector.sources.file_tail import JsonLinesTail
from klaxon.config import Config

if TYPE_CHECKING:
    from collector.store import Store
    from klaxon.shadow import Say, Shadow


class TrainerSide:
    """Files the trainer's numbers; remembers its newest step and weight version."""

    def __init__(self, config: Config, store: Store, shadow: Shadow | None, say: Say) -> None:
        self.store, self.shadow, self.say = store, shadow, say
        self.tail = JsonLinesTail(config.trainer.metrics_file) if config.trainer.metrics_file else None
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
        """Take new lines of the metrics file."""
        if self.tail is None:
            return
        for where, item in self.tail.poll():
            if isinstance(item, InputError) or not isinstance(item.get("step"), int):
                self.refused += 1
                reason = item if isinstance(item, InputError) else f"{where}: step: a whole number is expected"
                self.say("metrics_refused", str(reason), {})
                continue
            at = item.get("at") or item.get("time") or time.time()
            self._file(item["step"], item, float(at), "file")

    def _file(self, step: int, metrics: dict[str, Any], at: float, source: str) -> None:
        numbers = {name: float(value) for name, value in metrics.items()
                   if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in ("step", "at", "time")}
        self.latest = {"step": step, "at": at, **numbers}
        self.store.append_metrics(step, at, numbers, source=source)
