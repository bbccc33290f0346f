"""Damp: a fault that comes and goes is not a new page each time. Pure.

A fault that returns within the flap window of its end reopens its incident, and that is told. From then on an end is told
only once the fault has stayed away for the window: whoever was told sees one incident that fires until it is really over.
At most two messages a window leave for ends and returns, and the last state is always told.
"""

from __future__ import annotations

from dataclasses import replace

from alerts import words
from alerts.notice import Log, Notice, NotifyReason


def damp(notices: tuple[Notice, ...], log: Log, now: float) -> tuple[Notice, ...]:
    """Hold back the end of what flaps; everything else passes."""
    return tuple(_damped(notice, log, now) for notice in notices)


def _damped(notice: Notice, log: Log, now: float) -> Notice:
    case = notice.case
    if notice.reason is not NotifyReason.RESOLVED or not case.returns or case.changed_at is None:
        return notice
    times = f"{case.returns} time{'' if case.returns == 1 else 's'}"
    if now - case.changed_at >= log.flap_window_seconds:
        return replace(notice, detail=f"{notice.detail}; it came back {times} before")
    window = words.duration(log.flap_window_seconds)
    return replace(notice, reason=NotifyReason.FLAPPING,
                   detail=f"it came back {times} within {window} of its end; its end is told once it has stayed away for {window}")
