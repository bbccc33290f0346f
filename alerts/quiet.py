"""Quiet hours of a receiver: times of day in a named time zone, and the severities that pass through them. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_SPAN = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)")
DAY_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """When a receiver wants to be left alone."""

    spans: tuple[tuple[int, int], ...]  # minutes of the local day; an end before its start lies on the next day
    zone: str
    passes: tuple[str, ...] = ("page",)  # severities told all the same

    def span_at(self, now: float) -> str | None:
        """The span `now` (UTC seconds) falls into, in words; None outside all of them. Follows summer time as the wall clock does.

        >>> quiet_of(["22:00-07:00"], "Europe/Berlin").span_at(1795300200.0)
        '22:00-07:00 Europe/Berlin'
        """
        local = datetime.fromtimestamp(now, zone_of(self.zone))
        minute = 60 * local.hour + local.minute
        for start, end in self.spans:
            inside = start <= minute < end if start < end else minute >= start or minute < end
            if inside:
                return f"{_clock(start)}-{_clock(end)} {self.zone}"
        return None


def quiet_of(spans: Sequence[str], zone: str, passes: Sequence[str] = ("page",)) -> Quiet | None:
    """Quiet hours out of their text, None without any.

    Raises:
        ValueError: a span is not HH:MM-HH:MM, or the time zone is unknown.
    """
    zone_of(zone)
    return Quiet(spans=tuple(parse_span(span) for span in spans), zone=zone, passes=tuple(passes)) if spans else None


def parse_span(text: str) -> tuple[int, int]:
    """(first, last) minute of the day; 24:00 is the end of the day.

    >>> parse_span("22:00-07:00")
    (1320, 420)
    """
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"quiet_hours: {text!r} is not a span of the day like 22:00-07:00")
    hours = [int(part) for part in found.groups()]
    start, end = 60 * hours[0] + hours[1], 60 * hours[2] + hours[3]
    if hours[1] > 59 or hours[3] > 59 or start >= DAY_MINUTES or end > DAY_MINUTES:
        raise ValueError(f"quiet_hours: {text!r} is no time of day; hours go from 00:00 to 24:00")
    if start == end:
        raise ValueError(f"quiet_hours: {text!r} is empty; write 00:00-24:00 for the whole day")
    return start, end


def zone_of(name: str) -> tzinfo:
    """The time zone of a name of the tz database. Raises ValueError for an unknown one."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"time_zone: {name!r} is unknown; write a name of the tz database like Europe/Berlin "
                         "(where the machine has none, install the package tzdata)") from None


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"
