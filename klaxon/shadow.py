"""Open tier 2 where it is configured: weight follower, shelf, scorer. torch is imported here and nowhere above."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from collector.errors import ConfigError
from collector.records import WeightVersion
from collector.weights.follower import WeightFollower
from klaxon.config import Config

if TYPE_CHECKING:
    from collector.shadow.scorer import ShadowScorer
    from collector.weights.shelf import WeightShelf

Say = Callable[[str, str, dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """The parts of tier 2."""

    follower: WeightFollower
    shelf: WeightShelf
    scorer: ShadowScorer
    device: str
    say: Say
    published: list[WeightVersion] = field(default_factory=list)  # every version believed so far, oldest first

    def refresh(self) -> tuple[WeightVersion, ...]:
        """Poll the follower; what is new goes on the shelf and is returned."""
        new = self.follower.poll(time.time())
        for version in new:
            self.shelf.add(version)
            self.published.append(version)
            self.say("weights", f"weight version {version.version} published", {"version": version.version})
        return new


def open_shadow(config: Config, say: Say) -> Shadow | None:
    """The shadow, or None when [weights] names no folder or [shadow] is off.

    Raises:
        ConfigError: it is configured but its libraries are missing.
    """
    if not config.shadow.enabled or not config.weights.dir:
        return None
    try:
        from collector.shadow.model import model_shelf, pick_device
        from collector.shadow.scorer import ShadowScorer
    except ModuleNotFoundError as error:
        raise ConfigError(f"[shadow] needs {error.name}, which is not installed: `pip install klaxon-rl[scorer]`, "
                          "or set shadow.enabled = false for tiers 0 and 1") from None
    shelf = model_shelf(config.shadow)
    return Shadow(follower=WeightFollower(config.weights), shelf=shelf, say=say, scorer=ShadowScorer(config.shadow, shelf),
                  device=str(pick_device(config.shadow.device)))
