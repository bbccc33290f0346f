"""Open tier 2: weight follower, shelf, scorer. torch is imported here and nowhere above, and not before it is needed."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from collector.errors import ConfigError
from collector.records import WeightVersion
from collector.weights.follower import WeightFollower
from collector.weights.shelf import WeightShelf
from klaxon.config import Config

if TYPE_CHECKING:
    from collector.shadow.model import ShadowModel
    from collector.shadow.scorer import ShadowScorer

Say = Callable[[str, str, dict[str, Any]], None]
LIBRARIES = ("torch", "transformers", "safetensors")
REMEMBERED = 10_000  # labels left out by the stride


class Shadow:
    """The parts of tier 2. `believed` is called with each new version, before it is used."""

    def __init__(self, config: Config, say: Say, *, believed: Callable[[tuple[WeightVersion, ...]], None] = lambda _: None) -> None:
        self.config, self.say, self._believed = config, say, believed
        self.follower = WeightFollower(config.weights)
        self.shelf: WeightShelf[ShadowModel] = WeightShelf(self._load, versions_held=config.shadow.versions_held)
        self.published: list[WeightVersion] = []  # every version believed so far, oldest first
        self.strided: OrderedDict[str, None] = OrderedDict()  # labels [weights] every leaves out
        self._scorer: ShadowScorer | None = None
        self._lock = threading.Lock()  # the scheduler polls, and the worker when a rollout names a version it does not know

    def refresh(self) -> tuple[WeightVersion, ...]:
        """Poll the follower; what is new goes on the shelf (every N-th version of it) and is returned."""
        with self._lock:
            new = self.follower.poll(time.time())
            if new:
                self._believed(new)
            kept_versions = {version.version for version in new if self._keep(version)}
            self.published.extend(new)
        for version in new:
            kept = version.version in kept_versions
            text = f"weight version {version.version} published" + ("" if kept else ", not scored ([weights] every)")
            self.say("weights", text, {"version": version.version})
        return new

    def _keep(self, version: WeightVersion) -> bool:
        """Put it on the shelf unless the stride leaves it out; a label seen again stays what it was."""
        known = self.shelf.know(version.version) is not None
        counted = len(self.shelf.versions()) + len(self.strided)
        if not known and (version.version in self.strided or counted % self.config.weights.every):
            self.strided[version.version] = None
            return False
        self.shelf.add(version)
        return True

    @property
    def scorer(self) -> ShadowScorer:
        """The scorer, made at first use."""
        if self._scorer is None:
            self.open()
        return self._scorer  # type: ignore[return-value]

    @property
    def device(self) -> str | None:
        """Where it scores; None until it does."""
        if self._scorer is None:
            return None
        from collector.shadow.devices import pick_devices

        return ", ".join(map(str, pick_devices(self.config.shadow)))

    def open(self) -> None:
        """Import the scorer's libraries and make it.

        Raises:
            ConfigError: they are missing, or there is no such device.
        """
        if missing := missing_libraries():
            raise ConfigError(f"[shadow] needs {missing[0]}, which is not installed: `pip install 'klaxon-rl[scorer]'`, "
                              "or set shadow.enabled = false for tiers 0 and 1")
        from collector.shadow.scorer import ShadowScorer

        self._scorer = ShadowScorer(self.config.shadow, self.shelf)

    def _load(self, version: WeightVersion, evicted: ShadowModel | None) -> ShadowModel:
        from collector.shadow.model import load_version

        return load_version(version, evicted, self.config.shadow)


def missing_libraries() -> list[str]:
    """What the scorer needs and is not installed."""
    return [name for name in LIBRARIES if importlib.util.find_spec(name) is None]


def why_no_shadow(config: Config) -> str | None:
    """Why versions cannot be scored in this config, in plain words; None when they can."""
    if not config.shadow.enabled:
        return "shadow.enabled is false: no second opinion on the trainer, no explanations"
    if not config.weights.dir and not config.weights.announced:
        return "weights.dir is empty and weights.announced is false: no version can ever arrive"
    if missing := missing_libraries():
        return f"{', '.join(missing)} not installed: pip install 'klaxon-rl[scorer]'"
    return None


def open_shadow(config: Config, say: Say, *, believed: Callable[[tuple[WeightVersion, ...]], None] = lambda _: None) -> Shadow | None:
    """The shadow, or None. A configured folder opens it at once; announcements alone open it with the first version.

    Raises:
        ConfigError: a folder is configured but the libraries are missing.
    """
    if not config.shadow.enabled or not (config.weights.dir or config.weights.announced):
        return None
    if not config.weights.dir and missing_libraries():
        return None  # a tier 0 or 1 run that never asked for tier 2; POST /v1/weights says what is missing
    shadow = Shadow(config, say, believed=believed)
    if config.weights.dir:
        shadow.open()
    return shadow
