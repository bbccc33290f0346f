"""What is known of the processes that talk to the daemon: engine taps and the trainer."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

Say = Callable[[str, str, dict[str, Any]], None]  # kind, text, data → an event

ALIVE_SECONDS = 20.0
SILENT_SECONDS = 12.0  # two heartbeats missed
COUNTED = ("dropped", "without_logprobs", "multimodal")
AUDITED = ("logprobs_mode", "dtype", "enable_prefix_caching", "block_size", "kv_cache_dtype", "quantization", "model",
           "async_scheduling", "enable_chunked_prefill")


class TapBook:
    """Newest heartbeat of every process; a change of process or of config becomes an event.

    An engine may run several API server processes under one name: a new process beside one that still beats is one more, a
    new one after the others fell silent is a restart.
    """

    def __init__(self, say: Say) -> None:
        self._beats: dict[tuple[str, str, Any], dict[str, Any]] = {}  # (source, engine, pid)
        self._say = say
        self._lock = threading.Lock()

    def beat(self, message: dict[str, Any], *, now: float) -> None:
        """Take one heartbeat message."""
        source, engine, pid = str(message.get("source", "unknown")), str(message.get("engine", "unknown")), message.get("pid")
        with self._lock:
            others = [beat for (s, e, p), beat in self._beats.items() if (s, e) == (source, engine) and p != pid]
            before = self._beats.get((source, engine, pid)) or max(others, key=lambda beat: beat["last_seen"], default=None)
            known = (source, engine, pid) in self._beats
            self._beats[source, engine, pid] = {**message, "last_seen": now}
        if source == "trainer":
            return
        if before is None:
            self._say("tap", f"tap of {engine} ({source}) is heard", _audit(message))
            return
        if not known and all(now - beat["last_seen"] > SILENT_SECONDS for beat in others):
            self._say("engine_restart", f"engine {engine} restarted (pid {before.get('pid')} → {pid})", {})
        self._compare(engine, _audit(before), _audit(message))

    def engine_config(self) -> dict[str, Any]:
        """The newest engine's own account of its settings: evidence, never an input to the expected view."""
        beats = [beat for (source, *_), beat in self._all() if source != "trainer" and beat.get("config")]
        if not beats:
            return {}
        newest = max(beats, key=lambda beat: beat["last_seen"])
        return {"vllm_version": newest.get("vllm_version"), "engine": newest.get("engine"), **newest["config"]}

    def last_heard(self) -> float | None:
        """UTC seconds of the newest engine heartbeat; None when there was none."""
        return max((beat["last_seen"] for (source, *_), beat in self._all() if source != "trainer"), default=None)

    def listing(self, now: float) -> list[dict[str, Any]]:
        """One row a tap for the status; the processes of one engine are one row."""
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for (source, engine, _), beat in self._all():
            row = rows.setdefault((source, engine), {"source": source, "engine": engine, "last_seen": 0.0, "sent": 0, "dropped": 0, "errors": 0})
            if isinstance(at := beat.get("at"), (int, float)) and beat["last_seen"] >= row["last_seen"]:
                row["clock_ahead_seconds"] = at - beat["last_seen"]  # of its machine's clock, by its newest beat; less the way here
            row["last_seen"] = max(row["last_seen"], beat["last_seen"])
            for name in ("sent", "dropped", "errors"):
                row[name] += int(beat.get(name, 0) or 0)
        return [{**row, "alive": now - row["last_seen"] < ALIVE_SECONDS} for row in rows.values()]

    def processes(self, now: float) -> list[dict[str, Any]]:
        """One row a process that beats, or did."""
        told = ("source", "engine", "pid", "host", "sent", "dropped", "errors", "queued", "last_error", "at", "last_seen", *COUNTED)
        return [{**{name: beat.get(name) for name in told}, "source": source, "engine": engine, "alive": now - beat["last_seen"] < ALIVE_SECONDS}
                for (source, engine, _), beat in self._all()]

    def counts(self) -> Counter[str]:
        """What taps and proxies could not report, by reason: dropped, without_logprobs (nothing to compare), multimodal, unusable_…"""
        found: Counter[str] = Counter()
        for _, beat in self._all():
            found.update({name: int(value) for name in COUNTED if isinstance(value := beat.get(name), int)})
            for by_reason in (beat.get("dialects") or {}).values():
                found.update({name: int(count) for name, count in by_reason.items() if name.startswith("unusable_")})
        return found

    def _all(self) -> list[tuple[tuple[str, str, Any], dict[str, Any]]]:
        with self._lock:
            return list(self._beats.items())

    def _compare(self, engine: str, before: dict[str, Any], after: dict[str, Any]) -> None:
        for key in before.keys() & after.keys():
            if before[key] != after[key]:
                self._say("engine_config", f"engine {engine}: {key} changed from {before[key]} to {after[key]}",
                          {"key": key, "before": before[key], "after": after[key]})


def _audit(message: dict[str, Any]) -> dict[str, Any]:
    config = message.get("config") or {}
    told = {key: config[key] for key in AUDITED if config.get(key) is not None}
    if message.get("vllm_version"):
        told["vllm_version"] = message["vllm_version"]
    if "quantization" in config:
        told.setdefault("quantization", "none")  # vLLM's None says there is none; of the others it says that this vLLM has no such setting
    return told
