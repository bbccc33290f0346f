"""Silences: who does not want to hear of what, until when, and why. Pure rules and the reading of what people type.

A silence names a fingerprint, or labels (run, fault, or a key of the slice such as replica) by exact value or glob; all of
them must fit. It ends by itself; what still fires then is told then.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alerts import words
from alerts.incidents import Case
from alerts.labels import fits, slice_labels
from collector.errors import InputError

_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(w|d|h|min|m|s)", re.IGNORECASE)
_SECONDS = {"w": 7 * 86400.0, "d": 86400.0, "h": 3600.0, "min": 60.0, "m": 60.0, "s": 1.0}
LONGEST_SECONDS = 366 * 86400.0
_KEY = re.compile(r"[a-z_][a-z0-9_.]{0,29}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """One row of the silences table."""

    match: Mapping[str, str]  # "fingerprint" (exact), "run", "fault" or a key of the slice → value or glob
    starts_at: float  # UTC seconds
    ends_at: float
    author: str
    reason: str
    id: str = ""
    created_at: float = field(default=-math.inf)

    def covers(self, case: Case, now: float) -> bool:
        """Is this incident not to be told now? One that began stays begun when the clock goes back."""
        begun = self.starts_at <= max(now, self.created_at)
        return begun and now < self.ends_at and self.fits(case)

    def fits(self, case: Case) -> bool:
        """Do all its labels fit the incident?"""
        if not self.match:
            return False
        slices = slice_labels(case)
        own = {"run": {case.incident.run}, "fault": {case.fault}}
        for key, pattern in self.match.items():
            if key == "fingerprint":
                if pattern != case.incident.fingerprint:
                    return False
            elif not any(fits(value, [pattern]) for value in own.get(key, slices.get(key, ()))):
                return False
        return True

    def state(self, now: float) -> str:
        """pending, active or expired."""
        if now >= self.ends_at:
            return "expired"
        return "active" if self.starts_at <= max(now, self.created_at) else "pending"

    def to_json(self, now: float) -> dict[str, Any]:
        """As the API and `klaxon silence list --json` show it."""
        return {"id": self.id, "match": dict(self.match), "starts_at": self.starts_at, "ends_at": self.ends_at, "author": self.author,
                "reason": self.reason, "created_at": self.created_at if math.isfinite(self.created_at) else None, "state": self.state(now)}


def duration_seconds(text: str) -> float:
    """A length of time as people type it.

    >>> duration_seconds("2h"), duration_seconds("1d12h"), duration_seconds("90 min")
    (7200.0, 129600.0, 5400.0)

    Raises:
        InputError: it is none, or zero.
    """
    compact = text.strip()
    parts = _PART.findall(compact)
    if not parts or _PART.sub("", compact).strip():
        raise InputError(f"{text!r} is no length of time; write 30m, 2h, 1d or 1d12h", field="for")
    seconds = sum(float(number) * _SECONDS[unit.lower()] for number, unit in parts)
    if not 0 < seconds <= LONGEST_SECONDS:
        raise InputError(f"{text!r} is not between a second and a year", field="for")
    return seconds


def read_silence(said: Mapping[str, Any], *, now: float) -> Silence:
    """A silence out of {"match": {…}, "for": "2h" or "ends_at": UTC seconds, "author", "reason", "starts_at"?}.

    Raises:
        InputError: naming the field.
    """
    unknown = set(said) - {"match", "for", "ends_at", "starts_at", "author", "reason"}
    if unknown:
        raise InputError("is unknown; match, for, ends_at, starts_at, author and reason are known", field=sorted(unknown)[0])
    starts_at = _time(said, "starts_at") if said.get("starts_at") is not None else now
    if ("for" in said) == ("ends_at" in said):
        raise InputError("give one of for (2h, 1d) and ends_at (UTC seconds)", field="ends_at")
    ends_at = starts_at + duration_seconds(str(said["for"])) if "for" in said else _time(said, "ends_at")
    if ends_at <= now:
        raise InputError(f"{words.clock(ends_at)} is past; a silence ends in the future", field="ends_at")
    if not starts_at < ends_at <= now + 2 * LONGEST_SECONDS:
        raise InputError("must lie after starts_at, within two years", field="ends_at")
    return Silence(match=_match(said.get("match")), starts_at=starts_at, ends_at=ends_at, created_at=now,
                   author=text_of(said, "author", "who silences it"), reason=text_of(said, "reason", "why"))


def text_of(said: Mapping[str, Any], field_: str, what: str) -> str:
    """A short text that must be there. Raises InputError."""
    value = said.get(field_)
    if not isinstance(value, str) or not words.clean(value):
        raise InputError(f"say {what} in a few words", field=field_)
    return words.clean(value, limit=200)


def _match(said: Any) -> dict[str, str]:
    if not isinstance(said, Mapping) or not said:
        raise InputError("name at least one label, e.g. {\"fault\": \"no_rollouts\"}; {\"run\": \"*\"} silences everything", field="match")
    for key, value in said.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise InputError("is no label; fingerprint, run, fault and keys of the slice (replica, position, …) are", field=f"match.{key}")
        if not isinstance(value, str) or not value.strip() or len(value) > 500:
            raise InputError("a value or glob is expected", field=f"match.{key}")
    return {str(key): str(value).strip() for key, value in said.items()}


def _time(said: Mapping[str, Any], field_: str) -> float:
    value = said.get(field_)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not 0 < value < 1e11:
        raise InputError("UTC seconds are expected", field=field_)
    return float(value)
