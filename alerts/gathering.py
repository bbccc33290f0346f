"""Gather: of one fault that is open in many places the first few are told, the others are counted in the oldest one's messages. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from alerts.notice import Log, Notice, NotifyReason

Key = tuple[str, str, str]  # receiver, run, fault


def gather(notices: tuple[Notice, ...], log: Log, now: float) -> tuple[Notice, ...]:
    """At most `group_over` open incidents of one fault are told to a receiver one by one.

    One that was counted stays so while a told one of its fault is open. The end of one that was never told is not told.
    """
    if not log.group_over:
        return notices
    known: dict[Key, list[int]] = defaultdict(list)  # open and told already
    fresh: dict[Key, list[int]] = defaultdict(list)  # open and about to be told
    for i, notice in enumerate(notices):
        key = (notice.receiver, notice.case.incident.run, notice.case.fault)
        if not notice.case.is_open or notice.reason is None:
            continue
        if log.told_of(notice) is not None:
            if notice.reason.sends or notice.reason is NotifyReason.DUPLICATE:  # one that is silenced now can count for nobody
                known[key].append(i)
        elif notice.reason in (NotifyReason.FIRST, NotifyReason.ESCALATED):
            fresh[key].append(i)
    done = list(notices)
    for key, indices in fresh.items():
        _gather(done, sorted(indices, key=lambda i: _age(notices[i])), sorted(known[key], key=lambda i: _age(notices[i])), log)
    return tuple(done)


def _gather(notices: list[Notice], fresh: list[int], known: list[int], log: Log) -> None:
    """Decide one receiver's incidents of one fault, in place. Both lists are oldest first."""
    counted = [i for i in fresh if _was_counted(notices[i], log)] if known else []
    room = max(0, log.group_over - len(known))
    new = [i for i in fresh if i not in set(counted)]
    left_out = [*counted, *new[room:]]
    if not left_out:
        return
    leader = (known or new)[0]
    name = notices[leader].case.incident.id
    for i in left_out:
        notices[i] = replace(notices[i], reason=NotifyReason.GROUPED, detail=f"counted in the messages of {name}; `klaxon incidents` lists all")
    notices[leader] = _counting(notices[leader], len(left_out), log)


def _counting(notice: Notice, count: int, log: Log) -> Notice:
    """The oldest incident's notice, which says how many others there are; told anew when their number has doubled."""
    told = log.told_of(notice)
    said = f"{count} more of this fault {'is' if count == 1 else 'are'} open, listed by `klaxon incidents`"
    if notice.reason is not None and notice.reason.sends:
        return replace(notice, detail=f"{notice.detail}; {said}", gathered=count)
    if notice.reason is NotifyReason.DUPLICATE and told is not None and count >= max(1, 2 * told.gathered):
        return replace(notice, reason=NotifyReason.WORSE, detail=f"it spread: {said}", gathered=count)
    return notice


def _was_counted(notice: Notice, log: Log) -> bool:
    return log.last.get((notice.case.incident.id, notice.receiver)) is NotifyReason.GROUPED


def _age(notice: Notice) -> tuple[float, str]:
    return notice.case.incident.opened_at, notice.case.incident.id
