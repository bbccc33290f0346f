"""What is known of the processes that talk to the daemon: engine taps and the trainer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

Say = Callable[[str, str, dict[str, Any]], None]  # kind, text, data → an event

ALIVE_SECONDS = 20.0
AUDITED = ("logprobs_mode", "dtype", "enable_prefix_caching", "block_size", "kv_cache_dtype", "quantization", "model")


class TapBook:
    """Newest heartbeat per (source, engine); a change of process or of config becomes an event."""

    def __init__(self, say: Say) -> None:
        self._beats: dict[tuple[str, str], dict[str, Any]] = {}
        self._say = say
        self._lock = threading.Lock()

    def beat(self, message: dict[str, Any], *, now: float) -> None:
        """Take one heartbeat message."""
        source, engine = str(message.get("source", "unknown")), str(message.get("engine", "unknown"))
        with self._lock:
            before = self._beats.get((source, engine))
            self._beats[source, engine] = {**message, "last_seen": now}
        if source == "trainer":
            return
        if before is None:
            self._say("tap", f"tap of {engine} ({source}) is heard", _audit(message))
        elif before.get("pid") != message.get("pid"):
            self._say("engine_restart", f"engine {engine} restarted (pid {before.get('pid')} → {message.get('pid')})", {})
        if before is not None:
            self._compare(engine, _audit(before), _audit(message))

    def engine_config(self) -> dict[str, Any]:
        """The newest engine's own account of its settings: evidence, never an input to the expected view."""
        with self._lock:
            beats = [beat for (source, _), beat in self._beats.items() if source != "trainer" and beat.get("config")]
        if not beats:
            return {}
        newest = max(beats, key=lambda beat: beat["last_seen"])
        return {"vllm_version": newest.get("vllm_version"), "engine": newest.get("engine"), **newest["config"]}

    def last_heard(self) -> float | None:
        """UTC seconds of the newest engine heartbeat; None when there was none."""
        with self._lock:
            return max((b["last_seen"] for (source, _), b in self._beats.items() if source != "trainer"), default=None)

    def listing(self, now: float) -> list[dict[str, Any]]:
        """One row a tap for the status."""
        with self._lock:
            beats = list(self._beats.items())
        return [{"source": source, "engine": engine, "last_seen": beat["last_seen"], "sent": beat.get("sent", 0),
                 "dropped": beat.get("dropped", 0), "errors": beat.get("errors", 0),
                 "alive": now - beat["last_seen"] < ALIVE_SECONDS} for (source, engine), beat in beats]

    def dropped(self) -> int:
        """Rollouts that taps themselves had to drop."""
        with self._lock:
            return sum(int(beat.get("dropped", 0) or 0) for beat in self._beats.values())

    def without_logprobs(self) -> int:
        """Requests nobody asked logprobs of: nothing to compare (KLAXON_FORCE_LOGPROBS asks for them)."""
        with self._lock:
            return sum(int(beat.get("without_logprobs", 0) or 0) for beat in self._beats.values())

    def _compare(self, engine: str, before: dict[str, Any], after: dict[str, Any]) -> None:
        for key in before.keys() & after.keys():
            if before[key] != after[key]:
                self._say("engine_config", f"engine {engine}: {key} changed from {before[key]} to {after[key]}",
                          {"key": key, "before": before[key], "after": after[key]})


def _audit(message: dict[str, Any]) -> dict[str, Any]:
    config = message.get("config") or {}
    return {key: config[key] for key in AUDITED if config.get(key) is not None}
