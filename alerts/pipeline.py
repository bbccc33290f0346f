"""The alert pipeline is this list. Each stage is a pure function of (notices, log, now), in the file of its verb or in stages.py."""

from __future__ import annotations

from collections.abc import Iterable

from alerts.damping import damp
from alerts.deduplication import deduplicate
from alerts.gathering import gather
from alerts.incidents import Case
from alerts.inhibition import inhibit
from alerts.notice import Log, Notice
from alerts.stages import deliver, group, mute, record, respect_quiet, route

PIPELINE = [
    group,          # one notice an incident and receiver
    route,          # only what the receiver's match takes
    inhibit,        # a cause silences its consequences
    mute,           # nothing, unless a silence says so
    deduplicate,    # first, worse, diagnosed, escalated, repeat, resolved, … or nothing new
    gather,         # of one fault in many places, the first few; the others are counted
    damp,           # the end of what comes and goes is told once it stays away
    respect_quiet,  # what may wait, waits until the quiet hours end
    deliver,        # write the message
    record,         # note what the receiver will have been told
]


def decide(cases: Iterable[Case], log: Log, now: float) -> tuple[Notice, ...]:
    """One decided notice a case and receiver, with its reason; those to be sent carry their message."""
    notices: tuple[Notice, ...] = tuple(Notice(case=case) for case in cases)
    for stage in PIPELINE:
        notices = stage(notices, log, now)
    return notices
