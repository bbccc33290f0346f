"""The alert pipeline is this list. Each stage is a pure function of (notices, log, now) in stages.py."""

from __future__ import annotations

from collections.abc import Iterable

from alerts.incidents import Case
from alerts.notice import Log, Notice
from alerts.stages import deduplicate, deliver, group, inhibit, mute, record

PIPELINE = [
    group,         # one notice an incident and receiver
    inhibit,       # a cause silences its consequences
    mute,          # nothing, unless the mutes table says so
    deduplicate,   # first, worse, diagnosed, repeat, resolved, or nothing new
    deliver,       # write the message
    record,        # note what the receiver will have been told
]


def decide(cases: Iterable[Case], log: Log, now: float) -> tuple[Notice, ...]:
    """One decided notice a case and receiver, with its reason; those to be sent carry their message."""
    notices: tuple[Notice, ...] = tuple(Notice(case=case) for case in cases)
    for stage in PIPELINE:
        notices = stage(notices, log, now)
    return notices
