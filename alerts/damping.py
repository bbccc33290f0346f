"""Damp: a fault that comes and goes is told once it holds still. Pure.

The first return within the flap window is told (the incident reopens), and its end too. From the second return on, ends and
returns wait until the incident has stayed one way for the window: at most one message a window, and the last state is told.
"""

from __future__ import annotations

from dataclasses import replace

from alerts import words
from alerts.notice import Log, Notice, NotifyReason

RETURNS_TOLD = 1
CHANGES = (NotifyReason.REOPENED, NotifyReason.RESOLVED)


def damp(notices: tuple[Notice, ...], log: Log, now: float) -> tuple[Notice, ...]:
    """Hold back ends and returns of what flaps; everything else passes."""
    return tuple(_damped(notice, log, now) for notice in notices)


def _damped(notice: Notice, log: Log, now: float) -> Notice:
    case = notice.case
    if notice.reason not in CHANGES or case.returns <= RETURNS_TOLD or case.changed_at is None:
        return notice
    if now - case.changed_at >= log.flap_window_seconds:
        return replace(notice, detail=f"{notice.detail}; it came and went {case.returns} times before")
    window = words.duration(log.flap_window_seconds)
    return replace(notice, reason=NotifyReason.FLAPPING, detail=f"it came back {case.returns} times within {window} of its end; "
                                                                f"told once it stays as it is for {window} ({notice.reason})")
