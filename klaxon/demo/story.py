"""What happened in a demo: read the trainer's metrics, the daemon's read API and the receiver's file; judge the outcome.

Everything here is a pure function of what was read, so the judgement can be tested without an engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CAUSES = {"raw-logprobs": "raw_logprobs", "stale-prefix-cache": "stale_prefix_cache"}
"""The cause Klaxon has to name, for every fault the demo can make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One demo, as it stands now.

    status, incidents: GET /v1/status and GET /v1/incidents of the daemon (incidents in any order).
    delivered: messages in the receiver's file. engine: what the engine says it is.
    fault_at: UTC seconds when the fault began, None = not yet, or no fault asked for.
    """

    fault: str
    fault_at: float | None
    engine: str
    status: Mapping[str, Any]
    incidents: Sequence[Mapping[str, Any]]
    delivered: int

    def alarm(self) -> Mapping[str, Any] | None:
        """The first statistical incident that opened after the fault."""
        if self.fault_at is None:
            return None
        found = [item for item in self.incidents if item["opened_at"] >= self.fault_at and _kind(item) == "statistical"]
        return min(found, key=lambda item: item["opened_at"], default=None)

    def diagnosis(self) -> Mapping[str, Any] | None:
        """Diagnosis of that alarm, None before there is one."""
        alarm = self.alarm()
        return alarm["diagnosis"] if alarm else None

    def false_alarms(self) -> int:
        """Incidents of any kind that opened before the fault, or at all when no fault was made."""
        return sum(self.fault_at is None or item["opened_at"] < self.fault_at for item in self.incidents)

    def settled(self) -> bool:
        """Whether nothing more needs to happen: no fault asked for, or alarm, confident diagnosis and delivery are there."""
        diagnosis = self.diagnosis()
        return self.fault not in CAUSES or bool(diagnosis and diagnosis["confident"] and self.delivered)

    def as_expected(self) -> bool:
        """Whether the demo showed what it is meant to show."""
        if self.false_alarms() or not self.status["counts"].get("scored"):
            return False
        diagnosis = self.diagnosis()
        return self.fault not in CAUSES or bool(diagnosis and diagnosis["verdict"] == CAUSES[self.fault] and self.delivered)

    def summary(self) -> dict[str, Any]:
        """The JSON object `klaxon demo --json` prints. Times in UTC seconds, floor in nats."""
        alarm, diagnosis, counts = self.alarm(), self.diagnosis(), self.status["counts"]
        return {
            "engine": self.engine, "versions_seen": self.status["weights"].get("versions_seen", 0),
            "rollouts_seen": counts.get("seen", 0), "rollouts_scored": counts.get("scored", 0),
            "tokens_scored": counts.get("tokens_scored", 0), "floor_nats": self.status.get("floor_nats"),
            "fault": self.fault, "fault_at": self.fault_at, "alarm_at": alarm["opened_at"] if alarm else None,
            "batches_to_alarm": self._batches_to_alarm(alarm), "cause": diagnosis["verdict"] if diagnosis else None,
            "confident": diagnosis["confident"] if diagnosis else None, "alerts_delivered": self.delivered,
            "false_alarms_before_fault": self.false_alarms(), "as_expected": self.as_expected(),
        }

    def _batches_to_alarm(self, alarm: Mapping[str, Any] | None) -> int | None:
        if alarm is None or self.fault_at is None:
            return None
        first_faulty = int((self.fault_at - self.status["started_at"]) // self.status["batch_seconds"])
        return int(alarm["alarm_t"]) - first_faulty + 1


class Metrics:
    """Follows the trainer's metrics.jsonl; a half-written last line waits for its rest."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self.rows: list[dict[str, Any]] = []

    def poll(self) -> list[dict[str, Any]]:
        """Rows that are new since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0]
        if not whole:
            return []
        self._offset += len(whole) + 1
        fresh = [json.loads(line) for line in whole.splitlines()]
        self.rows += fresh
        return fresh


def delivered_count(received: Path) -> int:
    """Messages the receiver wrote to its file."""
    if not received.exists():
        return 0
    return received.read_bytes().count(b"\n")


def _kind(incident: Mapping[str, Any]) -> str:
    return incident["drifts"][0]["kind"]
