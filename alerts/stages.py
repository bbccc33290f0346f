"""The stages of the pipeline: each a pure function of (notices, log, now). None of them reads a clock, a file or a socket."""

from __future__ import annotations

from dataclasses import replace

from alerts import words
from alerts.incidents import Case, overlap
from alerts.message import compose, effect, measured
from alerts.notice import Log, Notice, NotifyReason, Told

Notices = tuple[Notice, ...]

INHIBITED_BY = {
    "no_rollouts": ("engine_unreachable", "tap_silent"),
    "tap_silent": ("engine_unreachable",),
}
"""Consequence → the faults that explain it: while one of them is open, the consequence is recorded, not sent."""


def group(notices: Notices, log: Log, now: float) -> Notices:
    """One notice an incident (the newest state of it), then one a receiver."""
    newest = {notice.case.incident.id: notice for notice in notices}
    return tuple(replace(notice, receiver=receiver) for notice in newest.values() for receiver in log.receivers)


def inhibit(notices: Notices, log: Log, now: float) -> Notices:
    """A cause silences its consequences; a resolved notice still goes out to whoever was told."""
    wanted = {cause for causes in INHIBITED_BY.values() for cause in causes}
    possible = tuple(case for case in log.open_cases if case.fault in wanted)
    return tuple(_inhibited(notice, possible) for notice in notices)


def _inhibited(notice: Notice, possible: tuple[Case, ...]) -> Notice:
    causes = INHIBITED_BY.get(notice.case.fault, ())
    if not causes or notice.reason is not None or not notice.case.is_open:
        return notice
    for other in possible:
        if other.fault in causes and other.incident.run == notice.case.incident.run and _same_place(other, notice.case):
            return replace(notice, reason=NotifyReason.INHIBITED, detail=f"{other.fault} is open ({other.incident.id}) and explains it")
    return notice


def _same_place(one: Case, other: Case) -> bool:
    return overlap(one.incident.drifts[0].slice, other.incident.drifts[0].slice)


def mute(notices: Notices, log: Log, now: float) -> Notices:
    """Nothing is muted unless a row of the mutes table says so; a resolved notice still goes out to whoever was told."""
    return tuple(_muted(notice, log, now) for notice in notices)


def _muted(notice: Notice, log: Log, now: float) -> Notice:
    if notice.reason is not None or not notice.case.is_open:
        return notice
    for row in log.mutes:
        if row.fingerprint == notice.case.incident.fingerprint and row.starts_at <= now < row.ends_at:
            detail = f"muted by {words.clean(row.author, limit=40)} until {words.clock(row.ends_at)}: {words.clean(row.reason, limit=120)}"
            return replace(notice, reason=NotifyReason.MUTED, detail=detail)
    return notice


def deduplicate(notices: Notices, log: Log, now: float) -> Notices:
    """Tell a receiver only what it does not know yet."""
    return tuple(notice if notice.reason is not None else _decided(notice, log, now) for notice in notices)


def _decided(notice: Notice, log: Log, now: float) -> Notice:
    reason, detail = _decision(notice.case, log.told.get((notice.case.incident.id, notice.receiver)), log, now)
    return replace(notice, reason=reason, detail=detail)


def _decision(case: Case, told: Told | None, log: Log, now: float) -> tuple[NotifyReason, str]:
    incident = case.incident
    if told is None:
        if not case.is_open:
            return NotifyReason.DUPLICATE, "it was never told, so there is nothing to take back"
        return NotifyReason.FIRST, "this is the first notice of this incident"
    if not case.is_open:
        if told.state == "resolved":
            return NotifyReason.DUPLICATE, "its end was already told"
        return NotifyReason.RESOLVED, "the incident is over"
    if (worse := _worse(case, told, log)) is not None:
        return NotifyReason.WORSE, worse
    if (news := _diagnosed(case, told)) is not None:
        return NotifyReason.DIAGNOSED, news
    if incident.state == "firing" and now - told.at >= log.repeat_interval_seconds:
        return NotifyReason.REPEAT, f"it still fires and nobody has acknowledged it for {words.duration(now - told.at)}"
    return NotifyReason.DUPLICATE, "nothing new since the last message"


def _diagnosed(case: Case, told: Told) -> str | None:
    """News is a verdict it is sure of, or the first one with measured residuals; leaders that change places are not."""
    found = case.incident.diagnosis
    if found is None:
        return None
    if found.confident and (found.verdict, True) != (told.verdict, told.confident):
        return "the cause is now known"
    return "the first re-scores are in" if measured(found) and not told.measured else None


def _worse(case: Case, told: Told, log: Log) -> str | None:
    drifts = case.incident.drifts
    if len(drifts) > told.symptoms:
        return f"it spread: {words.where(drifts[-1].slice)}"
    size = drifts[0].effect
    if size is not None and told.effect is not None and size >= log.worse_factor * told.effect > 0:
        unit = drifts[0].effect_unit
        return f"it grew from {words.amount(told.effect, unit)} to {words.amount(size, unit)} since the last message"
    return None


def deliver(notices: Notices, log: Log, now: float) -> Notices:
    """Write the message of every notice that is to be sent. One that overtakes an unsent first notice is a first notice."""
    return tuple(_written(notice, log, now) if notice.reason is not None and notice.reason.sends else notice for notice in notices)


def _written(notice: Notice, log: Log, now: float) -> Notice:
    reason, detail = notice.reason, notice.detail
    waiting = log.unsent.get((notice.case.incident.id, notice.receiver))
    if waiting is NotifyReason.FIRST and notice.case.is_open:
        reason, detail = NotifyReason.FIRST, "this is the first notice of this incident"
    message = compose(notice.case, reason=str(reason), detail=detail, budget_text=log.budget_text,
                      dashboard_url=log.dashboard_url, runbook_url=log.runbook_url, now=now)
    return replace(notice, reason=reason, detail=detail, message=message)


def record(notices: Notices, log: Log, now: float) -> Notices:
    """Note what each receiver will have been told; the notices are stored as they leave here, sent or not."""
    return tuple(_noted(notice, now) if notice.message is not None else notice for notice in notices)


def _noted(notice: Notice, now: float) -> Notice:
    incident = notice.case.incident
    diagnosis = incident.diagnosis
    found = effect(incident.drifts[0], None)
    return replace(notice, told=Told(
        at=now, reason=str(notice.reason), state=incident.state, severity=incident.severity,
        effect=found[0] if found else None, symptoms=len(incident.drifts),
        verdict=diagnosis.verdict if diagnosis is not None else None,
        confident=diagnosis.confident if diagnosis is not None else False, measured=measured(diagnosis)))
