"""What comes from the trainer: metrics (pushed, or read from the configured sources) and weight announcements."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from collector.errors import InputError, Unavailable
from collector.records import WeightVersion
from collector.sources.metrics.registry import open_sources
from collector.sources.formats.hygiene import SKEW_SECONDS
from collector.sources.metrics.source import NOT_METRICS, MetricsRow, MetricsSource
from collector.sources.refusals import added, prefixed
from collector.weights.layouts import look
from collector.weights.ledger import VersionLedger, known_version
from detectors import budget, reference
from detectors.series import SeriesBattery
from detectors.trainer_health import TrainerHealth
from klaxon.config import Config
from klaxon.run_files import read_band
from klaxon.shadow import open_shadow, why_no_shadow

if TYPE_CHECKING:
    from collector.store import Store
    from klaxon.shadow import Say

log = logging.getLogger("klaxon.trainer")
REMEMBERED_ROWS = 100_000  # rows of metrics whose repetition is noticed


class TrainerSide:
    """Files the trainer's numbers; remembers its newest step and the order of its weight versions; owns the shadow."""

    def __init__(self, config: Config, store: Store, say: Say) -> None:
        self.config, self.store, self.say = config, store, say
        self.ledger = VersionLedger()
        self.shadow = open_shadow(config, say, believed=self._believed)
        self.sources = open_sources(config.metrics.sources, metrics_file=config.trainer.metrics_file)
        self.names = config.metrics.name_map()
        self.health = TrainerHealth()
        self.band = read_band(config.reference.band, only=config.reference.metrics) if config.reference.band else None
        self.bet: Callable[[dict[str, float]], None] = lambda gains: None  # files log gains into the open batch
        self._bet_steps: dict[str, int] = {}  # metric → newest step that has bet against the band
        self.past = SeriesBattery(config.detectors.battery, share=1.0)  # the bank weighs its streams
        self._cap = budget.ln_a(config.detectors.false_alarms, batch_seconds=config.daemon.batch_seconds) / 2
        self._past_steps: dict[str, tuple[int, int]] = {}  # metric → (newest step taken, how many)
        self._take_up_past()
        self._stored = dict(store.query('SELECT source, max("at") FROM metrics GROUP BY source'))  # by an earlier daemon of this run
        self.counts: Counter[str] = Counter()  # polls that failed, by source
        self.noticed: Counter[str] = Counter()  # rows that came twice, out of order or from the future
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._newest_step: dict[str, int] = {}
        self._silent: set[int] = set()  # sources whose failure has been told
        self.latest: dict[str, Any] = {}
        self.announced: str | None = None
        self.refused = 0

    def take_metrics(self, message: dict[str, Any]) -> None:
        """One pushed {"step", "metrics", "at"}; names whose value is no number are left out."""
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
        """Take what is new in every source; one that fails is told once, and tried again at the next poll."""
        for index, source in enumerate(self.sources):
            try:
                self._poll(source, _label(source, index, self.sources))
                self._silent.discard(index)
            except Exception as error:  # a source of the operator's own may raise anything
                self.counts[source.name] += 1
                if index not in self._silent:
                    self._silent.add(index)
                    log.error("metrics source %s fails: %s", source.name, error, exc_info=not isinstance(error, Unavailable))
                    self.say("metrics_unavailable", f"metrics source {source.name}: {error}", {"source": source.name})

    def _poll(self, source: MetricsSource, label: str) -> None:
        """File the new rows under the source's label; what an earlier daemon has stored is not stored again."""
        for row in source.poll(time.time()):
            if isinstance(row, InputError):
                self.refused += 1
                self.say("metrics_refused", str(row), {})
            elif row.at > self._stored.get(label, -math.inf) and self._is_new(row, label, time.time()):
                self._file(row.step, row.values, row.at, label)

    def _is_new(self, row: MetricsRow, label: str, now: float) -> bool:
        """False for a row that came before (a file written anew); odd order and clocks are only counted."""
        key = hash((label, row.step, *row.values.items()))
        if key in self._seen:
            self.noticed["metrics_repeated"] += 1
            return False
        self._seen[key] = None
        if len(self._seen) > REMEMBERED_ROWS:
            self._seen.popitem(last=False)
        self.noticed["metrics_clock_skew"] += row.at > now + SKEW_SECONDS
        self.noticed["metrics_out_of_order"] += row.step < self._newest_step.get(label, row.step)
        self._newest_step[label] = max(row.step, self._newest_step.get(label, row.step))
        return True

    @property
    def input_counts(self) -> dict[str, int]:
        """Oddities of the trainer's metrics by name; a source that counts its own says so in `counts`."""
        return added(self.noticed, prefixed("metrics_", [getattr(source, "counts", {}) for source in self.sources]))

    def _file(self, step: int, metrics: dict[str, Any], at: float, source: str) -> None:
        numbers = {name: float(value) for name, value in metrics.items()
                   if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in NOT_METRICS}
        told = self.names.framework
        numbers = self.names.standard(numbers)
        if self.names.framework != told:
            self.say("metrics_named", f"the trainer's metrics are named as by {self.names.framework}", {"framework": self.names.framework})
        self.latest = {"step": step, "at": at, **{name: value for name, value in numbers.items() if math.isfinite(value)}}
        self.health.take(step, numbers)
        self._against_band(step, numbers)
        self._against_past(step, numbers)
        self.store.append_metrics(step, at, numbers, source=source)

    def _against_band(self, step: int, numbers: dict[str, float]) -> None:
        """Each metric bets once a step, whoever logs it again."""
        if self.band is None:
            return
        fresh = {name: value for name, value in numbers.items() if name in self.band.metrics and step > self._bet_steps.get(name, -1)}
        self._bet_steps |= dict.fromkeys(fresh, step)
        if found := reference.gains(self.band, step, fresh):
            self.bet(found)

    def _against_past(self, step: int, numbers: dict[str, float]) -> None:
        """Each watched metric bets on leaving its own past, once a step."""
        gains: dict[str, float] = {}
        for name in self.config.metrics.detect:
            gains |= self._past_gains(name, step, numbers.get(name, math.nan))
        if gains:
            self.bet(gains)

    def _past_gains(self, name: str, step: int, value: float) -> dict[str, float]:
        newest, count = self._past_steps.get(name, (-1, 0))
        if not math.isfinite(value) or step <= newest:
            return {}
        self._past_steps[name] = step, count + 1
        return self.past.gains(count, {name: (value, 1.0)}, cap=self._cap)

    def _take_up_past(self) -> None:
        """Learn again what an earlier daemon of this run has stored; it has bet on that already."""
        for name in self.config.metrics.detect:
            stored = self.store.query('SELECT step, value FROM metrics WHERE name = ? ORDER BY "at" DESC, step DESC LIMIT ?',
                                      [name, 3 * self.config.detectors.battery.memory_batches])
            for step, value in reversed(stored):
                self._past_gains(name, step, math.nan if value is None else value)


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


def _label(source: MetricsSource, index: int, sources: Sequence[MetricsSource]) -> str:
    """The source's name, numbered from the second of its kind on."""
    same = sum(other.name == source.name for other in sources[:index])
    return f"{source.name}#{same + 1}" if same else source.name
