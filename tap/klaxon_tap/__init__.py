"""What Klaxon runs inside other people's processes: standard library only, never blocks, never raises.

In a trainer:

    klaxon_tap.announce_weights("41", "/ckpt/41")
    klaxon_tap.push(step, {"kl": 0.001, "clip_rate": 0.02, "reward": 0.4})

KLAXON_URL names the daemon (unix:///run/klaxon.sock or http://host:port), KLAXON_TOKEN its token. Without KLAXON_URL
both do nothing.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from klaxon_tap import settings
from klaxon_tap.sender import Sender

__version__ = "0.1.0"
__all__ = ["announce_weights", "push"]

_log = logging.getLogger("klaxon_tap")
_sender: Sender | None = None
_kill: settings.KillSwitch | None = None


def push(step: int, metrics: Mapping[str, Any]) -> bool:
    """Send one step's metrics (name → number); what is no finite number is left out. False when nothing was queued."""
    try:
        numbers = {str(name): float(value) for name, value in metrics.items() if _is_number(value)}
        return _put({"kind": "metrics", "step": int(step), "metrics": numbers, "at": time.time()})
    except Exception as error:
        _log.warning("klaxon tap: step %r was not pushed (%s: %s)", step, type(error).__name__, error)
        return False


def announce_weights(version: str | int, path: str) -> bool:
    """Say that `path` holds the complete weights of `version` (safetensors). False when nothing was queued."""
    try:
        return _put({"kind": "weights", "version": str(version), "path": os.path.abspath(path), "at": time.time()})
    except Exception as error:
        _log.warning("klaxon tap: version %r was not announced (%s: %s)", version, type(error).__name__, error)
        return False


def _put(message: dict[str, Any]) -> bool:
    global _sender, _kill
    if _sender is None:
        url = settings.url()
        if url is None:
            return False
        name = settings.engine()
        _kill = settings.KillSwitch()
        _sender = Sender(url, token=settings.token(), source="trainer", about=lambda: {"engine": name})
    return _kill is not None and _kill.on() and _sender.put(message)


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value)) and not isinstance(value, bool)
    except (TypeError, ValueError, OverflowError):
        return False
