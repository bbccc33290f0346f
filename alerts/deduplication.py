"""Deduplicate: tell a receiver only what it does not know yet. Pure."""

from __future__ import annotations

from alerts import words
from alerts.incidents import Case
from alerts.labels import unmatched
from alerts.message import measured
from alerts.notice import Log, Notice, NotifyReason, Told

Decision = tuple[NotifyReason, str]
HELD_BACK = (NotifyReason.MUTED, NotifyReason.INHIBITED)


def deduplicate(notices: tuple[Notice, ...], log: Log, now: float) -> tuple[Notice, ...]:
    """Decide every notice that is not decided yet, from what its receiver was last told."""
    heard = _heard_at(log)
    return tuple(notice if notice.reason is not None else _decided(notice, log, now, heard) for notice in notices)


def _decided(notice: Notice, log: Log, now: float, heard: dict[str, float]) -> Notice:
    case, told = notice.case, log.told_of(notice)
    if not case.is_open:
        reason, detail = _over(told)
    elif log.policy(notice.receiver).escalation and (told is None or told.state == "resolved"):
        reason, detail = _escalated(notice, log, now, heard)
    elif told is None:
        reason, detail = NotifyReason.FIRST, _first(notice, log)
    elif told.state == "resolved":
        reason, detail = NotifyReason.REOPENED, "it is back, soon after its end was told"
    else:
        reason, detail = _news(notice, told, log, now, heard)
    return Notice(case=case, receiver=notice.receiver, reason=reason, detail=detail)  # replace() is too slow for all of a thousand incidents


def _first(notice: Notice, log: Log) -> str:
    if log.last.get((notice.case.incident.id, notice.receiver)) is NotifyReason.MUTED:
        return "its silence has ended, and it still fires"
    return "this is the first notice of this incident"


def _over(told: Told | None) -> Decision:
    if told is None:
        return NotifyReason.DUPLICATE, "it was never told, so there is nothing to take back"
    if told.state == "resolved":
        return NotifyReason.DUPLICATE, "its end was already told"
    return NotifyReason.RESOLVED, "the incident is over"


def _news(notice: Notice, told: Told, log: Log, now: float, heard: dict[str, float]) -> Decision:
    """Of an open incident the receiver knows: the most urgent thing it does not know."""
    case = notice.case
    firing = case.incident.state == "firing"
    if (worse := _worse(case, told, log)) is not None:
        return NotifyReason.WORSE, worse
    if (news := _diagnosed(case, told)) is not None:
        return NotifyReason.DIAGNOSED, news
    if not firing and told.state == "firing":
        return NotifyReason.ACKNOWLEDGED, f"it was {case.acknowledgement}" if case.acknowledgement else "it was acknowledged"
    if firing and not told.escalated and _due(case, log, now, heard) and (others := _escalation_receivers(notice, log)):
        return NotifyReason.ESCALATED, f"nobody has acknowledged it for {words.duration(log.escalate_after_seconds)}; from now on told to {others} as well"
    if firing and log.last.get((case.incident.id, notice.receiver)) is NotifyReason.MUTED:
        return NotifyReason.REPEAT, "its silence has ended, and it still fires"
    if firing and now - told.at >= log.repeat_interval_seconds:
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


def _escalated(notice: Notice, log: Log, now: float, heard: dict[str, float]) -> Decision:
    """For a receiver with escalation = true that knows nothing of the incident yet. What was held back until now is first told to the others."""
    case, before = notice.case, log.last.get((notice.case.incident.id, notice.receiver))
    waited = words.duration(log.escalate_after_seconds)
    if case.incident.state != "firing":
        return NotifyReason.NOT_ESCALATED, "it was acknowledged before it escalated"
    if before in HELD_BACK or not _due(case, log, now, heard):
        return NotifyReason.NOT_ESCALATED, f"it escalates if nobody acknowledges it for {waited}"
    return NotifyReason.ESCALATED, f"nobody has acknowledged it for {waited}"


def _due(case: Case, log: Log, now: float, heard: dict[str, float]) -> bool:
    """Counted from when somebody first heard of it; where nobody did (quiet hours, say), from when it began to fire."""
    began = max(case.incident.opened_at, case.changed_at or case.incident.opened_at)
    return now - heard.get(case.incident.id, began) >= log.escalate_after_seconds


def _heard_at(log: Log) -> dict[str, float]:
    """Incident → when a receiver first heard of it since it last (re)opened."""
    found: dict[str, float] = {}
    for (incident, _), told in log.told.items():
        if told.state != "resolved":
            at = told.at if told.first_at is None else told.first_at
            found[incident] = min(at, found.get(incident, at))
    return found


def _escalation_receivers(notice: Notice, log: Log) -> str:
    """The receivers an escalation of this incident reaches, for the one that is told of it; "" when there is none."""
    others = {name: log.policy(name) for name in log.receivers if name != notice.receiver}
    return ", ".join(name for name, policy in others.items() if policy.escalation and unmatched(policy.match, notice.case) is None)
