"""The short stages of the pipeline: each a pure function of (notices, log, now). None of them reads a clock, a file or a socket."""

from __future__ import annotations

from dataclasses import replace

from alerts import words
from alerts.labels import unmatched
from alerts.message import compose, effect, measured
from alerts.notice import Log, Notice, NotifyReason, Told

Notices = tuple[Notice, ...]


def group(notices: Notices, log: Log, now: float) -> Notices:
    """One notice an incident (the newest state of it), then one a receiver."""
    newest = {notice.case.incident.id: notice for notice in notices}
    return tuple(Notice(case=notice.case, receiver=receiver) for notice in newest.values() for receiver in log.receivers)


def route(notices: Notices, log: Log, now: float) -> Notices:
    """Leave out what the receiver's match does not take; whoever was told once hears the rest, though the cause be another by then."""
    return tuple(_routed(notice, log) for notice in notices)


def _routed(notice: Notice, log: Log) -> Notice:
    if notice.reason is not None or log.told_of(notice) is not None:
        return notice
    why = unmatched(log.policy(notice.receiver).match, notice.case)
    return notice if why is None else replace(notice, reason=NotifyReason.NOT_ROUTED, detail=words.clean(why))


def mute(notices: Notices, log: Log, now: float) -> Notices:
    """Nothing is muted unless a silence says so; a resolved notice still goes out to whoever was told."""
    return tuple(_muted(notice, log, now) for notice in notices)


def _muted(notice: Notice, log: Log, now: float) -> Notice:
    if notice.reason is not None or not notice.case.is_open:
        return notice
    for silence in log.silences:
        if silence.covers(notice.case, now):
            named = f" (silence {silence.id})" if silence.id else ""
            detail = f"muted by {words.clean(silence.author, limit=40)} until {words.clock(silence.ends_at)}: {words.clean(silence.reason, limit=120)}{named}"
            return replace(notice, reason=NotifyReason.MUTED, detail=detail)
    return notice


def respect_quiet(notices: Notices, log: Log, now: float) -> Notices:
    """What falls into a receiver's quiet hours is not told, unless its severity passes. Since the receiver then knows
    nothing of it, it is told when they end, if there is still something to tell."""
    return tuple(_left_alone(notice, log, now) for notice in notices)


def _left_alone(notice: Notice, log: Log, now: float) -> Notice:
    quiet = log.policy(notice.receiver).quiet
    if quiet is None or notice.reason is None or not notice.reason.sends or notice.case.incident.severity in quiet.passes:
        return notice
    span = quiet.span_at(now)
    if span is None:
        return notice
    return replace(notice, reason=NotifyReason.QUIET_HOURS, detail=f"quiet hours {span}; told when they end ({notice.reason})")


def deliver(notices: Notices, log: Log, now: float) -> Notices:
    """Write the message of every notice that is to be sent. One that overtakes an unsent first notice is a first notice."""
    return tuple(_written(notice, log, now) if notice.reason is not None and notice.reason.sends else notice for notice in notices)


def _written(notice: Notice, log: Log, now: float) -> Notice:
    reason, detail = notice.reason, notice.detail
    waiting = log.unsent.get((notice.case.incident.id, notice.receiver))
    if waiting is NotifyReason.FIRST and notice.case.is_open and reason is not NotifyReason.ESCALATED:
        reason, detail = NotifyReason.FIRST, "this is the first notice of this incident"
    message = compose(notice.case, reason=str(reason), detail=detail, budget_text=log.budget_text,
                      dashboard_url=log.dashboard_url, runbook_url=log.runbook_url, chart=log.chart, now=now)
    return replace(notice, reason=reason, detail=detail, message=message)


def record(notices: Notices, log: Log, now: float) -> Notices:
    """Note what each receiver will have been told; the notices are stored as they leave here, sent or not."""
    return tuple(_noted(notice, log, now) if notice.message is not None else notice for notice in notices)


def _noted(notice: Notice, log: Log, now: float) -> Notice:
    incident, before = notice.case.incident, log.told_of(notice)
    diagnosis = incident.diagnosis
    found = effect(incident.drifts[0], None)
    anew = before is None or notice.reason is NotifyReason.REOPENED
    return replace(notice, told=Told(
        at=now, reason=str(notice.reason), state=incident.state, severity=incident.severity,
        effect=found[0] if found else None, symptoms=len(incident.drifts),
        verdict=diagnosis.verdict if diagnosis is not None else None,
        confident=diagnosis.confident if diagnosis is not None else False, measured=measured(diagnosis),
        first_at=now if anew or before.first_at is None else before.first_at,
        escalated=notice.reason is NotifyReason.ESCALATED or (not anew and before.escalated),
        gathered=max(notice.gathered, 0 if anew else before.gathered)))
