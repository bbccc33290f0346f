"""What comes from the trainer: metrics (pushed or tailed) and weight announcements."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from collector.errors import InputError, Unavailable
from collector.records import WeightVersion
from collector.sources.file_tail import JsonLinesTail
from collector.weights.layouts import look
from collector.weights.ledger import VersionLedger, known_version
from klaxon.config import Config
from klaxon.shadow import open_shadow, why_no_shadow

if TYPE_CHECKING:
    from collector.store import Store
    from klaxon.shadow import Say


class TrainerSide:
    """Files the trainer's numbers; remembers its newest step and the order of its weight versions; owns the shadow."""

    def __init__(self, config: Config, store: Store, say: Say) -> None:
        self.config, self.store, self.say = config, store, say
        self.ledger = VersionLedger()
        self.shadow = open_shadow(config, say, believed=self._believed)
        self.tail = JsonLinesTail(config.trainer.metrics_file) if config.trainer.metrics_file else None
        self.latest: dict[str, Any] = {}
        self.announced: str | None = None
        self.refused = 0

    def take_metrics(self, message: dict[str, Any]) -> None:
        """One pushed {"step", "metrics", "at"}; names whose value is no finite number are left out."""
        self._file(int(message["step"]), message["metrics"], float(message.get("at") or time.time()), "push")

    def take_weights(self, message: dict[str, Any]) -> None:
        """One announcement {"version", "path", "at"}: the follower believes it only when the files are complete."""
        version, path = _announced(message)
        self.announced = version
        self.say("weights_announced", f"trainer announces weight version {version}", {"version": version})
        self._went_back(self.ledger.announce(version))
        if self.shadow is not None and self.config.weights.announced:
            self.shadow.follower.announce(version=version, path=path, at=float(message.get("at") or time.time()))

    def take_checked_weights(self, message: dict[str, Any]) -> dict[str, Any]:
        """One announcement whose sender wants to know now whether its folder is whole (POST /v1/weights).

        Raises:
            InputError: the message, or nothing here can score it.
            Unavailable: the folder is missing or not complete; names the file.
        """
        try:
            version, path = _announced(message)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f'{{"version", "path"}} is expected ({type(error).__name__}: {error})') from None
        if not self.config.weights.announced:
            raise InputError("weights.announced is false: announcements are not taken")
        if self.shadow is None:
            raise InputError(f"version {version} cannot be scored: {why_no_shadow(self.config)}")
        try:
            found = look(path, version=version, config=self.config.weights)
        except OSError as error:
            raise Unavailable(f"{path}: cannot be read on Klaxon's machine ({error.strerror})") from None
        self.take_weights(message)
        return {"version": version, "path": path, "digest": found.digest}

    def poll_weights(self) -> None:
        """Take new complete versions, from the folder and as announced."""
        if self.shadow is not None:
            self.shadow.refresh()

    def _believed(self, versions: tuple[WeightVersion, ...]) -> None:
        self._went_back(self.ledger.believe([(version.version, version.digest) for version in versions]))
        for version in versions:
            self.store.append_weights(version, seen_at=time.time())

    def _went_back(self, step: tuple[str, str] | None) -> None:
        if step is not None:
            self.say("weights_backwards", f"weight version went back from {step[0]} to {step[1]}: a resume or a rollback?",
                     {"before": step[0], "version": step[1]})

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


def _announced(message: dict[str, Any]) -> tuple[str, str]:
    """(version, path) of an announcement.

    Raises:
        KeyError, TypeError, ValueError: it is not one.
    """
    version = known_version(message["version"])
    if version is None:
        raise ValueError(f"version {message['version']!r} names no version")
    if not isinstance(message["path"], str) or not message["path"]:
        raise TypeError("path: a folder's name is expected")
    return version, message["path"]
